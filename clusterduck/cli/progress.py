"""How far a sweep is, for somebody who waits: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

#: Seconds between two plain lines, however much happens.
LINE_INTERVAL_S = 10.0


class Progress:
    """A reporter that is told the numbers again and again, and decides itself what to print.

    Args:
        title: what is being waited for, e.g. the sweep's id.
        stream: where to print.
        clock: seconds, for tests.
    """

    def __init__(self, title: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._title = title
        self._clock = clock
        self._said: tuple[int, ...] | None = None
        self._numbers: tuple[int, ...] | None = None
        self._said_at = float("-inf")
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def update(self, done: int, total: int, running: int, failed: int, cancelled: int = 0) -> None:
        """Take the latest numbers: runs that ended, all, those running, and of the first those that failed, and those
        that were cancelled."""
        self._numbers = (done, total, running, failed, cancelled)
        if self._stream.isatty():
            self._draw(done, total, _words(*self._numbers))
        elif self._numbers != self._said and self._clock() - self._said_at >= LINE_INTERVAL_S:
            self._say()

    def close(self) -> None:
        """Leave the last numbers standing and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._numbers is not None and self._numbers != self._said:
            self._say()

    def _say(self) -> None:
        assert self._numbers is not None
        self._stream.write(f"{self._title}: {_words(*self._numbers)}\n")
        self._stream.flush()
        self._said, self._said_at = self._numbers, self._clock()

    def _draw(self, done: int, total: int, words: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.fields[title]}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[words]}", markup=False),
                TimeElapsedColumn(),
                console=Console(file=self._stream),
                refresh_per_second=4,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("", total=total, title=self._title, words="")
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, words=words)


def _words(done: int, total: int, running: int, failed: int, cancelled: int) -> str:
    words = f"{done} of {total} runs done, {running} running"
    words += f", {failed} failed" if failed else ""
    return f"{words}, {cancelled} cancelled" if cancelled else words
