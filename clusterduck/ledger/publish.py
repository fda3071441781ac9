"""Publishing: a replica's snapshot takes the ledger's place by rename, and never an older one that of a newer.

Readers (sqlite3, Datasette, pandas) always find a whole file that nobody modifies in place. What a ledger knows is the
offset of each journal; a snapshot is newer if it is behind in none and ahead in one. The generation, the sum of the
offsets, is the same in one number, for people.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import stat
import struct
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clusterduck import sharing
from clusterduck.errors import ClusterduckError, LedgerError
from clusterduck.ledger import schema, times
from clusterduck.ledger.lock import hold, lock_path
from clusterduck.ledger.publish_if_old import is_older_than
from clusterduck.ledger.replica import Replica, sync
from clusterduck.paths import HIDDEN, LedgerPaths

#: How long to wait for another publisher, in seconds.
WAIT_S = 10.0

#: Leavings of publishers that died are removed when they are this old, in seconds by the file server's clock.
LEAVINGS_S = 3600.0


#: A ledger that stands for this long, in seconds, and has read of a journal what is not there, has read what was lost
#: with its writer's host: a host that publishes sees what was written on it before it is on the file server.
LOST_S = 60.0


@dataclass(frozen=True)
class _Known:
    """What a published ledger knows: its schema and generation, and how far it has read each journal."""

    schema_version: int = 0
    generation: int = -1
    offsets: dict[str, int] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()  # kinds of events that were passed over


def publish(
    replica: Replica, ledger: Path, if_older_than_s: float = 0.0, wait_s: float = WAIT_S, *, anew: bool = False
) -> bool:
    """Put a snapshot of the replica into the ledger's place, if it knows more than the ledger that stands there.

    Args:
        replica: caught up by the caller.
        ledger: the ledger's path.
        if_older_than_s: do nothing if somebody published within the last so many seconds.
        wait_s: how long to wait for somebody who is publishing right now.
        anew: the replica was folded anew, so it is right where the two differ: it may know just as much, and less
            where the ledger claims to have read what is not there.

    Returns:
        Whether the ledger was replaced.

    Raises:
        LedgerError: if a newer clusterduck, or something else altogether, wrote the file that stands there, or the new
            one cannot be written.
    """
    ledger = Path(os.path.abspath(ledger))
    if not is_older_than(ledger, if_older_than_s) or not _is_news(replica, _published(ledger), anew):
        return False
    try:
        if not LedgerPaths(ledger).is_own:
            return False  # who only may read it, reads the own replica
        with hold(ledger, wait_s) as token:
            if token is None or not is_older_than(ledger, if_older_than_s):
                return False
            _remove_leavings(ledger)
            return _replace(replica, ledger, token, anew)
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"The ledger {ledger} could not be published: {error}. Nothing recorded is lost.") from error


def _replace(replica: Replica, ledger: Path, token: str, anew: bool) -> bool:
    known = _published(ledger)
    if not _is_news(replica, known, anew):
        return False
    snapshot = replica.path.with_name(f"snapshot-{os.getpid()}-{secrets.token_hex(4)}.db")
    beside = ledger.with_name(f".{ledger.name}.{token}")
    try:
        mine = _snapshot(replica, snapshot, known)
        _copy(snapshot, beside)
        sharing.let_read(beside, sharing.reading_group(LedgerPaths(ledger).sweeps))
        newest = _published(ledger)
        if newest != known and not _is_newer(mine, newest, LedgerPaths(ledger), anew):
            return False  # somebody took us for dead, and was faster
        os.rename(beside, ledger)
        sync(ledger.parent)
    finally:
        snapshot.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
    return True


def _is_news(replica: Replica, known: _Known, anew: bool) -> bool:
    mine = _known(replica.connection)
    return _is_newer(mine, known, LedgerPaths(replica.ledger), anew)


def _is_newer(mine: _Known, theirs: _Known, paths: LedgerPaths, anew: bool) -> bool:
    """Whether ``mine`` is behind ``theirs`` in no journal (but for what was deleted or lost), and ahead somewhere.

    To have forgotten a pruned sweep is to be ahead, too.
    """
    behind = {name: offset for name, offset in theirs.offsets.items() if mine.offsets.get(name, 0) < offset}
    if behind:
        roots = paths.sweep_roots()
        for name, offset in behind.items():
            sweep, _, inside = name.partition("/")
            there = _size(roots[sweep] / inside) if sweep in roots else None
            if anew:
                if there is not None and there >= offset:
                    return False
            elif there is None:
                if name in mine.offsets:
                    return False
            elif there >= offset or not is_older_than(paths.ledger, LOST_S):
                return False
    return (
        anew
        or mine.schema_version > theirs.schema_version
        or theirs.generation < 0
        or bool(theirs.unknown - mine.unknown)
        or any(offset > theirs.offsets.get(name, 0) for name, offset in mine.offsets.items())
        or _has_pruned(theirs.offsets.keys() - mine.offsets.keys(), paths)
    )


def _has_pruned(names: Collection[str], paths: LedgerPaths) -> bool:
    """Whether any of these journals is a pruned sweep's."""
    if not names:
        return False
    sweeps, pruned = paths.listed()
    return not {name.partition("/")[0] for name in names}.isdisjoint(set(pruned).difference(sweeps))


