"""Folding: a journal's events move into the tables exactly once, because its offset moves in the same transaction.

Anyone may fold anything at any time, in any number of processes: who comes second finds the offset moved and goes on
there.
"""

from __future__ import annotations

import gc
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from clusterduck import journal
from clusterduck.errors import JournalError
from clusterduck.events import JournalClosed
from clusterduck.journal import Chunk
from clusterduck.ledger import schema, times
from clusterduck.ledger.facts import take_in
from clusterduck.ledger.settle import settle
from clusterduck.ledger.tables import Changes, Planned
from clusterduck.model import AgentId

#: How much of a journal is read at once, in bytes: some 700 events, a few hundredths of a second.
STRETCH_BYTES = 256 * 1024

#: What goes into one transaction is no more than so many stretches: many agents that report little each would make as
#: many transactions, which cost milliseconds each, most of it for pages that the next one writes again.
STRETCHES_AT_ONCE = 8

#: No more runs than so many are held back (see ``Changes``): each takes a few hundred bytes.
MOST_HELD = 200_000

#: So many of them get their rows in one transaction.
RELEASED_AT_ONCE = 5_000

#: A bad line that good ones follow is looked at again after this long, in seconds, before it is passed over: what
#: another host wrote may reach this one in pieces.
BAD_LINE_WAIT_S = 5.0

#: A bad line in a file that nobody has written to for this long, in seconds, is passed over at the first look.
OLD_FILE_S = 900.0

#: What an event in the wrong place, or values of the wrong kind in one, lead to. Such a journal is left alone, so that
#: the others can go on.
_UNFOLDABLE = (
    JournalError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
)


@dataclass
class Folded:
    """What folding some journals brought.

    Attributes:
        events: how many events moved.
        read: how many bytes moved.
        journals: how many journals were looked at.
        problems: sentences on journals that were left alone.
        left: the journals whose ends were not reached before time ran out.
    """

    events: int = 0
    read: int = 0
    journals: int = 0
    problems: list[str] = field(default_factory=list)
    left: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class _Position:
    """A journal's row: how far it was folded, and the bad line (with the file's size then) that is being waited at."""

    offset: int = 0
    bad_at: int | None = None
    bad_until: int | None = None
    bad_since: str | None = None
    closed: bool = False


@dataclass(frozen=True)
class _Stretch:
    """What was read of a journal, and the journal's row before it is in, and after."""

    path: Path
    before: _Position
    chunk: Chunk
    after: _Position

    @property
    def size(self) -> int:
        return self.after.offset - self.before.offset

    @property
    def is_last(self) -> bool:
        return self.after.closed or not (self.chunk.more or self.chunk.bad_at is not None)


def agent_of(root: Path, path: Path) -> AgentId | None:
    """Which agent writes the journal at ``path`` of the sweep in ``root``; None for a launch's or an act's.

    Raises:
        JournalError: if the folders are not named the way agents' folders are.
    """
    parts = _within(root, path).split("/")
    if parts[0] != "batches":
        return None
    restart, dot, node = parts[2].partition(".") if len(parts) == 4 else ("", "", "")
    if not (dot and restart.isdecimal() and node.isdecimal()):
        raise JournalError(f"{path} is no agent's journal: its folder should be named <restart>.<node>.")
    return AgentId(parts[1], int(restart), int(node))


def unread_bytes(connection: sqlite3.Connection, sweep: str, root: Path, path: Path) -> int:
    """How much of a sweep's journal is still to be folded, in bytes; 0 if nobody can tell."""
    try:
        size = os.stat(path).st_size
    except OSError:
        return 0
    return max(0, size - _look_up(connection, name_of(sweep, root, path)).offset)


