"""Where output goes: data to stdout, narration to stderr, colours only to a terminal whose owner wants them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clusterduck.cli.table import Column, draw, paint
from clusterduck.wording import finite, visible


class Output:
    """What a command prints through."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.colour = self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.width = shutil.get_terminal_size().columns if self.terminal else None

    def json(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """One JSON array, one row a line, ASCII only (so nothing in it can reach a terminal as a command)."""
        lines = [json.dumps(finite(row), ensure_ascii=True, allow_nan=False) for row in rows]
        sys.stdout.write("[" + ",\n ".join(lines) + "]\n")

    def line(self, text: str = "") -> None:
        """One line, made visible."""
        sys.stdout.write(visible(text) + "\n")

    def lines(self, lines: Iterable[str]) -> None:
        """Lines that are harmless already."""
        sys.stdout.write("".join(f"{line}\n" for line in lines))

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """A table for people."""
        self.lines(draw(columns, rows, self.width, self.colour))

    def state(self, state: str) -> str:
        """A state, coloured where colours are wanted."""
        return paint(visible(state)) if self.colour else visible(state)


def narrate(text: str) -> None:
    """Say something to the person at the terminal, beside the data."""
    sys.stderr.write(f"clusterduck: {visible(text)}\n")
    sys.stderr.flush()
