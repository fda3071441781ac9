"""Read a log as it grows, like ``tail -f``, also where an open file does not show what other hosts append."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from clusterduck.errors import UnsafePathError

#: How much is read at once, in bytes.
CHUNK_BYTES = 1024 * 1024


class LogTail:
    """A log file of which each call of :meth:`read` gives what was appended since the last one.

    The file is opened anew each time; it need not be there yet. When it moves, :meth:`moved_to` goes on at the same
    place of the same file. A file that became shorter is read from its start.
    """

    def __init__(self, path: Path | None, last_lines: int | None = None) -> None:
        self._path = path
        self._last_lines = last_lines
        self._offset: int | None = None if last_lines is not None else 0
        self.found = False

    @property
    def path(self) -> Path | None:
        """Where the log is looked for; None while nobody has said."""
        return self._path

    def moved_to(self, path: Path) -> None:
        """Look for it elsewhere from now on."""
        self._path = path

    def read(self) -> Iterator[bytes]:
        """What is new, in pieces; nothing if there is no such file now.

        Raises:
            OSError: if the file is there and cannot be read.
            UnsafePathError: if something else than a file stands there.
        """
        if self._path is None:
            return
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except FileNotFoundError:
            return
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise UnsafePathError(f"{self._path} is not a file.")
            self.found = True
            size = info.st_size
            if self._offset is None:
                self._offset = start_of_last_lines(fd, size, self._last_lines or 0)
            elif size < self._offset:
                self._offset = 0
            while data := os.pread(fd, CHUNK_BYTES, self._offset):
                self._offset += len(data)
                yield data
        finally:
            os.close(fd)


def start_of_last_lines(fd: int, size: int, lines: int) -> int:
    """Where the last ``lines`` lines of a file begin, found from its end so that a huge log costs nothing."""
    if lines <= 0:
        return size
    end = size - 1 if size and os.pread(fd, 1, size - 1) == b"\n" else size
    while end > 0:
        start = max(0, end - 65536)
        data = os.pread(fd, end - start, start)
        at = len(data)
        while (at := data.rfind(b"\n", 0, at)) >= 0:
            lines -= 1
            if lines == 0:
                return start + at + 1
        end = start
    return 0