def fold_journals(
    connection: sqlite3.Connection,
    sweep: str,
    root: Path,
    paths: Iterable[Path],
    *,
    clock: Callable[[], float],
    is_time_up: Callable[[], bool],
    is_private: bool = False,
) -> Folded:
    """Fold a sweep's journals from where they were folded to, up to their ends; one that cannot be holds up no other.

    What goes into a transaction is read before it begins: a file server that hangs then holds up no other process here.

    Args:
        connection: the replica, in autocommit mode.
        sweep: the sweep's id.
        root: the sweep's root folder.
        paths: the journals.
        clock: seconds since the epoch.
        is_time_up: asked after each look at a journal, so that there is at least one.
        is_private: nobody reads the replica before all is in it, and it is thrown away if this fails.

    Raises:
        sqlite3.Error: if the replica fails.
    """
    folding = _Folding(connection, sweep, root, clock, is_private)
    left = deque(paths)
    is_late = False
    with _garbage_left():
        while left and not is_late:
            new: list[_Stretch] = []
            size = 0
            while left and not is_late and size < STRETCHES_AT_ONCE * STRETCH_BYTES:
                stretch = folding.read(left[0])
                if stretch is not None:
                    new.append(stretch)
                    size += stretch.size
                if stretch is None or stretch.is_last:
                    left.popleft()
                is_late = is_time_up()
            outrun, failed = folding.take_in(new)
            if outrun or failed:
                left = deque(path for path in dict.fromkeys([*left, *outrun]) if path not in failed)
            folding.release(MOST_HELD)
        folding.release(0)
    folding.folded.left = list(left)
    return folding.folded


@contextmanager
def _garbage_left() -> Iterator[None]:
    """Without a look for reference cycles every few hundred rows: there are none among them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Folding:
    """A sweep's journals on their way into the tables.

    Attributes:
        folded: what was done so far.
    """

    def __init__(
        self, connection: sqlite3.Connection, sweep: str, root: Path, clock: Callable[[], float], is_private: bool
    ) -> None:
        self.folded = Folded()
        self._connection = connection
        self._sweep = sweep
        self._root = root
        self._clock = clock
        self._held: dict[int, Planned] | None = {} if is_private else None
        self._positions: dict[Path, _Position | None] = {}  # once all is in that was read; None: to be looked up

    def read(self, path: Path) -> _Stretch | None:
        """The next stretch of a journal; None if there is nothing new, or it cannot be read."""
        if path not in self._positions:
            self.folded.journals += 1
        before = self._positions.setdefault(path, None)
        try:
            agent_of(self._root, path)
            before = before or _look_up(self._connection, self._name(path))
            if before.closed:
                return None
            chunk = _read(path, before, self._clock)
            after = _after(before, chunk, path, self._clock)
        except (OSError, JournalError) as error:
            self.folded.problems.append(str(error))
            return None
        self._positions[path] = after
        return None if after == before else _Stretch(path, before, chunk, after)

    def take_in(self, stretches: Sequence[_Stretch]) -> tuple[set[Path], set[Path]]:
        """Fold stretches: together, or one by one if one cannot be folded.

        Returns the journals in which another process was faster, and those that were left alone.
        """
        outrun: set[Path] = set()
        failed: set[Path] = set()
        groups = [stretches] if stretches else []
        while groups:
            group = [one for one in groups.pop(0) if one.path not in failed]
            try:
                outrun |= self._take_in_together(group)
            except _UNFOLDABLE as error:
                if len(group) == 1:
                    failed.add(group[0].path)
                    self.folded.problems.append(_why(group[0], error))
                else:
                    groups += [[one] for one in group]
        for path in outrun:
            self._positions[path] = None
        return outrun, failed

    def _take_in_together(self, stretches: Sequence[_Stretch]) -> set[Path]:
        """Fold stretches in one transaction. Returns the journals in which another process was faster."""
        new = []
        changes = Changes(self._connection, self._sweep, self._root, self._held)
        with immediate(self._connection):
            for stretch in stretches:
                name = self._name(stretch.path)
                if _look_up(self._connection, name) == stretch.before:
                    if stretch.chunk.events:
                        take_in(stretch.chunk.events, changes, agent_of(self._root, stretch.path))
                    _save(self._connection, self._sweep, name, stretch.after)
                    new.append(stretch)
            if any(stretch.chunk.events for stretch in new):
                settle(changes)
                schema.note_unknown(self._connection, changes.unknown)
        changes.update_held()
        self.folded.events += sum(len(stretch.chunk.events) for stretch in new)
        self.folded.read += sum(stretch.size for stretch in new)
        return {stretch.path for stretch in stretches} - {stretch.path for stretch in new}

    def release(self, most: int) -> None:
        """Make the rows of runs that were held back, if they are more than so many."""
        while self._held and len(self._held) > most:
            changes = Changes(self._connection, self._sweep, self._root, self._held)
            with immediate(self._connection):
                for number in list(islice(self._held, RELEASED_AT_ONCE)):
                    changes.run(number)
                settle(changes)
            changes.update_held()

    def _name(self, path: Path) -> str:
        return name_of(self._sweep, self._root, path)


def name_of(sweep: str, root: Path, path: Path) -> str:
    """What a sweep's journal is called in the ledger."""
    return f"{sweep}/{_within(root, path)}"


