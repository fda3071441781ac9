"""Tables in plain text: aligned columns, cut to the terminal's width where there is one and left whole elsewhere."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from clusterduck.wording import visible

_ELLIPSIS = "…"
_GAP = "  "
_ASCII = re.compile("[ -~]*")

#: A column is never cut below this many characters.
_LEAST = 6

#: Colours of states on a terminal (SGR codes); the word itself always stands there too.
_COLOURS = {
    "RUNNING": "34",
    "COMPLETED": "32",
    "FAILED": "31",
    "TIMEOUT": "31",
    "OUT_OF_MEMORY": "31",
    "NODE_FAIL": "31",
    "PREEMPTED": "35",
    "CANCELLED": "33",
    "UNKNOWN": "33",
}


@dataclass(frozen=True)
class Column:
    """One column: its heading, whether it holds numbers (set to the right), and whether its words are states."""

    heading: str
    right: bool = False
    state: bool = False


def width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if _ASCII.fullmatch(text):
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, most: int) -> str:
    """The text in at most ``most`` columns, with an ellipsis where something is missing."""
    if width(text) <= most:
        return text
    kept = ""
    for character in text:
        if width(kept + character) > most - 1:
            break
        kept += character
    return kept + _ELLIPSIS


def draw(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], available: int | None = None, colour: bool = False
) -> list[str]:
    """The table as lines, a heading first. Columns that are empty throughout are left out.

    Args:
        columns: what the cells are.
        rows: the cells, one for each column; made visible here.
        available: the width to keep to; None for as wide as it gets.
        colour: whether to colour states.
    """
    cells = [[visible(cell) for cell in row] for row in rows]
    used = [index for index in range(len(columns)) if not cells or any(row[index] for row in cells)]
    widths = {
        index: max(width(text) for text in (columns[index].heading, *(row[index] for row in cells))) for index in used
    }
    if available is not None:
        _shrink(widths, available - len(_GAP) * (len(used) - 1))
    heading = _GAP.join(_pad(columns[i].heading, widths[i], columns[i].right) for i in used).rstrip()
    lines = [heading]
    for row in cells:
        parts = []
        for index in used:
            text = _pad(row[index], widths[index], columns[index].right)
            parts.append(paint(text) if colour and columns[index].state else text)
        lines.append(_GAP.join(parts).rstrip())
    return lines


def paint(text: str) -> str:
    """The text (a state, perhaps padded) in its state's colour."""
    code = _COLOURS.get(text.strip())
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def _shrink(widths: dict[int, int], available: int) -> None:
    """Take from the widest column, one by one, until all fit or none can give more."""
    while sum(widths.values()) > available:
        widest = max(widths, key=lambda index: (widths[index], index))
        if widths[widest] <= _LEAST:
            return
        others = [size for index, size in widths.items() if index != widest]
        surplus = sum(widths.values()) - available
        widths[widest] = max(_LEAST, min(widths[widest] - 1, max(widths[widest] - surplus, max(others, default=0))))


def _pad(text: str, size: int, right: bool) -> str:
    text = cut(text, size)
    space = " " * (size - width(text))
    return space + text if right else text + space
