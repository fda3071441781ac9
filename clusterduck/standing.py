"""How a sweep stands for somebody who is about to act on it: which of its jobs live, and which waiting runs nobody will
take.

A run that waits is attended to if a live job has it in its range or list, or a live agent has claimed it. A job that
was drained takes nothing more. All other runs will wait for ever unless they are sent again.
"""

from __future__ import annotations

import bisect
import json
import sqlite3
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from clusterduck import identity
from clusterduck.errors import ClusterduckError, NotFoundError, SlurmError
from clusterduck.launch.processes import is_running
from clusterduck.ledger import queries, schema, times
from clusterduck.ledger.queries import Batch, Pending, Run
from clusterduck.model import AgentId, Attempt, State
from clusterduck.paths import LedgerPaths, SweepPaths, require_own
from clusterduck.queue import Claims
from clusterduck.slurm.jobs import JobStatus, still_listed

#: A batch without a job is being submitted for so many seconds after it was planned, where nobody can see whether the
#: process that planned it lives.
SUBMITTING_S = 120.0

_LIVE = (State.PENDING.value, State.RUNNING.value)


@dataclass(frozen=True)
class Standing:
    """A sweep's jobs and waiting runs at one moment. Runs are told by their numbers, because very many may wait.

    Attributes:
        sweep: its id.
        paths: its folders.
        batches: its jobs.
        live: the ids of those that may still take runs.
        waiting: its PENDING runs in order, each with the live batch that will take it; None if there is none.
        later: the attempt that is to be executed next, for those of them of which that is not the first.
        holders: those of them that are claimed, each with the agent that has it; None if nobody will start it.
        claimed: the names of all attempts that are claimed.
    """

    sweep: str
    paths: SweepPaths
    batches: list[Batch]
    live: frozenset[str]
    waiting: Mapping[int, str | None] = field(default_factory=dict)
    later: Mapping[int, int] = field(default_factory=dict)
    holders: Mapping[int, AgentId | None] = field(default_factory=dict)
    claimed: frozenset[str] = frozenset()

    @property
    def unattended(self) -> list[int]:
        """The runs that wait for nobody."""
        return [run for run, batch in self.waiting.items() if batch is None]

    def attempt(self, run: int) -> Attempt:
        """The attempt of a run that waits which is to be executed next."""
        return Attempt(run, self.later.get(run, 1))


@dataclass(frozen=True)
class Neglected:
    """The runs of a sweep that wait and that no job will take.

    Attributes:
        sweep: its id.
        count: how many there are.
        waiting: all runs of the sweep that wait, and who takes them, as in :class:`Standing`.
        holders: those that are claimed, likewise.
        ends: how a batch ended, or why it takes nothing more.
    """

    sweep: str
    count: int
    waiting: Mapping[int, str | None]
    holders: Mapping[int, AgentId | None]
    ends: Mapping[str, str]

    def why(self, run: Run | Pending) -> str | None:
        """A sentence that says of one of these runs that no job will take it, and why; None for any other."""
        if self.waiting.get(run.number, "") is not None:
            return None
        holder = self.holders.get(run.number)
        end = self.ends.get((holder.batch if holder is not None else run.batch) or "")
        why = f": {end}" if end else ""
        return f"No job will take it{why}. Send it with `{remedy(self.sweep)}`."


def paths_of(connection: sqlite3.Connection, sweep: str) -> SweepPaths:
    """The folders of a sweep.

    Raises:
        NotFoundError: if they are no longer where the sweep was launched.
        UnsafePathError: if somebody else could write there.
    """
    root = queries.sweep(connection, sweep).root
    paths = SweepPaths(Path(root))
    try:
        owner = LedgerPaths(Path(queries.path(schema.get_meta(connection, "ledger")) or "")).owner
        for folder in (paths.root, paths.acts, paths.claims, paths.queue):
            require_own(folder, owner)
    except OSError as error:
        raise NotFoundError(
            f"The folder of sweep {sweep}, {paths.root}, cannot be used ({error.strerror}): it was moved or deleted. "
            f"If it was moved, `clusterduck rebuild FOLDER` with its new place finds it again."
        ) from None
    return paths


def missing(connection: sqlite3.Connection, sweeps: Iterable[str]) -> dict[str, str]:
    """Those of the sweeps whose folders were moved or deleted, each with a sentence that says so."""
    found = {}
    for sweep in sweeps:
        try:
            paths_of(connection, sweep)
        except NotFoundError as error:
            found[sweep] = str(error)
        except ClusterduckError:
            continue  # it is there, and whoever wants to use it is told what is wrong with it
    return found