def _within(root: Path, path: Path) -> str:
    """Where something that was found in ``root`` lies there; asked of each journal by every look, and pathlib needs
    twenty times as long."""
    return str(path)[len(str(root)) + 1 :]


def _why(stretch: _Stretch, error: Exception) -> str:
    if isinstance(error, JournalError):
        return str(error)
    return f"{stretch.path} holds an event that cannot be folded, after byte {stretch.before.offset}: {error}"


@contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that may write from its first moment, so that it never fails half-way because somebody else did."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _read(path: Path, position: _Position, clock: Callable[[], float]) -> Chunk:
    """The next stretch; a bad line is passed over if it was there long enough ago to count as written so."""
    skip = None
    if position.bad_at is not None and _may_pass(path, position, position.bad_at, clock):
        skip = position.bad_at
    return journal.read(path, position.offset, skip_bad_at=skip, limit=STRETCH_BYTES)


def _may_pass(path: Path, position: _Position, bad_at: int, clock: Callable[[], float]) -> bool:
    seen_before = position.bad_since is not None and position.bad_until is not None and bad_at < position.bad_until
    if seen_before and clock() >= times.to_seconds(position.bad_since or "") + BAD_LINE_WAIT_S:
        return True
    return _is_finished(path, clock)


def _after(position: _Position, chunk: Chunk, path: Path, clock: Callable[[], float]) -> _Position:
    """The journal's row once the stretch is in."""
    bad_at, bad_until, bad_since = chunk.bad_at, None, None
    if bad_at is not None:
        bad_until, bad_since = position.bad_until, position.bad_since
        if bad_until is None or bad_at >= bad_until:  # not seen before
            bad_until, bad_since = os.stat(path).st_size, times.to_text(clock())
    closed = bad_at is None and not chunk.more and bool(chunk.events) and isinstance(chunk.events[-1], JournalClosed)
    return _Position(chunk.offset, bad_at, bad_until, bad_since, closed)


def _is_finished(path: Path, clock: Callable[[], float]) -> bool:
    """Whether nobody writes to the journal any more: its last line says so, or its last write was long ago."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        info = os.fstat(fd)
        tail = os.pread(fd, 4096, max(0, info.st_size - 4096))
    finally:
        os.close(fd)
    last = tail.rstrip(b"\n").rpartition(b"\n")[2]
    try:
        closed = tail.endswith(b"\n") and isinstance(journal.decode(last), JournalClosed)
    except JournalError:
        closed = False
    return closed or clock() > info.st_mtime + OLD_FILE_S


def _look_up(connection: sqlite3.Connection, name: str) -> _Position:
    row = connection.execute(
        'SELECT "offset", bad_at, bad_until, bad_since, closed FROM journal WHERE path = ?', (name,)
    ).fetchone()
    return _Position() if row is None else _Position(row[0], row[1], row[2], row[3], bool(row[4]))


def _save(connection: sqlite3.Connection, sweep: str, name: str, position: _Position) -> None:
    connection.execute(
        'INSERT OR REPLACE INTO journal(path, sweep, "offset", bad_at, bad_until, bad_since, closed) '
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (name, sweep, position.offset, position.bad_at, position.bad_until, position.bad_since, position.closed),
    )
