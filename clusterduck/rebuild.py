"""Folding everything anew from the sweeps' folders, for when a ledger is wrong, lost, or was never here.

The new replica is made beside the old one and takes its place whole; running sweeps go on, since their journals are
only read. A sweep whose folder is gone is taken over as the old ledger has it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from clusterduck.errors import ClusterduckError, LedgerError, NotFoundError, UnsafePathError
from clusterduck.launch import register
from clusterduck.ledger import condition, queries, schema
from clusterduck.ledger.condition import Condition
from clusterduck.ledger.fold import BAD_LINE_WAIT_S
from clusterduck.ledger.forget import take_over
from clusterduck.ledger.publish import publish
from clusterduck.ledger.replica import NAME, FoldReport, Replica
from clusterduck.paths import HIDDEN, LedgerPaths, SweepPaths, require_own

#: How often the new ledger is folded on and published again, if somebody else has published what is newer meanwhile.
_TRIES = 4

#: What every sweep's root has.
_PARTS = ("launches", "batches", "acts", "claims", "queue")


@dataclass(frozen=True)
class Rebuilt:
    """What became of it.

    Attributes:
        events: how many were folded,
        journals: out of so many journals,
        seconds: in so much time.
        entered: sweeps that this ledger did not know where to find, and their roots.
        kept: sweeps whose folders are gone, as the old ledger has them.
        mended: what was wrong with the files that were replaced, in sentences.
        trouble: what could not be read, in sentences.
        published: whether the published ledger was replaced.
    """

    events: int
    journals: int
    seconds: float
    entered: dict[str, Path]
    kept: tuple[str, ...]
    mended: tuple[str, ...]
    trouble: tuple[str, ...]
    published: bool


def rebuild(ledger: Path, folders: Sequence[Path] = (), say: Callable[[str], None] = lambda _: None) -> Rebuilt:
    """Fold all sweeps of the ledger anew, and those found below ``folders``, and publish the result.

    Args:
        ledger: the ledger's path; what stands there may be damaged, something else, or absent.
        folders: sweep folders, or folders that hold some, to be entered if the ledger does not know them.
        say: called with a sentence where something takes long, or a folder was passed over.

    Raises:
        NotFoundError: if there is no sweep in one of the folders, or none was ever entered beside the ledger.
        LedgerError: if a newer clusterduck made the ledger, or it cannot be written.
    """
    began = time.monotonic()
    ledger = Path(os.path.abspath(ledger))
    paths = LedgerPaths(ledger)
    found = [root for folder in folders for root in require_sweeps_below(folder, say)]
    mended = _look_at_old(ledger)
    if not found and not any(path.exists() for path in (paths.sweeps, paths.mark)):
        raise NotFoundError(
            f"No sweeps are recorded beside {ledger}: {paths.sweeps} is not there. Name the folders that sweeps were "
            "launched in: clusterduck rebuild FOLDER."
        )
    paths.create()
    trouble: list[str] = []
    entered: dict[str, Path] = {}
    for root in found:
        _enter(ledger, root, entered, trouble)
    replica = Replica.anew(ledger, tell=say)
    try:
        with closing(_Old(replica, say)) as old:
            for root in old.lost_roots(paths):
                _enter(ledger, root, entered, trouble)
            report = _fold(replica, say)
            kept = old.keep(replica, paths)
        if old.damage is not None:
            mended.append(old.damage)
        replica.take_its_place()
        published = publish(replica, ledger, anew=True)
        for _ in range(_TRIES):
            if published:
                break
            replica.catch_up(look_at=paths.sweep_ids())
            published = publish(replica, ledger, anew=True)
    finally:
        replica.discard()
    return Rebuilt(
        events=report.events,
        journals=report.journals,
        seconds=time.monotonic() - began,
        entered=entered,
        kept=tuple(kept),
        mended=tuple(mended),
        trouble=(*trouble, *report.problems),
        published=published,
    )


def require_sweeps_below(folder: Path, say: Callable[[str], None] = lambda _: None) -> list[Path]:
    """The roots of all sweeps in or below a folder.

    Args:
        folder: the folder.
        say: called with a sentence if folders in it cannot be read.

    Raises:
        NotFoundError: if there is none, or no such folder.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder}.")
    closed: list[OSError] = []
    found = sorted(sweeps_below(folder, closed))
    told = (
        f"{len(closed)} folder{'s' if len(closed) != 1 else ''} in {folder} could not be read, such as "
        f"{closed[0].filename} ({closed[0].strerror}): sweeps in there were not found."
        if closed
        else ""
    )
    if not found:
        raise NotFoundError(
            told or f"No sweep was launched in {folder} or below it: no folder there holds {HIDDEN}/<sweep>."
        )
    if told:
        say(told)
    return found


def sweeps_below(folder: Path, closed: list[OSError]) -> Iterator[Path]:
    """The roots of all sweeps in or below a folder, which may be a root itself. Symbolic links are not followed.

    Args:
        folder: the folder.
        closed: gets the error of each folder that cannot be read.
    """
    try:
        if is_root(folder):
            yield folder
            return
        if folder.parent.name == HIDDEN:
            return
        with os.scandir(folder) as entries:
            inside = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return  # just removed
    except OSError as error:
        closed.append(error)
        return
    for path in inside:
        if HIDDEN in (folder.name, path.name) or not path.name.startswith("."):
            yield from sweeps_below(path, closed)


def is_root(folder: Path) -> bool:
    """Whether this is a sweep's root, by the folders that each has."""
    return folder.parent.name == HIDDEN and all((folder / part).is_dir() for part in _PARTS)


