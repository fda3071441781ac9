"""What stands on a node's card: a head, and for each of its slots the run in it, its load, and what it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from clusterduck.job_words import SILENT_S
from clusterduck.ledger.overrides import as_dict
from clusterduck.ledger.queries import SlotNow
from clusterduck.wording import duration, ids, seconds_of, size, visible
from clusterduck_tui.messages import Load, Node
from clusterduck_tui.theme import ALERT, BOLD, DIM, load_bar, shortened, sparkline

#: Lines of a slot, and which of them changes as time goes on.
SLOT_LINES = 7
TIME_LINE = 2

#: Columns of load history in a wide slot, and in a narrow one.
SPARK = 10
SPARK_NARROW = 8

#: An override's key is at most so long where its value would not be seen otherwise.
KEY_NARROW = 8


def head(node: Node, now: float, width: int) -> Text:
    """The card's first line: the node, how many of its slots hold a run, its load, the time left, its job."""
    agent, slots = node.agent, node.slots
    busy = sum(slot.run is not None for slot in slots)
    ends_at = seconds_of(agent.ends_at)
    heard_at = seconds_of(agent.seen_at or agent.heartbeat_at or agent.started_at)
    quiet = 0.0 if heard_at is None else now - heard_at
    text = Text()
    text.append("▌", "blue")
    text.append(shortened(agent.host or "?", 24), BOLD)
    text.append(f" {busy}/{len(slots)} busy", BOLD if busy == len(slots) else Style(color="yellow", bold=True))
    if quiet > SILENT_S:
        text.append(f" not heard of for {duration(quiet)}", ALERT)
    if agent.cpu_percent is not None:
        text.append(f"  CPU {agent.cpu_percent:.0f} %")
    if agent.memory_bytes is not None:
        text.append(f"  {size(agent.memory_bytes)}")
    if ends_at is not None:
        text.append(f"  {_whole(max(0.0, ends_at - now))} left")
    text.append(f"  {shortened(agent.sweep, 30)} {agent.batch}", DIM)
    if agent.job_id:
        text.append(f" job {shortened(agent.job_id, 16)}", DIM)
    return _fitted(text, width)


def slot_lines(slot: SlotNow, varying: Sequence[str], history: Sequence[Load], width: int) -> list[Text]:
    """A slot's lines; the one that changes as time goes on is left empty."""
    first, second = Text(), Text()
    first.append(f"{slot.slot}: ", DIM)
    if slot.run is None:
        first.append("empty", Style(color="yellow"))
    else:
        first.append(f"run {slot.run}", BOLD)
        if (slot.attempt or 1) > 1:
            first.append(f" (attempt {slot.attempt})")
        second = Text(
            _overrides({key: value for key, value in as_dict(slot.overrides).items() if key in varying}, width)
        )
    cpus = max(1, len(slot.cpus))
    where = f"cpu {ids(slot.cpus)}" if slot.cpus else "cpu any"
    if slot.gpus:
        where += f" gpu {ids(slot.gpus)}"
    memory = f"mem {size(slot.memory_bytes)}" if slot.memory_bytes is not None else ""
    if slot.gpu_memory_bytes is not None:
        memory += f", {size(slot.gpu_memory_bytes)}"
    lines = [
        first,
        second,
        Text(),
        _load("CPU", slot.cpu_percent, cpus, [cpu for cpu, _ in history], width),
        _load("GPU", slot.gpu_percent, 1, [gpu for _, gpu in history], width),
        Text(memory, DIM),
        Text(where, DIM),
    ]
    return [_fitted(line, width) for line in lines]


def _overrides(pairs: Mapping[str, str], width: int) -> str:
    """Overrides in a line; where there is no room for them, keys are shortened, so that values are seen."""
    text = " ".join(f"{key}={value}" for key, value in pairs.items())
    if cell_len(visible(text)) > width:
        lasts = [key.rpartition(".")[2] for key in pairs]
        names = [last if lasts.count(last) == 1 else key for key, last in zip(pairs, lasts, strict=True)]
        shown = [shortened(name, KEY_NARROW) for name in names]
        text = " ".join(f"{key}={value}" for key, value in zip(shown, pairs.values(), strict=True))
    return shortened(text, width)


def time_line(slot: SlotNow, typical: float | None, now: float, width: int) -> Text:
    """How long the slot's run has been going on, against what runs of its sweep typically take."""
    text = Text()
    if slot.run is not None:
        begun = seconds_of(slot.since)
        so_far = 0.0 if begun is None else max(0.0, now - begun)
        text.append(_whole(so_far))
        if typical is not None:
            text.append(f" of ~{_whole(typical)} ", DIM)
            room = width - len(text)
            if room > 2:
                late = so_far > 1.5 * typical
                text.append_text(load_bar(so_far / typical if typical else 1, room, "yellow" if late else "blue"))
    return _fitted(text, width)


def _load(name: str, percent: float | None, share_of: int, history: Sequence[float | None], width: int) -> Text:
    """A load as a bar, a number and its history. CPU percent count one CPU as 100, so many CPUs are a full bar."""
    whole = 100.0 * share_of
    text = Text(f"{name} ")
    if percent is None and not any(value is not None for value in history):
        text.append("·", DIM)
        return text
    spark = SPARK if width >= 28 else SPARK_NARROW if width >= 22 else max(0, min(SPARK_NARROW, width - 15))
    bar = max(3, width - 4 - 6 - spark)
    text.append_text(load_bar(None if percent is None else percent / whole, bar))
    text.append(f"{percent:>4.0f}% " if percent is not None else "   ?  ")
    text.append_text(sparkline([None if value is None else value / whole for value in history], spark))
    return text


def _fitted(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis", pad=True)
    return text


def _whole(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else duration(seconds)
