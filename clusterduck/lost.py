"""Put back what was lost with its node or agent, as often as ``max_retries`` says, and submit jobs for it.

An agent does that itself for runs that end while it lives, and a job that Slurm starts again for what its earlier
agents had. Here it is done for jobs that are over, by whoever looks: what no agent reported, and what had to end with
its job, preempted or short of time. What was lost twice gets jobs of its own, each with as much as may be executed at
once; a run that was lost again and again, at last alone, is left FAILED (:mod:`clusterduck.losses`).
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterduck import identity, losses, standing
from clusterduck.errors import ClusterduckError, NotFoundError
from clusterduck.events import AttemptEnded, AttemptsCancelled, AttemptsRequeued
from clusterduck.launch import earlier
from clusterduck.launch.again import Again, launched
from clusterduck.ledger import queries, times
from clusterduck.model import AgentId, Attempt, State
from clusterduck.paths import SweepPaths
from clusterduck.queue import Claims, Queue, Requeued, following
from clusterduck.slurm.jobs import JobStatus

if TYPE_CHECKING:
    from clusterduck.ledger.replica import Replica

#: What was lost longer ago is left to people, in seconds.
RECENT_S = 3600.0

#: Ends that nobody reported and that may have been the node's or the agent's fault.
_LOST = (State.NODE_FAIL.value, State.FAILED.value)

#: Ends that an agent reported, and that came because its job had to end.
_WITH_JOB = (State.PREEMPTED.value, State.TIMEOUT.value)


@dataclass(frozen=True)
class _Lost:
    """An attempt whose agent never said how it ended, or had to end it with the job."""

    attempt: Attempt
    agent: AgentId
    slots: int
    state: str
    launch: int


def put_back(ledger: Path, replica: Replica, jobs: Mapping[tuple[str, str], JobStatus]) -> None:
    """Look for such attempts in all sweeps.

    Args:
        ledger: the ledger's path.
        replica: its replica, caught up.
        jobs: what is known of the jobs of live batches.

    Raises:
        ClusterduckError: if jobs could not be submitted. The attempts wait in the queue then.
        OSError: if an act could not be written.
    """
    by_sweep = _recent(replica.connection)
    trouble: ClusterduckError | OSError | None = None
    for sweep, lost in by_sweep.items():
        try:
            paths = standing.paths_of(replica.connection, sweep)
            _Sweep(ledger, replica.connection, paths, jobs).put_back(lost)
        except NotFoundError:
            continue  # its folder is gone, which is said where the sweep is shown
        except (ClusterduckError, OSError) as error:
            trouble = trouble or error
    if by_sweep:
        replica.catch_up(look_at=by_sweep)
    if trouble is not None:
        raise trouble


@dataclass(frozen=True)
class Ends:
    """The runs that ended unsuccessfully, other than because somebody cancelled them.

    Attributes:
        final: those for which nothing more will be done by itself.
        doubtful: those that may be put back in a moment, because of ``max_retries``.
        restarting: those that go on because Slurm starts their job again.
    """

    final: frozenset[int]
    doubtful: frozenset[int]
    restarting: frozenset[int]


def ends(connection: sqlite3.Connection, paths: SweepPaths, again: Collection[str]) -> Ends:
    """Tell final ends from those that are followed by another attempt.

    Args:
        connection: the ledger, caught up.
        paths: the sweep's.
        again: its batches that are not over, or about to be started again.
    """
    cancelled = standing.interrupted(connection, paths.sweep)
    sweep = _Sweep(Path(), connection, paths, {})
    queued = set(Queue(paths.queue).listing())
    final, doubtful, restarting = set(), set(), set()
    for run, number, state, reported, with_job, batch, launch in connection.execute(
        "SELECT run.number, run.attempt, run.state, coalesce(attempt.reported, 1), coalesce(attempt.by_job_end, 0), "
        "attempt.batch, run.launch FROM run LEFT JOIN attempt ON attempt.sweep = run.sweep "
        "AND attempt.run = run.number AND attempt.number = run.attempt WHERE run.sweep = ? AND run.state "
        "NOT IN ('PENDING', 'RUNNING', 'COMPLETED')",
        (paths.sweep,),
    ).fetchall():
        attempt = Attempt(run, number)
        if state == State.CANCELLED.value and run not in cancelled:
            continue
        if batch in again and (with_job or not reported):
            restarting.add(run)
        elif Attempt(run, number + 1) in queued or sweep.may_retry(
            attempt, state, launch, reported and not (with_job and state in _WITH_JOB)
        ):
            doubtful.add(run)
        else:
            final.add(run)
    return Ends(frozenset(final), frozenset(doubtful), frozenset(restarting))


#: Of attempts, with the runs whose latest they are.
_COLUMNS = (
    "attempt.sweep, attempt.run, attempt.number, attempt.batch, attempt.restart, attempt.node, "
    "coalesce(batch.slots_per_node, 1), attempt.state, run.launch"
)
_OF_RUN = "run ON run.sweep = attempt.sweep AND run.number = attempt.run AND run.attempt = attempt.number"

#: Nobody's report: few attempts are without one, and an index holds them.
_UNREPORTED = (
    f"SELECT {_COLUMNS} FROM attempt JOIN {_OF_RUN} LEFT JOIN batch ON batch.sweep = attempt.sweep "  # noqa: S608
    "AND batch.id = attempt.batch WHERE attempt.reported = 0 AND attempt.batch IS NOT NULL "
    "AND attempt.ended_at > ? AND attempt.state IN ('NODE_FAIL', 'FAILED', 'PREEMPTED', 'TIMEOUT', 'OUT_OF_MEMORY') "
    "AND run.launch IS NOT NULL"
)

#: Ended with their jobs: they are looked for in the few jobs that are over and whose launch has retries.
_ENDED_WITH_JOB = (
    f"SELECT {_COLUMNS} FROM launch CROSS JOIN batch ON batch.sweep = launch.sweep AND batch.launch = launch.number "  # noqa: S608
    f"CROSS JOIN attempt ON attempt.sweep = batch.sweep AND attempt.batch = batch.id CROSS JOIN {_OF_RUN} "
    "WHERE json_extract(launch.settings, '$.max_retries') > 0 AND batch.ended_at > ? AND attempt.reported > 0 "
    "AND attempt.by_job_end = 1 AND attempt.state IN ('PREEMPTED', 'TIMEOUT') AND run.launch IS NOT NULL"
)


def _recent(connection: sqlite3.Connection) -> dict[str, list[_Lost]]:
    """The latest attempts of runs that ended in the last hour without anybody's report, or with their job."""
    found: dict[str, list[_Lost]] = {}
    since = [times.to_text(time.time() - RECENT_S)]
    for question in (_UNREPORTED, _ENDED_WITH_JOB):
        for sweep, run, number, batch, restart, node, slots, state, launch in connection.execute(
            question, since
        ).fetchall():
            agent = AgentId(str(batch), int(restart), int(node))
            lost = _Lost(Attempt(run, number), agent, int(slots), str(state), int(launch))
            found.setdefault(str(sweep), []).append(lost)
    return found


