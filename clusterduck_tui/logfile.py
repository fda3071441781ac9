"""Rows of a log file anywhere in it, read by byte offset, so that a log of many gigabytes opens at once.

The file is opened anew each time, because an open one does not show what other hosts append. A row is a line, or a
piece of one that is very long. Its text is harmless: colours are left out, other control characters shown as escapes,
bytes that are no UTF-8 as replacement characters, and of a progress bar only what stood there last.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clusterduck.wording import visible

#: A longer line is shown in pieces, in bytes.
LONGEST = 4096

#: So much is read at once, in bytes; a search reads more.
BLOCK = 256 * 1024
SEARCH_BLOCK = 4 * 1024 * 1024

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")

#: What the first error in a log looks like.
ERROR = re.compile(
    rb"Traceback \(most recent call last\)|\b\w*(?:Error|Exception)\b\s*:|"
    rb"\b(?:ERROR|FATAL|CRITICAL)\b|Segmentation fault|Killed"
)


@dataclass(frozen=True)
class Row:
    """A row: where it begins, where the next one does, its text, and whether nothing more will be added to it."""

    start: int
    end: int
    text: str
    is_whole: bool


@dataclass(frozen=True)
class Block:
    """Some rows that follow one another, and the size of the file when they were read; None if there was no file."""

    rows: tuple[Row, ...]
    size: int | None


def read_from(path: Path, offset: int, count: int) -> Block:
    """At most ``count`` rows from ``offset`` on, where a row begins.

    Raises:
        OSError: if the file cannot be read, or is something else than a file.
    """
    fd = _open(path)
    if fd is None:
        return Block((), None)
    try:
        size = os.fstat(fd).st_size
        data = os.pread(fd, BLOCK, offset)
        return Block(tuple(_rows(data, offset, size)[:count]), size)
    finally:
        os.close(fd)


def read_before(path: Path, offset: int | None, count: int) -> Block:
    """At most ``count`` rows before ``offset``, where a row begins; before the end of the file if it is None.

    Raises:
        OSError: if the file cannot be read, or is something else than a file.
    """
    fd = _open(path)
    if fd is None:
        return Block((), None)
    try:
        size = os.fstat(fd).st_size
        end = size if offset is None else min(offset, size)
        start = max(0, end - BLOCK)
        start -= start % LONGEST
        data = os.pread(fd, end - start, start)
        if start > 0:
            line = data.find(b"\n") + 1
            if 0 < line < len(data):
                start, data = start + line, data[line:]
        rows = _rows(data, start, start + len(data))
        return Block(tuple(rows[-count:]), size)
    finally:
        os.close(fd)


def search(
    path: Path, pattern: re.Pattern[bytes], offset: int, is_stopped: Callable[[], bool], *, backward: bool = False
) -> int | None:
    """Where the next row begins that holds a match: at ``offset`` or after it, or before it.

    Raises:
        OSError: if the file cannot be read, or is something else than a file.
    """
    fd = _open(path)
    if fd is None:
        return None
    try:
        return _search_back(fd, pattern, offset, is_stopped) if backward else _search(fd, pattern, offset, is_stopped)
    finally:
        os.close(fd)


def _search(fd: int, pattern: re.Pattern[bytes], offset: int, is_stopped: Callable[[], bool]) -> int | None:
    while not is_stopped():
        data = os.pread(fd, SEARCH_BLOCK + LONGEST, offset)
        match = pattern.search(data)
        if match is not None:
            return _row_start(fd, offset + match.start())
        if len(data) <= SEARCH_BLOCK:
            return None
        offset += SEARCH_BLOCK
    return None


def _search_back(fd: int, pattern: re.Pattern[bytes], offset: int, is_stopped: Callable[[], bool]) -> int | None:
    end = offset
    while end > 0 and not is_stopped():
        start = max(0, end - SEARCH_BLOCK)
        data = os.pread(fd, min(end - start + LONGEST, offset - start), start)
        found = [match.start() for match in pattern.finditer(data)]
        if found:
            return _row_start(fd, start + found[-1])
        end = start
    return None


def _row_start(fd: int, offset: int) -> int:
    start = max(0, offset - LONGEST)
    before = os.pread(fd, offset - start, start)
    return start + before.rfind(b"\n") + 1


def _open(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "is not a file", str(path))
    return fd


def _rows(data: bytes, offset: int, size: int) -> list[Row]:
    """The rows in ``data``, which stands at ``offset``; the last one only if it is whole or the file ends there."""
    rows: list[Row] = []
    at = 0
    while at < len(data):
        end = data.find(b"\n", at, at + LONGEST) + 1
        is_whole = end > 0
        if not is_whole:
            if len(data) - at >= LONGEST:
                end, is_whole = at + LONGEST, True
            elif offset + len(data) >= size:
                end = len(data)
            else:
                break
        rows.append(Row(offset + at, offset + end, shown(data[at:end]), is_whole))
        at = end
    return rows


def shown(line: bytes) -> str:
    """A row's bytes as harmless text."""
    text = line.decode("utf-8", errors="replace").rstrip("\r\n")
    text = text.rpartition("\r")[2]
    return visible(_COLOUR.sub("", text).expandtabs(8))