def _size(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # opened, because NFS answers stat from memory
    except OSError:
        return None
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _known(connection: sqlite3.Connection) -> _Known:
    offsets = dict(connection.execute('SELECT path, "offset" FROM journal').fetchall())
    generation = int(schema.get_meta(connection, "generation") or sum(offsets.values()))
    return _Known(schema.version(connection), generation, offsets, schema.unknown_kinds(connection))


def _published(ledger: Path) -> _Known:
    """What the ledger that stands there knows; nothing if there is none, or a damaged one of ours.

    Raises:
        LedgerError: if a newer clusterduck, or something else altogether, wrote it.
    """
    for is_last in (False, False, True):
        try:
            with ledger.open("rb") as file:
                head = file.read(100)
        except FileNotFoundError:
            return _Known()
        except OSError as error:
            raise LedgerError(f"The ledger {ledger} cannot be read: {error.strerror}.") from error
        if not _is_ours(head) and head and ledger.parent.name != HIDDEN:
            raise LedgerError(f"{ledger} is not a clusterduck ledger, and was left alone. Name another file.")
        try:
            connection = sqlite3.connect(f"{ledger.as_uri()}?mode=ro&immutable=1", uri=True)
            try:
                found = schema.version(connection) if head else 0
                schema.require_readable(found, ledger)
                return _known(connection) if found else _Known()
            finally:
                connection.close()
        except sqlite3.OperationalError:  # NFS: replaced while we read
            if is_last:
                return _Known()
        except sqlite3.DatabaseError:
            return _Known()
    return _Known()


def _is_ours(head: bytes) -> bool:
    return head[:16] == b"SQLite format 3\0" and head[68:72] == struct.pack(">I", schema.APPLICATION_ID)


def _snapshot(replica: Replica, path: Path, known: _Known) -> _Known:
    """Write the replica as it stands into an ordinary file of this host's, without a log beside it."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    copy = sqlite3.connect(path, isolation_level=None)
    try:
        replica.connection.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.execute("PRAGMA synchronous = OFF")  # it is fsynced where it counts
        schema.make_indexes(copy)  # a replica that is being filled has not got all
        mine = _known(copy)
        # Deleted journals make the sum smaller; the number that people see goes up all the same.
        generation = max(sum(mine.offsets.values()), known.generation + 1)
        schema.set_meta(copy, "generation", generation)
        schema.set_meta(copy, "published_at", times.to_text(time.time()))
        schema.set_meta(copy, "published_by", f"{socket.gethostname()}:{os.getpid()}")
        return _Known(mine.schema_version, generation, mine.offsets, mine.unknown)
    finally:
        copy.close()


def _copy(source: Path, target: Path) -> None:
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file, source.open("rb") as snapshot:
        shutil.copyfileobj(snapshot, file, 1024 * 1024)
        file.flush()
        os.fsync(file.fileno())


def _remove_leavings(ledger: Path) -> None:
    """Remove what publishers that died left beside the ledger."""
    lock = lock_path(ledger)
    now = lock.stat().st_mtime
    with os.scandir(ledger.parent) as entries:
        for entry in entries:
            if entry.name.startswith(f".{ledger.name}.") and entry.name != lock.name:
                with contextlib.suppress(FileNotFoundError):  # a living one's, who waits for the lock
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(info.st_mode) and now - info.st_mtime > LEAVINGS_S:
                        os.unlink(entry.path)


def mind_signals() -> None:
    """Be a process of its own: what Slurm sends to every process of a job is not meant for it, and when it is told to
    end, it lets go of the lock first."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def main(arguments: Sequence[str] | None = None) -> int:
    """Fold and publish from a shell."""
    parser = argparse.ArgumentParser(
        prog="python -m clusterduck.ledger.publish", description="Fold what is new, and publish the ledger."
    )
    parser.add_argument("ledger", type=Path)
    parser.add_argument(
        "--if-older-than", type=float, default=0.0, metavar="SECONDS", help="do nothing if somebody just did"
    )
    options = parser.parse_args(arguments)
    try:
        if is_older_than(options.ledger, options.if_older_than):
            with Replica.open(options.ledger) as replica:
                for problem in replica.catch_up().problems:
                    sys.stderr.write(f"{problem}\n")
                publish(replica, options.ledger, options.if_older_than)
    except ClusterduckError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    mind_signals()
    sys.exit(main())
