"""A host's own working copy of the ledger: an SQLite file in its temporary folder, folded forward by whoever looks.

It can be rebuilt from the journals at any time. So a file that is damaged or somebody else's is thrown away and folded
anew, and one that was deleted under one's feet is opened anew.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clusterduck import events
from clusterduck.errors import LedgerError, UnsafePathError
from clusterduck.ledger import discovery, schema
from clusterduck.ledger.discovery import Visit
from clusterduck.ledger.fold import fold_journals, immediate, unread_bytes
from clusterduck.ledger.tables import storable
from clusterduck.paths import LedgerPaths, make_private_folder, require_own

NAME = "replica.db"

#: How the name of one begins that is being folded anew.
_ANEW = "anew-"

#: What is wrong with one in which an older version passed over what this one knows.
_HALF_KNOWN = "was folded by an older clusterduck, which did not know all that was reported"

#: How long a process waits for another's transaction, in seconds. Transactions take tenths of one.
BUSY_S = 30.0

#: For so many seconds a process waits without a word for another that opens the replica, which may migrate it.
PATIENCE_S = 1.0

#: With more than so many bytes of journals to fold for each run on record, and in all, the indexes that only readers
#: ask for are made anew afterwards: to keep them meanwhile takes longer. A run's events take some 800.
UNREAD_BYTES_A_RUN, MUCH_UNREAD_BYTES = 500, 8 * 1024 * 1024

#: So many journals tell how much there is to fold.
ASKED_FOR_THEIR_SIZE = 20

#: A replica up to this size, in bytes, is checked whole when it is opened (a few milliseconds per megabyte).
CHECKED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class FoldReport:
    """What catching up brought.

    Attributes:
        events: how many events were folded by this process.
        journals: how many journals were opened.
        problems: sentences on journals that were left alone.
        more: whether time ran out before everything was folded.
        seconds: how long it took.
    """

    events: int = 0
    journals: int = 0
    problems: tuple[str, ...] = ()
    more: bool = False
    seconds: float = 0.0


class _OutlivedError(sqlite3.DatabaseError):
    """The replica is that of a ledger which was deleted; another one has its place now."""


class Replica:
    """The open replica of one ledger.

    Attributes:
        ledger: the ledger's path.
        path: the replica's own file.
        connection: in autocommit; may be replaced by :meth:`catch_up`, so ask for it each time.
        mended: what was wrong with the file that was thrown away, in a sentence; None if it was sound.
    """

    def __init__(
        self,
        ledger: Path,
        clock: Callable[[], float],
        name: str = NAME,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.ledger = Path(os.path.abspath(ledger))
        self.path = LedgerPaths(self.ledger).replica_folder / name
        self.mended: str | None = None
        self._clock = clock
        self._tell = tell
        self.connection = self._open()

    @classmethod
    def open(
        cls, ledger: Path, clock: Callable[[], float] = time.time, *, tell: Callable[[str], object] = lambda _: None
    ) -> Replica:
        """Open the replica of ``ledger`` on this host, made and filled with its tables if need be.

        Args:
            ledger: the ledger's path.
            clock: seconds since the epoch.
            tell: is told what takes long, if it does; perhaps by a thread of its own.

        Raises:
            LedgerError: if it cannot be used, or a newer clusterduck made it.
            UnsafePathError: if somebody else owns, or could write, its folder.
        """
        return cls(ledger, clock, tell=tell)

    @classmethod
    def anew(
        cls, ledger: Path, clock: Callable[[], float] = time.time, *, tell: Callable[[str], object] = lambda _: None
    ) -> Replica:
        """An empty file beside the replica, to be filled by this process alone and then to :meth:`take_its_place`.

        Until then it has no log.

        Args:
            ledger: the ledger's path.
            clock: seconds since the epoch.
            tell: is told what takes long, if it does.

        Raises:
            LedgerError: if it cannot be made.
            UnsafePathError: if somebody else owns, or could write, its folder.
        """
        _remove_leavings(LedgerPaths(Path(os.path.abspath(ledger))).replica_folder)
        return cls(ledger, clock, f"{_ANEW}{os.getpid()}-{secrets.token_hex(4)}.db", tell)

    def take_its_place(self) -> None:
        """Become this host's replica. Who has the old one open reads on in it, and opens this one when catching up.

        Raises:
            LedgerError: if the file cannot be put there.
        """
        target = self.path.with_name(NAME)
        try:
            self._make_indexes()
            self.connection.close()
            sync(self.path)
            with self.locked():
                _discard(target)
                os.rename(self.path, target)
                self.path = target
                self.connection = self._connect()
        except (OSError, sqlite3.Error) as error:
            raise _unusable(self.path, error) from error

    def discard(self) -> None:
        """Close the file and remove it, if it has not taken the replica's place."""
        self.close()
        if self._is_private:
            _discard(self.path)

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def catch_up(self, budget_s: float | None = None, look_at: Collection[str] = ()) -> FoldReport:
        """Fold what the journals of all sweeps say and the replica does not know yet. Safe in many processes at once.

        Args:
            budget_s: stop after about so many seconds, and say so by ``more``.
            look_at: sweeps to look at in any case; others are looked at more rarely the longer they have been quiet.

        Raises:
            LedgerError: if the replica cannot be used.
        """
        if self._is_replaced():
            self._reopen()
        try:
            if self._is_half_known(self.connection):  # by an older version that has it open, too
                self.recover(_HALF_KNOWN)
            return self._catch_up(budget_s, look_at)
        except sqlite3.Error as error:
            if not self._is_replaced() and not _is_damage(error):
                raise _unusable(self.path, error) from error
            self.recover()
        try:
            return self._catch_up(budget_s, look_at)
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error

    def recover(self, trouble: str = "was damaged") -> None:
        """Open the file anew; if it is damaged, begin a new one. For callers who met an ``sqlite3.DatabaseError``."""
        damaged = not self._is_replaced()
        self.connection.close()
        if damaged:
            self.mended = f"the replica {self.path} {trouble}"
            with self.locked():
                _discard(self.path)
        self.connection = self._open()

    # --- opening

    def _open(self) -> sqlite3.Connection:
        self._round: deque[tuple[Visit, list[Path] | None]] = deque()  # what the last look had no time for
        folder = self.path.parent
        try:
            make_private_folder(folder.parent)
            make_private_folder(folder)
            with self.locked():
                try:
                    return self._connect()
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    if not isinstance(error, _OutlivedError):
                        self.mended = f"the replica {self.path} was not sound ({error})"
                _discard(self.path)
                return self._connect()
        except (OSError, sqlite3.Error) as error:
            raise _unusable(self.path, error) from error

    def _connect(self) -> sqlite3.Connection:
        """Open the file, or make it; the caller holds the lock.

        Raises:
            sqlite3.DatabaseError: if it is damaged, another ledger's, or something else altogether.
            LedgerError: if a newer clusterduck made it.
        """
        if not self.path.exists() or os.lstat(self.path).st_size == 0:
            _discard(self.path)  # what an emptied file's log holds belongs to no file any more
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        require_own(self.path)
        info = os.lstat(self.path)
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            connection.execute("PRAGMA cache_size = -16384")  # KiB: indexes of a large sweep are met at random
            if self._is_private:  # who dies leaves what nobody will open; it is synced before it takes its place
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                connection.execute("PRAGMA journal_mode = MEMORY")
                connection.execute("PRAGMA synchronous = OFF")
            else:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages: each is copied less often in bulk
            later = schema.READERS_INDEXES | (schema.SELDOM_NEEDED if self._is_private else frozenset())
            schema.migrate(connection, self.path, later=later, tell=self._tell)
            self._check(connection, info.st_size)
        except BaseException:
            connection.close()
            raise
        self._identity = (info.st_dev, info.st_ino)
        return connection

    def _check(self, connection: sqlite3.Connection, size: int) -> None:
        owner = schema.get_meta(connection, "ledger")
        name = storable(str(self.ledger))
        if owner is None:
            schema.set_meta(connection, "ledger", name)
        elif owner != name:
            raise sqlite3.DatabaseError("the replica is another ledger's")
        mark = LedgerPaths(self.ledger).read_mark()
        if not schema.is_of(connection, mark):
            raise _OutlivedError("it is that of an earlier ledger here, which was deleted")
        if mark is not None and schema.get_meta(connection, "mark") is None:
            schema.set_meta(connection, "mark", mark)
        if self._is_half_known(connection):
            raise sqlite3.DatabaseError(f"it {_HALF_KNOWN}")
        if size <= CHECKED_BYTES:
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if answer != "ok":
                raise sqlite3.DatabaseError(str(answer))

    @staticmethod
    def _is_half_known(connection: sqlite3.Connection) -> bool:
        """Whether an older clusterduck folded it, and passed over events that this one knows."""
        return any(events.knows(kind) for kind in schema.unknown_kinds(connection))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time opens, migrates or discards the replica: its folder is this host's, so locks work."""
        fd = os.open(self.path.parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._wait_for(fd)
            yield
        finally:
            os.close(fd)

    def _wait_for(self, fd: int) -> None:
        """Wait for the lock that somebody else holds, and tell so if that takes long: then they migrate the replica."""
        word = "waiting until another process has brought this host's copy of the ledger up to date"
        impatience = threading.Timer(PATIENCE_S, self._tell, [word])
        impatience.daemon = True
        impatience.start()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        finally:
            impatience.cancel()
            impatience.join()  # so that nothing is told once the wait is over

    @property
    def _is_private(self) -> bool:
        """Whether it is being folded anew, beside the one that everybody opens."""
        return self.path.name != NAME

    def _is_replaced(self) -> bool:
        try:
            info = os.lstat(self.path)
        except FileNotFoundError:
            return True
        return (info.st_dev, info.st_ino) != self._identity

    def _reopen(self) -> None:
        self.connection.close()
        self.connection = self._open()

    # --- catching up

    def _catch_up(self, budget_s: float | None, look_at: Collection[str]) -> FoldReport:
        start = time.monotonic()

        def is_time_up() -> bool:
            return budget_s is not None and time.monotonic() - start >= budget_s

        folded_events = journals = 0
        closed: list[str] = []
        problems: list[str] = []
        try:
            owner = LedgerPaths(self.ledger).owner
            if budget_s is None or not self._round:
                visits = discovery.due(self.connection, self.ledger, self._clock(), look_at)
                self._round = deque((visit, None) for visit in visits)
        except OSError as error:
            return FoldReport(problems=(f"The project's sweeps cannot be listed: {error}",))
        while self._round and not (journals and is_time_up()):
            visit, paths = self._round.popleft()
            try:
                if paths is None:
                    paths = discovery.open_journals(self.connection, visit, owner)
            except FileNotFoundError:
                continue  # the sweep's folder was deleted; what the ledger knows of it stays
            except (OSError, UnsafePathError) as error:
                (closed if isinstance(error, PermissionError) else problems).append(str(error))
                continue
            if budget_s is None:  # who looks a little at a time reads in between
                self._drop_indexes(visit, paths)
            folded = fold_journals(
                self.connection,
                visit.sweep,
                visit.root,
                paths,
                clock=self._clock,
                is_time_up=is_time_up,
                is_private=self._is_private,
            )
            folded_events += folded.events
            journals += folded.journals
            problems += folded.problems
            if folded.left:  # the next look begins there, so that the last journals have their turn, too
                self._round.appendleft((visit, folded.left))
                break
            if visit.is_whole:
                discovery.note(self.connection, visit, self._clock())
        more = bool(self._round)
        if not more:
            self._make_indexes()
        problems += self._on_what_is_missing(closed)
        return FoldReport(folded_events, journals, tuple(problems), more, time.monotonic() - start)

    def _drop_indexes(self, visit: Visit, paths: Sequence[Path]) -> None:
        """Do without the readers' indexes while very much is folded, if the journals hold so much."""
        asked = paths[:: len(paths) // ASKED_FOR_THEIR_SIZE + 1]
        unread = sum(unread_bytes(self.connection, visit.sweep, visit.root, path) for path in asked)
        runs = self.connection.execute("SELECT coalesce(sum(runs), 0) FROM sweep").fetchone()[0]
        if unread * len(paths) > len(asked) * max(UNREAD_BYTES_A_RUN * runs, MUCH_UNREAD_BYTES):
            for name in schema.READERS_INDEXES.difference(schema.missing_indexes(self.connection)):
                with immediate(self.connection):
                    schema.drop_index(self.connection, name)

    def _make_indexes(self) -> None:
        """Make what a replica is filled without, one by one, so that no other process waits for long."""
        for name in schema.missing_indexes(self.connection):
            with immediate(self.connection):
                schema.make_index(self.connection, name)

    def _on_what_is_missing(self, closed: list[str]) -> list[str]:
        """Sentences on what could not be folded: sweeps that may not be read, and events of a newer version."""
        if closed and not LedgerPaths(self.ledger).is_own:
            closed = [
                f"{len(closed)} of the sweeps of this ledger {'is' if len(closed) == 1 else 'are'} not open to you"
            ]
        unknown = ", ".join(sorted(schema.unknown_kinds(self.connection)))
        if not unknown:
            return closed
        return [
            *closed,
            f"A newer clusterduck has reported what this one does not know ({unknown}) and does not show: upgrade "
            f"clusterduck here.",
        ]


def _remove_leavings(folder: Path) -> None:
    """Remove what processes that died, all of this host, have begun to fold anew."""
    for path in folder.glob(f"{_ANEW}*.db"):
        pid = path.name[len(_ANEW) :].partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            _discard(path)


def sync(path: Path) -> None:
    """Have what stands in a file, or which files stand in a folder, survive a host that stops."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _discard(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _is_damage(error: Exception) -> bool:
    """Whether an error says that the file is not a sound replica (and not that it is busy, or the disk full)."""
    if isinstance(error, sqlite3.OperationalError):
        return str(error).startswith(("no such ", "table ", "disk I/O error"))
    return type(error) in (sqlite3.DatabaseError, _OutlivedError)


def _unusable(path: Path, error: Exception) -> LedgerError:
    return LedgerError(
        f"The replica {path} cannot be used: {error}. It is only a working copy: delete it, or let TMPDIR "
        f"name a folder on a local disk with room."
    )
