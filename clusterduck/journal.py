"""Journals: append-only files of events with exactly one writer, whose every line carries its own checksum.

A line is ``crc32 json LF``: eight hexadecimal digits, a space, an event. A reader believes only lines whose checksum
holds, so a torn or garbled line is noticed wherever it stands. Nothing here locks, and nothing is ever modified in
place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from binascii import hexlify
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from clusterduck import events, sharing
from clusterduck.errors import JournalError
from clusterduck.events import Event, JournalClosed, JournalOpened

#: How much of a journal one call of :func:`read` looks at, in bytes. A longer line is read whole all the same.
CHUNK_BYTES = 256 * 1024

#: After these errors of a write the same segment is tried again: a disk or quota is full, or the call was interrupted.
PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EINTR, errno.EAGAIN, errno.EFBIG})

#: A line longer than this is no line of ours.
MAX_LINE_BYTES = 16 * 1024 * 1024


def encode(event: Event) -> bytes:
    """The event as one line of a journal."""
    body = events.to_json(event).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> Event | None:
    """The event in a line (without its line feed), or None if its checksum does not hold.

    Raises:
        JournalError: if the checksum holds, but it is no event.
    """
    body = _body(line)
    return None if body is None else events.from_json(body)


def _body(line: bytes) -> bytes | None:
    """The JSON in a line, or None if its checksum does not hold."""
    body = line[9:]
    try:
        holds = int(line[:8], 16) == zlib.crc32(body) and line[8:9] == b" "
    except ValueError:
        return None
    return body if holds and body else None


@dataclass
class Chunk:
    """What one look at a journal brought.

    Attributes:
        events: the events between the offset that was asked for and ``offset``, in order.
        offset: where to go on reading; bytes before it need never be read again.
        bad_at: offset of a bad line that good lines follow, at which reading stopped. It may be a write that has not
            reached this host whole: look again later, and pass it as ``skip_bad_at`` if it is still bad then.
        more: whether there is more to read right away.
    """

    events: list[Event] = field(default_factory=list)
    offset: int = 0
    bad_at: int | None = None
    more: bool = False


def read(path: Path, offset: int = 0, skip_bad_at: int | None = None, limit: int = CHUNK_BYTES) -> Chunk:
    """Read a journal's events from ``offset`` on, opening the file anew (NFS shows other hosts' appends only so).

    A line without its line feed at the end is being written, or was torn: it is left for later. A bad line is passed
    over only if it stands at ``skip_bad_at`` and a good line follows it.

    Raises:
        OSError: if the file cannot be read.
        JournalError: if it was written by a newer version; nothing is read then.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        data = os.pread(fd, limit, offset)
        while b"\n" not in data.lstrip(b"\n") and len(data) < MAX_LINE_BYTES:
            more = os.pread(fd, limit, offset + len(data))
            if not more:
                break
            data += more
        end = data.rfind(b"\n") + 1
        chunk = Chunk(offset=offset, more=len(data) >= limit and end > 0)
        position = 0
        sound = _all_sound(data[:end])
        if sound is not None:
            for opened in [event for event in sound if type(event) is JournalOpened]:
                _check_version(opened, path)
            chunk.events, position = sound, end
            chunk.offset = offset + len(data[:end].rstrip(b"\n")) + 1
        while position < end:
            stop = data.index(b"\n", position)
            if stop == position:
                # A writer's fresh start after a failed write, or the first byte of a line that has not reached this
                # host as it is: only what follows tells.
                position += 1
                continue
            event = decode(data[position:stop])
            if event is not None:
                _check_version(event, path)
                chunk.events.append(event)
            else:
                at = offset + position
                follows = _good_line_follows(fd, data, stop + 1, offset)
                if at != skip_bad_at or not follows:
                    chunk.bad_at = at if follows else None
                    chunk.more = False
                    return chunk
            position = stop + 1
            chunk.offset = offset + position
        chunk.more = chunk.more and chunk.offset > offset
        return chunk
    finally:
        os.close(fd)


def _all_sound(data: bytes) -> list[Event] | None:
    """The events of whole lines, all at once; None if there are none, or any line has to be looked at by itself."""
    lines = [line for line in data.split(b"\n") if line]
    bodies = [line[9:] for line in lines]
    heads = b"".join([line[:9] for line in lines])
    sums = heads.replace(b" ", b"")
    if not all(bodies) or heads[8::9] != b" " * len(lines) or len(sums) != 8 * len(lines):
        return None
    if sums != hexlify(struct.pack(f">{len(lines)}I", *map(zlib.crc32, bodies))):
        return None
    return events.from_json_lines(bodies) or None