class _Sweep:
    """One sweep with lost attempts."""

    def __init__(
        self,
        ledger: Path,
        connection: sqlite3.Connection,
        paths: SweepPaths,
        jobs: Mapping[tuple[str, str], JobStatus],
    ) -> None:
        self._ledger = ledger
        self._connection = connection
        self._paths = paths
        self._jobs = jobs
        self._queue = Queue(paths.queue)
        self._by = identity.user_at_host()
        self._claims = Claims(paths.claims, f"requeue/{self._by}")
        self._replaced: list[Attempt] = []

    def may_retry(self, attempt: Attempt, state: str, launch: int | None, reported: bool) -> bool:
        """Whether the attempt's agent, or whoever looks, is to put the run back because of ``max_retries``."""
        settings = self._settings(launch) if launch is not None else {}
        most = int(settings.get("max_retries") or 0)
        if not most or state not in (settings.get("retry_on", ()) if reported else _wanted(settings)):
            return False
        before = self._before(attempt, {attempt} if attempt.number > 1 else set())
        return before is None or before.retries < most

    def put_back(self, lost: Sequence[_Lost]) -> None:
        """Decide about each, and send what may be tried once more."""
        queued = set(self._queue.listing())
        doomed: list[AttemptEnded] = []
        entries: list[Requeued] = []
        for one in lost:
            before = self._before(one.attempt, queued)
            times_lost = (before.losses if before else 0) + (one.state in _LOST)
            why_failed = losses.why_failed(times_lost, one.slots)
            if why_failed is not None and one.state in _LOST:
                doomed.append(_doom(one, why_failed))
                continue
            settings = self._settings(one.launch)
            retries, most = before.retries if before else 0, int(settings.get("max_retries") or 0)
            if retries >= most or not (one.state in _wanted(settings) and self._can_submit(one.launch, settings)):
                continue
            reason = losses.why_again(f"retry {retries + 1} of {most}: {one.state}", times_lost)
            entries.append(
                self._entry(one.attempt, before, one.launch, kind="retry", reason=reason, times_lost=times_lost)
            )
        dead = {one.agent.batch for one in lost if self._may_submit_again(one.launch)}
        entries = [entry for entry in entries if entry.attempt not in queued]
        waits = dead and queries.sweep(self._connection, self._paths.sweep).counts[State.PENDING.value]
        if not (entries or doomed or waits):
            return
        now = standing.of_sweep(self._connection, self._paths.sweep, self._jobs)
        entries = [entry for entry in entries if self._batch_of(entry, lost) not in now.live]
        entries += self._never_started(now, dead - now.live, queued)
        if entries or doomed:
            self._send(entries, doomed)

    def _may_submit_again(self, launch: int) -> bool:
        """Whether what a job of the launch was to execute and did not begin is to be sent again by itself."""
        settings = self._settings(launch)
        return bool(settings.get("max_retries")) and self._can_submit(launch, settings)

    def _send(self, entries: Sequence[Requeued], doomed: Sequence[AttemptEnded]) -> None:
        act = Again(self._paths, self._ledger, f"retry by {self._by}")
        try:
            act.record(*doomed, *(self._event(entry) for entry in entries), *self._replacements())
            put = [entry for entry in entries if self._queue.put(entry)]
            for number in sorted({entry.launch for entry in put}):
                launch = launched(self._connection, self._paths, number)
                took_s = earlier.attempts(self._connection, self._paths.sweep)
                its = [entry for entry in put if entry.launch == number]
                for attempts in _together(its, launch.options.parallel_runs_per_node):
                    for _ in act.submit(launch, attempts, took_s):
                        pass  # each is on record by now
        finally:
            act.close()

    def _replacements(self) -> list[AttemptsCancelled]:
        if not self._replaced:
            return []
        attempts = [(attempt.run, attempt.number) for attempt in self._replaced]
        reason = f"never started; a later attempt was put back by {self._by}"
        return [AttemptsCancelled(attempts=attempts, reason=reason, user=identity.user(), host=identity.host())]

    def _never_started(self, now: standing.Standing, dead: Iterable[str], queued: set[Attempt]) -> list[Requeued]:
        """What the dead jobs were to execute and did not begin, if nobody else will."""
        batches, unattended = set(dead), set(now.unattended)
        if not (batches and unattended):
            return []
        sent = {Attempt(*pair): batch.id for batch in now.batches for pair in batch.attempts}
        found = []
        for run in queries.pending(self._connection, now.sweep):
            if run.number not in unattended:
                continue
            attempt, holder = now.attempt(run.number), now.holders.get(run.number)
            whose = sent.get(attempt, run.batch) if holder is None else holder.batch
            if whose not in batches or run.launch is None:
                continue
            if run.attempt == 0 and run.number not in now.holders:
                attempt = Attempt(attempt.run, 0)
            elif not (run.number in now.holders or self._claims.claim(attempt)):
                continue  # an agent has just taken it
            if Attempt(attempt.run, attempt.number + 1) not in queued:
                reason = f"batch {whose} ended before it was started"
                before = self._before(attempt, queued)
                times_lost = before.losses if before else 0
                found.append(
                    self._entry(attempt, before, run.launch, kind="restart", reason=reason, times_lost=times_lost)
                )
                if attempt.number:
                    self._replaced.append(attempt)
        return found

    def _entry(
        self, attempt: Attempt, before: Requeued | None, launch: int, *, kind: str, reason: str, times_lost: int
    ) -> Requeued:
        folder = standing.folder_of(self._connection, self._paths.sweep, attempt.run)
        return following(
            attempt, before, launch=launch, kind=kind, reason=reason, by=self._by, folder=folder, losses=times_lost
        )

    def _before(self, attempt: Attempt, queued: set[Attempt]) -> Requeued | None:
        if attempt in queued:
            with suppress(ClusterduckError, FileNotFoundError):
                return self._queue.read(attempt)
        return None

    def _settings(self, launch: int) -> dict[str, Any]:
        row = self._connection.execute(
            "SELECT settings, host FROM launch WHERE sweep = ? AND number = ?", (self._paths.sweep, launch)
        ).fetchone()
        return {**json.loads(row[0]), "host": row[1]} if row is not None and row[0] else {}

    def _can_submit(self, launch: int, settings: Mapping[str, Any]) -> bool:
        """Whether jobs like that launch's can be submitted from here; if not, somebody who looks elsewhere can."""
        if settings.get("cluster") == "local":
            return bool(settings["host"] == identity.host())
        return shutil.which("sbatch") is not None and self._paths.payload(launch).exists()

    @staticmethod
    def _batch_of(entry: Requeued, lost: Sequence[_Lost]) -> str:
        return next(one.agent.batch for one in lost if one.attempt.run == entry.attempt.run)

    def _event(self, entry: Requeued) -> AttemptsRequeued:
        return AttemptsRequeued(
            attempts=[(entry.attempt.run, entry.attempt.number)],
            kind=entry.kind,
            reason=entry.reason,
            user=identity.user(),
            host=identity.host(),
        )


def _together(entries: Iterable[Requeued], slots: int) -> Iterator[list[Attempt]]:
    """What is submitted together: of what is set apart, as much as an agent may execute at once; else all."""
    by_size: dict[int | None, list[Attempt]] = {}
    for entry in entries:
        size = losses.most_together(entry.losses, slots) if losses.is_set_apart(entry.losses) else None
        by_size.setdefault(size, []).append(entry.attempt)
    for size, attempts in by_size.items():
        step = size or len(attempts)
        yield from (attempts[start : start + step] for start in range(0, len(attempts), step))


def _doom(one: _Lost, reason: str) -> AttemptEnded:
    return AttemptEnded(
        run=one.attempt.run,
        attempt=one.attempt.number,
        state=State.FAILED.value,
        reason=reason,
        agent=str(one.agent),
    )


def _wanted(settings: Mapping[str, Any]) -> set[str]:
    """Ends after which a run is tried once more: those that are no fault of its own, and what the launch says."""
    return {*_LOST, State.PREEMPTED.value, *settings.get("retry_on", ())}
