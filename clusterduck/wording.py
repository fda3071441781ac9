"""How values read on a screen: text made harmless, times, durations, sizes, and lists of ids. No I/O."""

from __future__ import annotations

import json
import math
import re
import signal
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusterduck.ledger.answers import AttemptInfo

#: What a terminal takes for commands (C0, DEL, C1), what breaks a line or turns its direction, and lone surrogates.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
#: The same in a log, where lines end and columns are set with tabs. A lone CR (a progress bar) stays within its line.
_HARMFUL_IN_LOGS = re.compile(_HARMFUL.pattern.replace("\x00-\x1f", "\x00-\x08\x0b\x0c\x0e-\x1f"))


def visible(text: str) -> str:
    """The text with everything that is not plainly visible shown as an escape: ``\\x1b``, ``\\n``, ``\\u202e``."""
    return _HARMFUL.sub(_escape, text)


def visible_lines(text: str) -> str:
    """Like :func:`visible` for text of several lines: line feeds, tabs and carriage returns stay."""
    return _HARMFUL_IN_LOGS.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def duration(seconds: float | None) -> str:
    """``12.3 s``, ``4:58``, ``1:02:03`` or ``2d 03:04``; empty for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours == 0:
        return f"{minute}:{second:02}"
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02}:{minute:02}" if days else f"{hour}:{minute:02}:{second:02}"


def run_count(count: int) -> str:
    """``1 run``, ``2 runs``."""
    return "1 run" if count == 1 else f"{count} runs"


def age(seconds: float) -> str:
    """How long ago something was, roughly: ``12 s``, ``3 min``, ``5 h`` or ``4 days``."""
    for limit, unit, of in ((100.0, "s", 1.0), (6000.0, "min", 60.0), (48 * 3600.0, "h", 3600.0)):
        if seconds < limit:
            return f"{max(0.0, seconds) / of:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def size(count: float | None) -> str:
    """Bytes as ``812 B``, ``3.4 GiB``; empty for None."""
    if count is None:
        return ""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def percent(value: float | None) -> str:
    """``87 %``; empty for None."""
    return "" if value is None else f"{value:.0f} %"


def seconds_of(text: str | None) -> float | None:
    """A time of the ledger (UTC, ISO 8601, ending in Z) as seconds since the epoch; None if it is none."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        return None
    return moment.replace(tzinfo=timezone.utc).timestamp()


def elapsed(started_at: str | None, duration_s: float | None) -> str:
    """How long something took, or has been going on."""
    started = seconds_of(started_at)
    if duration_s is None and started is not None:
        duration_s = time.time() - started
    return duration(duration_s)


def iso(seconds: float | None) -> str | None:
    """Seconds since the epoch as the ledger writes times."""
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local_time(text: str | None) -> str:
    """A time of the ledger on this host's clock, to the second: ``2026-11-24 14:05:06``."""
    seconds = seconds_of(text)
    return "" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def ids(values: Iterable[int | str]) -> str:
    """CPU or GPU ids in short: ``0-3,8``; ids that are not numbers in full."""
    parts: list[str] = []
    run: list[int] = []
    for value in [*values, None]:
        number = int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) else None
        if run and number == run[-1] + 1:
            run.append(run[-1] + 1)
            continue
        if run:
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}{'-' if len(run) > 2 else ','}{run[-1]}")
        run = [] if number is None else [number]
        if number is None and value is not None:
            parts.append(visible(str(value)))
    return ",".join(parts)


def finite(value: Any) -> Any:
    """JSON data in which NaN and the infinities, for which JSON has no word, are the strings ``NaN`` and so on."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def json_value(text: str | None) -> Any:
    """What a column of JSON text holds; None if it is empty or no JSON."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def short(value: Any, places: int | None = 6) -> str:
    """A return value for people: numbers to ``places`` significant digits (None: all), anything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, float) and places is not None:
        return f"{value:.{places}g}"
    return visible(value if isinstance(value, str) else json.dumps(value))


def attempt_facts(attempt: AttemptInfo) -> list[tuple[str, str]]:
    """What is known of an attempt besides its state, reason and traceback: a name and a value for each line."""
    started = local_time(attempt.started_at)
    took = f"{'took' if attempt.ended_at else 'so far'} {elapsed(attempt.started_at, attempt.duration_s)}"
    where = f"{attempt.host or '?'}, batch {attempt.batch}, slot {attempt.slot}, process {attempt.pid}"
    memory = size(attempt.peak_memory_bytes)
    facts = {
        "started": started and f"{started}, {took}",
        "ended": local_time(attempt.ended_at),
        "where": where if attempt.pid is not None else attempt.host,
        "exit code": None if attempt.exit_code is None else str(attempt.exit_code),
        "signal": None if attempt.signal is None else _signal_name(attempt.signal),
        "CPUs": ids(attempt.cpus),
        "GPUs": ids(attempt.gpus),
        "CPU time": duration(attempt.cpu_time_s),
        "memory": memory and f"{memory} at most",
        "commit": attempt.git_commit and attempt.git_commit + (" with changes" if attempt.git_dirty else ""),
        "returned": short(json_value(attempt.return_value), places=None),
        "folder": attempt.folder,
        "log": attempt.log,
        "result": attempt.result,
    }
    return [(name, value) for name, value in facts.items() if value]


def _signal_name(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)