def folder_of(connection: sqlite3.Connection, sweep: str, run: int) -> str | None:
    """The folder that a run's attempts share; None if none got that far. Earlier ones may have been moved aside."""
    folders = [each.folder for each in queries.attempts(connection, sweep, run) if each.folder is not None]
    return folders[-1] if folders else None


def interrupted(connection: sqlite3.Connection, sweep: str) -> set[int]:
    """The CANCELLED runs that nobody wanted to cancel: their jobs were, from outside, while they ran."""
    rows = connection.execute(
        "SELECT run.number FROM run JOIN attempt ON attempt.sweep = run.sweep AND attempt.run = run.number "
        "AND attempt.number = run.attempt WHERE run.sweep = ? AND run.state = 'CANCELLED' "
        "AND attempt.batch IS NOT NULL AND (attempt.by_job_end = 1 OR attempt.reported = 0)",
        (sweep,),
    ).fetchall()
    return {row[0] for row in rows}


def of_sweep(
    connection: sqlite3.Connection,
    sweep: str,
    jobs: Mapping[tuple[str, str], JobStatus],
    again: Collection[tuple[str, str]] | None = None,
) -> Standing:
    """Look at a sweep.

    Args:
        connection: the ledger, caught up.
        sweep: the sweep's id.
        jobs: what is known of the jobs of batches that the ledger takes for alive.
        again: those batches that are about to be started again, if Slurm was already asked.

    Raises:
        NotFoundError: if its folder is gone.
    """
    paths = paths_of(connection, sweep)
    batches = queries.batches(connection, sweep)
    live = {
        batch.id
        for batch in batches
        if batch.state in _LIVE and _may_live(connection, batch, jobs.get((sweep, batch.id)))
    }
    live |= started_again(batches) if again is None else {batch for its, batch in again if its == sweep}
    claims = Claims(paths.claims, "")
    claimed = claims.names()
    numbers, later = queries.waiting(connection, sweep)
    takers = live - drained(connection, sweep)
    waiting = _by_range(numbers, batches, takers)
    waiting.update(dict.fromkeys(later))
    lists = [(batch.id, batch.attempts) for batch in batches] + _put_back_by(connection, sweep)
    for home, attempts in lists:
        if home in takers:
            waiting.update((run, home) for run, number in attempts if run in waiting and number == later.get(run, 1))
    holders: dict[int, AgentId | None] = {}
    for attempt in _claimed(numbers, later, claimed):
        holder = holders[attempt.run] = agent_of(claims.owner(attempt))
        waiting[attempt.run] = holder.batch if holder is not None and holder.batch in live else None
    return Standing(sweep, paths, batches, frozenset(live), waiting, later, holders, claimed)


def _by_range(numbers: Sequence[int], batches: Iterable[Batch], takers: Collection[str]) -> dict[int, str | None]:
    """Runs, in their order, each with the batch whose range has it, or one that shares that, if they take runs."""
    sharing = {batch.launch: batch.id for batch in batches if batch.id in takers and batch.share_runs}
    found: list[str | None] = [None] * len(numbers)
    for batch in batches:  # ranges of runs do not overlap
        taker = batch.id if batch.id in takers else sharing.get(batch.launch)
        if taker is not None:
            first, stop = (bisect.bisect_left(numbers, end or 0) for end in (batch.first_run, batch.stop_run))
            found[first:stop] = [taker] * (stop - first)
    return dict(zip(numbers, found, strict=True))


def _claimed(numbers: Iterable[int], later: Mapping[int, int], claimed: frozenset[str]) -> list[Attempt]:
    """Which of the attempts that are to be executed next are claimed."""
    names = [f"{run}.{later.get(run, 1)}" for run in numbers] if claimed else []
    return [Attempt.parse(name) for name in claimed.intersection(names)]


def started_again(batches: Iterable[Batch]) -> set[str]:
    """Those of a sweep's batches whose agents have ended, though Slurm still has their jobs: they are about to be
    started again."""
    return {batch for _, batch in _started_again(batches)}


def _started_again(batches: Iterable[Batch]) -> set[tuple[str, str]]:
    """The same for batches of several sweeps, with one question."""
    ended = {}
    found = set()
    for batch in batches:
        if batch.job_id is None or batch.state in (*_LIVE, State.COMPLETED.value):
            continue
        if batch.cluster == "slurm":
            ended[batch.job_id] = (batch.sweep, batch.id)
        elif batch.submit_host == identity.host() and batch.job_id.isdecimal():
            submitted_at = times.to_seconds(batch.submitted_at) if batch.submitted_at else 0.0
            if is_running(int(batch.job_id), submitted_at):
                found.add((batch.sweep, batch.id))
    if not ended:
        return found
    try:
        return found | {ended[job] for job in still_listed(ended)}
    except SlurmError:
        return found | set(ended.values())  # what nobody can tell may be alive