def _enter(ledger: Path, root: Path, entered: dict[str, Path], trouble: list[str]) -> None:
    """Have the ledger know where the sweep is, unless it does."""
    paths = LedgerPaths(ledger)
    sweep = root.name
    known = paths.sweep_root(sweep)
    if known == root:
        return
    try:
        require_own(root)
        if known is None and not (paths.sweeps / sweep).exists():
            register.enter(ledger, SweepPaths(root))
        elif known is not None and known.is_dir():
            trouble.append(f"{root} was left out: the sweep {sweep} is known to lie in {known}, which is there too.")
            return
        else:
            register.write_whole(paths.sweeps / sweep, os.fsencode(root) + b"\n")
        paths.pruned(sweep).unlink(missing_ok=True)
    except (OSError, ClusterduckError) as error:
        trouble.append(f"{root} was left out: {error}")
    else:
        entered[sweep] = root


def _look_at_old(ledger: Path) -> list[str]:
    """What is wrong with the published ledger.

    Raises:
        LedgerError: if it must not be replaced.
    """
    try:
        found = condition.look(ledger, thoroughly=True)
    except OSError as error:
        raise LedgerError(f"The ledger {ledger} cannot be read: {error.strerror}.") from error
    if found is Condition.NEWER:
        raise LedgerError(f"The ledger {ledger} {found.value}: upgrade clusterduck here. Nothing was changed.")
    if found is Condition.FOREIGN:
        if ledger.parent.name != HIDDEN:
            raise LedgerError(f"{ledger} is not a clusterduck ledger, and was left alone. Name another file.")
        aside = ledger.with_name(f"{ledger.name}.foreign-{time.strftime('%Y%m%d-%H%M%S')}")
        os.rename(ledger, aside)
        return [f"{ledger} was not a clusterduck ledger; what it was lies in {aside} now."]
    if found in (Condition.EMPTY, Condition.DAMAGED, Condition.ABSENT):
        return [f"The ledger {ledger} {found.value.replace('is', 'was', 1)}."]
    return []


def _fold(replica: Replica, say: Callable[[str], None]) -> FoldReport:
    """Fold all there is. A bad line that good ones follow may be on its way from another host: then wait for it."""
    report = replica.catch_up()
    waiting = "SELECT count(*) FROM journal WHERE bad_at IS NOT NULL"
    count = replica.connection.execute(waiting).fetchone()[0]
    if count:
        say(f"{count} journals have a line that cannot be read; it gets {BAD_LINE_WAIT_S:.0f} s to become whole")
        time.sleep(BAD_LINE_WAIT_S)
        again = replica.catch_up(look_at=LedgerPaths(replica.ledger).sweep_ids())
        problems = tuple(dict.fromkeys(report.problems + again.problems))
        report = FoldReport(report.events + again.events, report.journals, problems)
    return report


def _require_sound(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.Error: if the file is damaged."""
    connection.execute("SELECT id, root FROM sweep").fetchall()
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)


class _Old:
    """What was known before: this host's replica, else the published ledger, where one of them can be read.

    Attributes:
        damage: a sentence, if the replica that is there cannot be read.
    """

    def __init__(self, new: Replica, say: Callable[[str], None]) -> None:
        ledger = new.ledger
        self.damage: str | None = None
        self._mark = LedgerPaths(ledger).read_mark()
        self._say = say
        self._connection: sqlite3.Connection | None = None
        replica = LedgerPaths(ledger).replica_folder / NAME
        if replica.exists():
            try:
                with new.locked():
                    self._connection = self._opened(f"{replica.as_uri()}?mode=rw", is_ours=True)  # its log is read, too
            except sqlite3.Error:
                self.damage = f"The replica {replica} was damaged."
        if self._connection is None and ledger.exists():
            with contextlib.suppress(sqlite3.Error):  # the ledger's condition is told by itself
                self._connection = self._opened(f"{ledger.as_uri()}?mode=ro&immutable=1", is_ours=False)

    def _opened(self, uri: str, *, is_ours: bool) -> sqlite3.Connection | None:
        """None if the file is another ledger's, or another version's; an older one that ``is_ours`` alone is brought up
        to date.

        Raises:
            sqlite3.Error: if it is damaged.
        """
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10.0)
        try:
            if schema.is_of(connection, self._mark):
                if is_ours and 0 < schema.version(connection) < len(schema.STEPS):
                    schema.migrate(connection, uri, tell=self._say)
                if schema.version(connection) == len(schema.STEPS):
                    _require_sound(connection)
                    return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()

    def lost_roots(self, paths: LedgerPaths) -> list[Path]:
        """The roots that are there, of sweeps that were known although their files beside the ledger are lost."""
        if self._connection is None:
            return []
        known, pruned = paths.listed()
        rows = self._connection.execute("SELECT id, root FROM sweep").fetchall()
        roots = [
            Path(queries.path(root) or "")
            for sweep, root in rows
            if root and sweep not in known and sweep not in pruned
        ]
        return [root for root in roots if root.is_dir()]

    def keep(self, replica: Replica, paths: LedgerPaths) -> list[str]:
        """Take over the sweeps whose folders are gone."""
        if self._connection is None:
            return []
        pruned = paths.listed()[1]
        new = {row[0] for row in replica.connection.execute("SELECT id FROM sweep").fetchall()}
        kept = []
        for sweep, root in self._connection.execute("SELECT id, root FROM sweep").fetchall():
            root_now = paths.sweep_root(sweep) or Path(queries.path(root) or "")
            if sweep not in new and sweep not in pruned and not _is_there(root_now):
                take_over(replica.connection, self._connection, sweep)
                kept.append(sweep)
        return kept


def _is_there(root: Path) -> bool:
    try:
        require_own(root)
    except UnsafePathError:
        return True
    except OSError:
        return False
    return True
