"""Folding: a journal's events move into the tables exactly once, because its offset moves in the same transaction.

Anyone may fold anything at any time, in any number of processes: who comes second finds the offset moved and goes on
there.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clusterduck import journal
from clusterduck.errors import JournalError
from clusterduck.events import JournalClosed, UnknownEvent
from clusterduck.journal import Chunk
from clusterduck.ledger import schema, times
from clusterduck.ledger.facts import take_in
from clusterduck.ledger.settle import settle
from clusterduck.ledger.tables import Changes
from clusterduck.model import AgentId

#: How much of a journal goes into one transaction, in bytes: some 700 events, a few hundredths of a second.
STRETCH_BYTES = 256 * 1024

#: A bad line that good ones follow is looked at again after this long, in seconds, before it is passed over: what
#: another host wrote may reach this one in pieces.
BAD_LINE_WAIT_S = 5.0

#: A bad line in a file that nobody has written to for this long, in seconds, is passed over at the first look.
OLD_FILE_S = 900.0

#: What values of the wrong kind in an event lead to. Such a journal is left alone, so that the others can go on.
_UNFOLDABLE = (
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
    """What folding one journal brought.

    Attributes:
        events: how many events moved.
        read: how many bytes moved.
        more: whether time ran out before the journal's end.
    """

    events: int = 0
    read: int = 0
    more: bool = False


@dataclass(frozen=True)
class _Position:
    """A journal's row: how far it was folded, and the bad line (with the file's size then) that is being waited at."""

    offset: int = 0
    bad_at: int | None = None
    bad_until: int | None = None
    bad_since: str | None = None
    closed: bool = False


def agent_of(root: Path, path: Path) -> AgentId | None:
    """Which agent writes the journal at ``path`` of the sweep in ``root``; None for a launch's or an act's.

    Raises:
        JournalError: if the folders are not named the way agents' folders are.
    """
    parts = path.relative_to(root).parts
    if parts[0] != "batches":
        return None
    restart, dot, node = parts[2].partition(".") if len(parts) == 4 else ("", "", "")
    if not (dot and restart.isdecimal() and node.isdecimal()):
        raise JournalError(f"{path} is no agent's journal: its folder should be named <restart>.<node>.")
    return AgentId(parts[1], int(restart), int(node))


def fold_journal(
    connection: sqlite3.Connection,
    sweep: str,
    root: Path,
    path: Path,
    *,
    clock: Callable[[], float],
    is_time_up: Callable[[], bool],
) -> Folded:
    """Fold a journal from where it was folded to, up to its end.

    Args:
        connection: the replica, in autocommit mode.
        sweep: the sweep's id.
        root: the sweep's root folder.
        path: the journal.
        clock: seconds since the epoch.
        is_time_up: asked after each stretch, so that at least one is folded.

    Raises:
        OSError: if the journal cannot be read.
        JournalError: if the journal is of a newer version, or holds what cannot be folded.
        sqlite3.Error: if the replica fails.
    """
    who = agent_of(root, path)
    name = f"{sweep}/{path.relative_to(root)}"
    folded = Folded()
    position = _look_up(connection, name)
    while not position.closed:
        chunk = _read(path, position, clock)
        after = _after(position, chunk, path, clock)
        if after == position:
            break
        with immediate(connection):
            current = _look_up(connection, name)
            if current == position:
                try:
                    _take_in(connection, sweep, root, who, chunk)
                except _UNFOLDABLE as error:
                    raise JournalError(
                        f"{path} holds an event that cannot be folded, after byte {position.offset}: {error}"
                    ) from error
                _save(connection, sweep, name, after)
        if current != position:  # another process was faster
            position = current
            continue
        folded.events += len(chunk.events)
        folded.read += after.offset - position.offset
        position = after
        if not chunk.more and chunk.bad_at is None:
            break
        if is_time_up():
            folded.more = True
            break
    return folded


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


def _take_in(connection: sqlite3.Connection, sweep: str, root: Path, who: AgentId | None, chunk: Chunk) -> None:
    if chunk.events:
        changes = Changes(connection, sweep, root)
        take_in(chunk.events, changes, who)
        settle(changes)
        schema.note_unknown(connection, {event.kind for event in chunk.events if isinstance(event, UnknownEvent)})


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
