"""Removing old sweeps: from the ledger, and only if told so from the disk.

A sweep's file beside the ledger is renamed, not just removed, so that the replicas of all hosts forget the sweep
instead of publishing it again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clusterduck.errors import ConfigError, UnsafePathError
from clusterduck.launch import owner
from clusterduck.ledger import queries, times
from clusterduck.ledger.queries import Sweep
from clusterduck.ledger.replica import Replica
from clusterduck.model import State
from clusterduck.paths import HIDDEN, LedgerPaths, require_own
from clusterduck.slurm.jobs import JobStatus
from clusterduck.standing import is_being_submitted, started_again

#: A job that ended less than so many days ago may be started again by Slurm.
_RESTARTABLE_DAYS = 14

#: A pruned sweep's file is removed after so many days: replicas in temporary folders do not live so long.
_REMEMBERED_DAYS = 180

_LIVE = (State.PENDING.value, State.RUNNING.value)
_DAY_S = 86400.0


@dataclass(frozen=True)
class Wish:
    """Which sweeps, and how much of them.

    Attributes:
        sweeps: these only; None: any.
        older_than_s: of which nothing was heard for so many seconds.
        keep: how many of the newest are not touched.
        delete_folders: whether what we wrote about them goes, too,
        delete_runs: and whether their runs' folders do.
    """

    sweeps: Sequence[str] | None = None
    older_than_s: float | None = None
    keep: int | None = None
    delete_folders: bool = False
    delete_runs: bool = False


@dataclass(frozen=True)
class PrunePlan:
    """What would be done.

    Attributes:
        wish: what was asked for.
        sweeps: those that will be removed.
        kept: sweeps that were meant but stay -> why.
    """

    wish: Wish
    sweeps: list[Sweep]
    kept: dict[str, str]

    def describe(self) -> str:
        """The plan in one sentence without its full stop."""
        if not self.sweeps:
            return "No sweep is to be removed"
        runs = sum(sweep.runs for sweep in self.sweeps)
        what = f"Remove {_count(len(self.sweeps), 'sweep')} with {_count(runs, 'run')} from the ledger"
        also = ["what clusterduck wrote about them, results included"] if self.wish.delete_folders else []
        also += ["their runs' folders with all outputs"] if self.wish.delete_runs else []
        return what + (f", and delete {' and '.join(also)}" if also else "; their folders stay")


@dataclass
class PruneReport:
    """What was done: the sweeps removed, the folders deleted, and what went wrong (in sentences)."""

    sweeps: list[str] = field(default_factory=list)
    deleted: list[Path] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)


def plan(connection: sqlite3.Connection, wish: Wish, jobs: Mapping[tuple[str, str], JobStatus]) -> PrunePlan:
    """Find the sweeps to remove; those that live, or may, are kept.

    Args:
        connection: the ledger, caught up.
        wish: which are meant.
        jobs: what is known of the jobs of batches that the ledger takes for alive.

    Raises:
        ConfigError: if the wish does not say which.
    """
    if wish.sweeps is None and wish.older_than_s is None and wish.keep is None:
        raise ConfigError("Say which sweeps: by name, with --older-than DAYS, or with --keep N.")
    newest_first = queries.sweeps(connection)
    newest = {sweep.id for sweep in newest_first[: wish.keep or 0]}
    heard = dict(connection.execute("SELECT sweep, last_event_at FROM visit").fetchall())
    meant, kept = [], {}
    for sweep in newest_first:
        if wish.sweeps is not None and sweep.id not in wish.sweeps:
            continue
        age = _age(heard.get(sweep.id) or sweep.created_at)
        named = wish.sweeps is not None
        if sweep.id in newest:
            if named:
                kept[sweep.id] = f"it is one of the {wish.keep} newest"
        elif wish.older_than_s is not None and age < wish.older_than_s:
            if named:
                kept[sweep.id] = f"it was heard of {age / _DAY_S:.1f} days ago"
        else:
            meant.append(sweep)
    alive = _alive(connection, meant, jobs)
    kept |= alive
    return PrunePlan(wish, [sweep for sweep in meant if sweep.id not in alive], kept)


def carry_out(replica: Replica, doomed: PrunePlan, say: Callable[[str], None] = lambda _: None) -> PruneReport:
    """Remove the sweeps. What cannot be deleted is said, and its sweep stays in the ledger.

    Args:
        replica: the ledger, whose published file is the caller's to replace afterwards.
        doomed: the plan.
        say: called with a sentence for each sweep whose folders are being deleted.
    """
    paths = LedgerPaths(replica.ledger)
    report = PruneReport()
    for sweep in doomed.sweeps:
        try:
            if doomed.wish.delete_runs:
                say(f"deleting the runs of {sweep.id}")
                report.deleted += _delete_runs(replica.connection, sweep, report.trouble)
            if doomed.wish.delete_folders:
                report.deleted += _delete_root(paths.sweep_root(sweep.id) or Path(sweep.root), sweep)
            _forget(paths, sweep.id)
        except (OSError, UnsafePathError) as error:
            report.trouble.append(f"{sweep.id} stays in the ledger: {error}")
        else:
            report.sweeps.append(sweep.id)
    _forget_old(paths)
    replica.catch_up()
    return report


def _forget(paths: LedgerPaths, sweep: str) -> None:
    try:
        os.rename(paths.sweeps / sweep, paths.pruned(sweep))
    except FileNotFoundError:  # its file was lost, or another prune was faster
        os.close(os.open(paths.pruned(sweep), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    os.utime(paths.pruned(sweep))


def _forget_old(paths: LedgerPaths) -> None:
    for sweep in paths.listed()[1]:
        try:
            if time.time() - os.lstat(paths.pruned(sweep)).st_mtime > _REMEMBERED_DAYS * _DAY_S:
                paths.pruned(sweep).unlink()
        except FileNotFoundError:
            continue


# --- which live


def _alive(
    connection: sqlite3.Connection, sweeps: Iterable[Sweep], jobs: Mapping[tuple[str, str], JobStatus]
) -> dict[str, str]:
    """The sweeps that are not over, or of which nobody can tell -> why."""
    found: dict[str, str] = {}
    restartable = []
    for sweep in sweeps:
        batches = queries.batches(connection, sweep.id)
        why = None
        for batch in batches:
            if batch.state in _LIVE:
                job = jobs.get((sweep.id, batch.id))
                if batch.job_id is None and not is_being_submitted(connection, batch):
                    continue
                if job is None or not job.is_over:
                    why = f"its job {batch.job_id or batch.id} is {batch.state}, as far as is known"
            elif batch.ended_at is None or _age(batch.ended_at) < _RESTARTABLE_DAYS * _DAY_S:
                restartable.append(batch)
        why = why or _why_launching(connection, sweep)
        if why is not None:
            found[sweep.id] = why
    restartable = [batch for batch in restartable if batch.sweep not in found]
    for sweep_id in {batch.sweep for batch in restartable}:
        if started_again([batch for batch in restartable if batch.sweep == sweep_id]):
            found[sweep_id] = "Slurm may start a job of it again, or cannot be asked"
    return found


def _why_launching(connection: sqlite3.Connection, sweep: Sweep) -> str | None:
    """Whether its launcher is still at work: one that waits for results may launch more at any time."""
    holder = owner.current(Path(sweep.folder))
    if holder is not None and holder.sweep == sweep.id:
        from clusterduck import identity
        from clusterduck.launch.processes import is_running

        if holder.host == identity.host():
            if holder.pid != os.getpid() and is_running(holder.pid, holder.began):
                return f"its launcher, process {holder.pid}, is running"
            return None
    row = connection.execute(
        "SELECT max(started_at), max(ended_at), count(*) - count(ended_at) FROM launch WHERE sweep = ?", (sweep.id,)
    ).fetchone()
    if row[2] and row[0] is not None and _age(row[0]) < owner.COMPOSING_S:
        return "it is being launched"
    return None


def _age(at: str | None) -> float:
    return float("inf") if at is None else time.time() - times.to_seconds(at)


# --- deleting


def _delete_root(root: Path, sweep: Sweep) -> list[Path]:
    """Delete what we wrote about a sweep, and its marks in the folder that others may share.

    Raises:
        OSError: if something of it cannot be deleted.
        UnsafePathError: if it is not ours alone.
    """
    try:
        require_own(root)
    except FileNotFoundError:
        return []
    if root.parent.name != HIDDEN or root.name != sweep.id:
        raise UnsafePathError(f"{root} is not named like a sweep's folder, so it is not deleted.")
    shutil.rmtree(root)
    with os.scandir(root.parent) as entries:
        for entry in list(entries):
            is_mark = entry.name.startswith("owner.") and entry.is_symlink()
            if is_mark and os.readlink(entry.path).partition("/")[0] == sweep.id:
                os.unlink(entry.path)
    _remove_if_empty(root.parent)
    return [root]


def _delete_runs(connection: sqlite3.Connection, sweep: Sweep, trouble: list[str]) -> list[Path]:
    """Delete the folders of a sweep's runs and jobs that lie within its own folder and that no other sweep's run uses.

    Raises:
        OSError: if something of it cannot be deleted.
    """
    home = Path(os.path.abspath(sweep.folder))
    protected = _used_by_others(connection, sweep, home)
    asked = "SELECT DISTINCT folder, number FROM attempt WHERE sweep = ? AND folder IS NOT NULL"
    folders: dict[Path, None] = {}
    for text, number in connection.execute(asked, (sweep.id,)).fetchall():
        folder = Path(os.path.abspath(queries.path(text) or ""))
        folders[folder] = None
        folders |= {folder.with_name(f"{folder.name}.attempt-{n}"): None for n in range(1, number)}
    for (text,) in connection.execute("SELECT log_folder FROM batch WHERE sweep = ?", (sweep.id,)).fetchall():
        if text:
            folders[Path(os.path.abspath(queries.path(text) or ""))] = None
    deleted = []
    left = 0
    for folder in folders:
        if folder in protected or home not in folder.parents or not _is_own_folder(folder, home):
            left += folder.exists()
            continue
        shutil.rmtree(folder)
        deleted.append(folder)
        parent = folder.parent
        while parent != home and home in parent.parents and _remove_if_empty(parent):
            parent = parent.parent
    if left:
        trouble.append(
            f"{_count(left, 'folder')} of {sweep.id} stay: they lie outside {home}, are shared with another sweep, or "
            "are not yours alone."
        )
    _remove_if_empty(home, but_for="multirun.yaml")
    return deleted


def _used_by_others(connection: sqlite3.Connection, sweep: Sweep, home: Path) -> set[Path]:
    """The folders within ``home`` that are another sweep's or its runs', and all folders above these."""
    asked = (
        "SELECT folder FROM attempt WHERE sweep <> ? AND folder IS NOT NULL "
        "UNION SELECT folder FROM sweep WHERE id <> ? AND folder IS NOT NULL"
    )
    found: set[Path] = set()
    for (text,) in connection.execute(asked, (sweep.id, sweep.id)).fetchall():
        folder = Path(queries.path(text) or "")
        if home in folder.parents and folder not in found:
            found |= {folder, *folder.parents}
    return found


def _is_own_folder(folder: Path, home: Path) -> bool:
    """Whether it is a folder of the user's, reached from the sweep's without any link."""
    if HIDDEN in folder.relative_to(home).parts:
        return False
    for part in (folder, *folder.parents):
        if part == home:
            return True
        try:
            info = os.lstat(part)
        except OSError:
            return False
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            return False
    return False


def _remove_if_empty(folder: Path, but_for: str | None = None) -> bool:
    """Remove a folder with nothing in it, but for what Hydra itself leaves there."""
    try:
        if but_for is not None and os.listdir(folder) == [but_for]:
            (folder / but_for).unlink()
        folder.rmdir()
    except OSError:
        return False
    return True


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"