def neglected(
    connection: sqlite3.Connection, sweeps: Iterable[str], jobs: Mapping[tuple[str, str], JobStatus]
) -> dict[str, Neglected]:
    """The runs that wait and that no job will take, of each sweep that has any.

    Only sweeps with runs that wait and jobs that are over or were drained are looked into; one whose folder is gone is
    left out.

    Args:
        connection: the ledger, caught up.
        sweeps: which sweeps.
        jobs: what is known of the jobs of batches that the ledger takes for alive.
    """
    batches: dict[str, list[Batch]] = {}
    for sweep in dict.fromkeys(sweeps):
        if queries.sweep(connection, sweep).counts[State.PENDING.value]:
            its = queries.batches(connection, sweep)
            if any(batch.state not in _LIVE for batch in its) or drained(connection, sweep):
                batches[sweep] = its
    again = _started_again(batch for its in batches.values() for batch in its)
    found = {}
    for sweep, its in batches.items():
        try:
            now = of_sweep(connection, sweep, jobs, again)
        except ClusterduckError:
            continue
        count = list(now.waiting.values()).count(None)
        if count:
            ends = dict.fromkeys(drained(connection, sweep), "its job was drained and takes nothing more")
            ends |= {batch.id: _end_of(batch) for batch in its if batch.state not in _LIVE}
            found[sweep] = Neglected(sweep, count, now.waiting, now.holders, ends)
    return found


def drained(connection: sqlite3.Connection, sweep: str) -> set[str]:
    """The batches of a sweep that somebody has asked to claim nothing more."""
    rows = connection.execute("SELECT detail FROM act WHERE sweep = ? AND kind = 'ask_drain'", (sweep,)).fetchall()
    return {str(batch) for (detail,) in rows for batch in json.loads(detail or "{}").get("batches", ())}


def remedy(sweep: str) -> str:
    """The command that sends what waits in vain."""
    return f"clusterduck requeue --unfinished --sweep {sweep}"


def _end_of(batch: Batch) -> str:
    reason = f" ({batch.reason.rstrip('.')})" if batch.reason else ""
    return f"its batch {batch.id} ended {batch.state}{reason}"


def _may_live(connection: sqlite3.Connection, batch: Batch, job: JobStatus | None) -> bool:
    if batch.job_id is not None:
        return job is None or not job.is_over
    return is_in_doubt(batch) or is_being_submitted(connection, batch)


def is_in_doubt(batch: Batch) -> bool:
    """Whether nobody knows yet if the cluster took a batch's job."""
    return batch.job_id is None and batch.state == State.PENDING.value and batch.reason is not None


def is_being_submitted(connection: sqlite3.Connection, batch: Batch) -> bool:
    """Whether a batch that has no job may still get one: the process that planned it lives, or may live."""
    if is_in_doubt(batch):
        return False
    age = time.time() - (times.to_seconds(batch.planned_at) if batch.planned_at else 0.0)
    launched = connection.execute(
        "SELECT host, pid, started_at, ended_at FROM launch WHERE sweep = ? AND number = ?", (batch.sweep, batch.launch)
    ).fetchone()
    if batch.id.startswith("r") or launched is None or launched[0] != identity.host():
        return age < SUBMITTING_S
    _, pid, started_at, ended_at = launched
    return ended_at is None and is_running(int(pid or 0), times.to_seconds(started_at) if started_at else 0.0)


def _put_back_by(connection: sqlite3.Connection, sweep: str) -> list[tuple[str, list[tuple[int, int]]]]:
    """Attempts that an agent has put into the queue, and looks for itself, each time with its batch."""
    rows = connection.execute(
        "SELECT detail FROM act WHERE sweep = ? AND kind = 'requeue' AND json_extract(detail, '$.batch') IS NOT NULL",
        (sweep,),
    ).fetchall()
    return [(told["batch"], told["attempts"]) for told in map(json.loads, chain.from_iterable(rows))]


def agent_of(owner: str | None) -> AgentId | None:
    """The agent that a claim names; None if it is nobody's who would start the attempt."""
    try:
        return AgentId.parse(owner or "")
    except ValueError:  # cancelled, or replaced by a later attempt
        return None