def read_all(path: Path) -> list[Event]:
    """All that can be read of a journal whose writer is dead: bad lines are passed over, what is torn at the end is
    gone.

    Raises:
        OSError: if the file cannot be read.
        JournalError: if it was written by a newer version.
    """
    found: list[Event] = []
    offset, bad = 0, None
    while True:
        chunk = read(path, offset, skip_bad_at=bad)
        found += chunk.events
        if chunk.offset == offset and chunk.bad_at is None:
            return found
        offset, bad = chunk.offset, chunk.bad_at


def _good_line_follows(fd: int, data: bytes, position: int, offset: int) -> bool:
    """Whether any line after ``position`` of ``data`` (or in the chunk of the file after it) has a checksum that
    holds."""
    rest = data[position:] + os.pread(fd, CHUNK_BYTES, offset + len(data))
    for line in rest.split(b"\n")[:-1]:
        try:
            if decode(line) is not None:
                return True
        except JournalError:
            return True
    return False


def _check_version(event: Event, path: Path) -> None:
    if isinstance(event, JournalOpened) and event.version > events.VERSION:
        raise JournalError(
            f"{path} was written by a newer clusterduck (journal version {event.version}, this one reads up to "
            f"{events.VERSION}): upgrade clusterduck here. The journal was left untouched."
        )


class JournalWriter:
    """The one writer of a journal: segments ``journal-<n>.jsonl`` in a folder, opened when first needed.

    What was appended stays in memory until a flush has succeeded. After a failed write or fsync everything that was not
    acknowledged is written again (an event that is found twice says the same thing twice): on NFS a failed write may
    speak of an earlier one, of which the next fsync then says nothing any more. A full disk fills up the same segment
    from a new line on; after any other failure a new segment is begun, since a stale handle stays stale.
    """

    def __init__(self, folder: Path, sweep: str, writer: str, name: str = "journal") -> None:
        self._folder = folder
        self._sweep = sweep
        self._writer = writer
        self._name = name
        self._segment = 0
        self._fd: int | None = None
        self._fresh_line = False
        self._closing = False
        self._written: list[bytes] = []  # in the file, not yet known to be on disk
        self._waiting: list[bytes] = []  # not yet in the file

    @property
    def pending(self) -> int:
        """How many lines are not yet known to be on disk."""
        return len(self._written) + len(self._waiting)

    def pending_lines(self) -> list[bytes]:
        """The lines that are not yet known to be on disk, e.g. to spool them elsewhere."""
        return self._written + self._waiting

    def append(self, new: Iterable[Event]) -> None:
        """Take events, to be written by the next flush. Touches no file."""
        self._waiting += [encode(event) for event in new]

    def flush(self, sync: bool) -> None:
        """Write what was appended; with ``sync``, make sure that it is on disk, and what was written before it too.

        Raises:
            OSError: if that failed. Nothing is lost: call again later.
        """
        if self._fd is None:
            self._open()
        assert self._fd is not None
        if self._waiting:
            data = b"".join(self._waiting)
            if self._fresh_line:
                data = b"\n" + data
            self._fresh_line = True  # until the whole of it is known to be written
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError as error:
                self._waiting = self._written + self._waiting
                self._written = []
                if error.errno not in PASSING:
                    self._abandon_segment()
                raise
            self._fresh_line = False
            self._written += self._waiting
            self._waiting = []
        if sync and self._written:
            try:
                os.fsync(self._fd)
            except OSError:
                self._abandon_segment()
                raise
            self._written = []

    def close(self) -> None:
        """Say that nothing follows, flush, and close the file.

        Raises:
            OSError: as :meth:`flush`.
        """
        if not self._closing:
            self._closing = True
            self.append([JournalClosed()])
        self.flush(sync=True)
        self._hang_up()

    def _open(self) -> None:
        while True:
            path = self._folder / f"{self._name}-{self._segment}.jsonl"
            group = sharing.reading_group(self._folder)
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                self._segment += 1
                continue
            sharing.let_read(self._fd, group)
            break
        opened = JournalOpened(sweep=self._sweep, writer=self._writer, segment=self._segment)
        self._waiting = [encode(opened), *self._waiting]

    def _abandon_segment(self) -> None:
        """Nobody knows what of the file is on disk, or can be: write all of it again, elsewhere."""
        self._waiting = self._written + self._waiting
        self._written = []
        self._segment += 1
        self._fresh_line = False
        self._hang_up()

    def _hang_up(self) -> None:
        """Close the file. Whether that succeeds says nothing new: all is on disk, or given up already."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)
