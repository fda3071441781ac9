"""A sweep's slots over time as a picture in a file of its own: SVG, or HTML around it.

The picture needs nothing from elsewhere: no script, no font, no style sheet. Colours follow the viewer's light or dark
scheme; each bar carries its state's letter and, as a tooltip, what it was. Where many runs share a pixel, or there are
more than a browser can show, one bar stands for several, see :class:`clusterduck.ledger.history.Lane`.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from html import escape
from pathlib import Path

from clusterduck.ledger import history
from clusterduck.ledger.history import Lane
from clusterduck.whole import written_whole

#: Height of a slot's row and of the axis, width of the names, of the whole picture at least, in pixels.
ROW = 18
AXIS = 34
NAMES = 150
WIDTH = 1200

#: A page is at most so wide, and a picture is made of no more than about so many bars.
_WIDEST = 20_000
_MOST_BARS = 200_000

#: A bar is at least so wide, in pixels, so that no run is invisible.
LEAST = 0.6

LETTERS = {
    "RUNNING": "R",
    "COMPLETED": "C",
    "FAILED": "F",
    "CANCELLED": "X",
    "TIMEOUT": "T",
    "OUT_OF_MEMORY": "M",
    "NODE_FAIL": "N",
    "PREEMPTED": "P",
}

_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)

_STYLE = """
.clusterduck text{font:11px ui-monospace,Menlo,Consolas,monospace;fill:#1f2328}
.clusterduck .back{fill:#fff}.clusterduck .there{fill:#f3e2b3}.clusterduck .line{stroke:#d0d7de}
.clusterduck .COMPLETED{fill:#4c9a5c}.clusterduck .RUNNING{fill:#3f7fd0}.clusterduck .FAILED{fill:#cf4a44}
.clusterduck .TIMEOUT{fill:#d28a1f}.clusterduck .OUT_OF_MEMORY{fill:#b5651d}.clusterduck .NODE_FAIL{fill:#8b1e3f}
.clusterduck .CANCELLED{fill:#8d6bb0}.clusterduck .PREEMPTED{fill:#3b9a9c}.clusterduck .OTHER{fill:#8b949e}
.clusterduck text.in{fill:#fff;font-size:10px;pointer-events:none}
@media (prefers-color-scheme:dark){.clusterduck text{fill:#e6edf3}.clusterduck .back{fill:#0d1117}
.clusterduck .there{fill:#4d4020}.clusterduck .line{stroke:#30363d}}
"""


def export(connection: sqlite3.Connection, sweep: str, path: Path) -> int:
    """Write the picture of a sweep's slots into a file, as SVG or as a page, whichever its name says; tells how many.

    Raises:
        OSError: if it cannot be written.
    """
    is_page = path.suffix.lower() != ".svg"
    now = time.time()
    width = _page_width(history.lanes(connection, sweep, rows=(0, 0)), now) if is_page else WIDTH
    lanes = history.lanes(connection, sweep, columns=_columns(width), most=_MOST_BARS)
    write(path, html(sweep, lanes, now) if is_page else svg(sweep, lanes, now))
    return len(lanes)


def svg(sweep: str, lanes: Sequence[Lane], now: float | None = None, width: int = WIDTH) -> str:
    """The picture as SVG.

    Args:
        sweep: the sweep's id, for the title.
        lanes: its slots.
        now: until when slots and runs that have not ended are drawn, in seconds since the epoch.
        width: in pixels.
    """
    now = time.time() if now is None else now
    start, end = _extent(lanes, now)
    scale = _columns(width) / (end - start)
    ordered = sorted(lanes, key=lambda lane: (lane.start, lane.batch, lane.restart, lane.node, lane.slot))
    height = AXIS + ROW * max(1, len(ordered)) + 30

    def x(at: float) -> float:
        return NAMES + (min(max(at, start), end) - start) * scale

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="clusterduck" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img"><title>{_text(sweep)}: slots over time</title>',
        f"<style>{_STYLE}</style>",
        f'<rect class="back" width="{width}" height="{height}"/>',
        f'<text x="6" y="13">{_text(sweep)}, {len(ordered)} slots, {_when(int(start))} to {_when(int(end))}</text>',
    ]
    parts += _axis(start, end, scale, height)
    for row, lane in enumerate(ordered):
        y = AXIS + row * ROW
        parts.append(f'<text x="6" y="{y + 13}">{_text(lane.host[:16])}/{lane.slot}</text>')
        lane_end = now if lane.end is None else lane.end
        there = max(LEAST, x(lane_end) - x(lane.start))
        parts.append(
            f'<rect class="there" x="{x(lane.start):.1f}" y="{y + 2}" width="{there:.1f}" height="{ROW - 4}"/>'
        )
        parts += _bars(lane, x, y, now)
    parts.append(_legend(height - 10))
    parts.append("</svg>\n")
    return "\n".join(parts)


def html(sweep: str, lanes: Sequence[Lane], now: float | None = None) -> str:
    """The picture as a page that scrolls sideways where the sweep was long: two pixels per minute at least."""
    now = time.time() if now is None else now
    width = _page_width(lanes, now)
    return (
        '<!doctype html>\n<html><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<title>{_text(sweep)}</title></head>\n<body style="margin:0;overflow:auto">\n{svg(sweep, lanes, now, width)}'
        "</body></html>\n"
    )


def write(path: Path, text: str) -> None:
    """Write beside and rename, so that a browser that looks meanwhile never finds half a picture.

    Raises:
        OSError: if it cannot be written.
    """
    with written_whole(path) as file:
        file.write(text)


def _extent(lanes: Sequence[Lane], now: float) -> tuple[float, float]:
    start = min((lane.start for lane in lanes), default=now - 1.0)
    return start, max(start + 1.0, max((now if lane.end is None else lane.end for lane in lanes), default=now))


def _page_width(lanes: Sequence[Lane], now: float) -> int:
    start, end = _extent(lanes, now)
    return int(min(_WIDEST, max(WIDTH, NAMES + (end - start) / 30)))


def _columns(width: int) -> int:
    return width - NAMES - 10


def _axis(start: float, end: float, scale: float, height: int) -> list[str]:
    step = next((step for step in _STEPS if step * scale >= 90), _STEPS[-1])
    offset = datetime.fromtimestamp(start).astimezone().utcoffset()
    shift = offset.total_seconds() if offset is not None else 0.0
    pattern = "%d %b %H:%M" if end - start > 86400 else "%H:%M:%S" if step < 60 else "%H:%M"
    parts = []
    tick = math.ceil((start + shift) / step) * step - shift
    while tick < end:
        at = NAMES + (tick - start) * scale
        parts.append(f'<line class="line" x1="{at:.1f}" x2="{at:.1f}" y1="{AXIS - 4}" y2="{height - 26}"/>')
        parts.append(f'<text x="{at + 2:.1f}" y="{AXIS - 7}">{datetime.fromtimestamp(tick).strftime(pattern)}</text>')
        tick += step
    return parts


def _bars(lane: Lane, x: Callable[[float], float], y: int, now: float) -> Iterator[str]:
    until = now if lane.end is None else lane.end
    box, text = f'" y="{y + 2}" height="{ROW - 4}" width="', f'" y="{y + 13}">'
    for run, attempt, state, start, end in lane.bars:
        name, letter, shown = _state(state)
        left = x(start)
        width = max(LEAST, x(until if end is None else end) - left)
        seconds = (now if end is None else end) - start
        is_one = not lane.piece or seconds >= 2 * lane.piece
        time_ = f"{'' if is_one else 'one of several in '}{seconds:.0f} s from {_when(int(start))}"
        yield (
            f'<rect class="{name}" x="{left:.1f}{box}{width - 0.5 if width > 3 else width:.1f}">'
            f"<title>run {run}, attempt {attempt}: {shown}, {time_}</title></rect>"
        )
        if width > 9:
            label = f"{letter}{run}"
            label = label if is_one and width > 7 * len(label) + 4 else letter
            yield f'<text class="in" x="{left + 2:.1f}{text}{label}</text>'


@lru_cache
def _state(state: str) -> tuple[str, str, str]:
    """A state as a class, a letter, and text."""
    return state if state in LETTERS else "OTHER", LETTERS.get(state, "?"), _text(state)


def _legend(y: int) -> str:
    parts = []
    x = 6
    for state, letter in LETTERS.items():
        parts.append(f'<rect class="{state}" x="{x}" y="{y - 9}" width="10" height="10"/>')
        parts.append(f'<text x="{x + 13}" y="{y}">{letter} {state}</text>')
        x += 30 + 7 * (len(state) + 2)
    parts.append(
        f'<rect class="there" x="{x}" y="{y - 9}" width="10" height="10"/><text x="{x + 13}" y="{y}">idle</text>'
    )
    return "".join(parts)


@lru_cache(maxsize=4096)
def _when(second: int) -> str:
    return str(datetime.fromtimestamp(second))


def _text(text: str) -> str:
    """Text for XML, which has no place for control characters and lone surrogates."""
    return escape("".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text))
