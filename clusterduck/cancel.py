"""Stop runs that are no longer wanted. The command line and the dashboard call this alike.

A run that waits is stopped by claiming it, so that nobody else ever can. One that an agent has is stopped by that
agent: it is asked to end, and killed with all that it started if it does not.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clusterduck import identity, standing
from clusterduck.asking import Agents, Signal
from clusterduck.drain import asked_event, batches_of
from clusterduck.errors import SlurmError
from clusterduck.events import AttemptsCancelled, BatchClosed, Event
from clusterduck.inbox import Request
from clusterduck.journal import JournalWriter
from clusterduck.ledger import queries
from clusterduck.ledger.queries import Batch, Run
from clusterduck.model import AgentId, Attempt, State
from clusterduck.queue import Claims
from clusterduck.slurm.acts import scancel
from clusterduck.slurm.jobs import JobStatus
from clusterduck.standing import Standing, agent_of
from clusterduck.wording import run_count

if TYPE_CHECKING:
    from clusterduck.ledger.replica import Replica

#: From asking a run to end to killing it, unless said otherwise, in seconds.
GRACE_S = 10.0

#: For how long agents are waited for beyond that, in seconds.
ACKNOWLEDGE_S = 10.0


@dataclass(frozen=True)
class Wanted:
    """What is to be cancelled: runs of sweeps by number (None: all of the sweep), or the runs of jobs."""

    runs: Mapping[str, Collection[int] | None]
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepPlan:
    """One sweep's part of a plan.

    Attributes:
        standing: how it stands.
        waiting: attempts that nobody has, or nobody any more.
        held: attempts that an agent has claimed, whether they run or are about to.
        batches: jobs that are to take nothing more.
    """

    standing: Standing
    waiting: tuple[Attempt, ...]
    held: Mapping[Attempt, AgentId]
    batches: tuple[str, ...] = ()


@dataclass(frozen=True)
class CancelPlan:
    """What would be cancelled."""

    sweeps: tuple[SweepPlan, ...]
    over: int = 0  # runs that were asked for and have ended already

    @property
    def count(self) -> int:
        """How many runs."""
        return sum(len(sweep.waiting) + len(sweep.held) for sweep in self.sweeps)

    def describe(self) -> str:
        """The plan in a sentence."""
        waiting = sum(len(sweep.waiting) for sweep in self.sweeps)
        held = sum(len(sweep.held) for sweep in self.sweeps)
        parts = []
        if held:
            parts.append(f"{run_count(held)} that agents have {'is' if held == 1 else 'are'} asked to end")
        if waiting:
            parts.append(f"{run_count(waiting)} will never start")
        if self.over:
            parts.append(f"{run_count(self.over)} {'has' if self.over == 1 else 'have'} ended already")
        return ", ".join(parts) or "there is nothing to cancel"


@dataclass(frozen=True)
class Cancelled:
    """What became of one run: its attempt's state now, and why; RUNNING if its agent has not acknowledged yet."""

    sweep: str
    run: int
    attempt: int
    state: str
    reason: str | None


@dataclass(frozen=True)
class CancelReport:
    """What was done: each run that was to be cancelled, the jobs that were ended, and what went wrong."""

    runs: tuple[Cancelled, ...]
    jobs: tuple[str, ...] = ()
    trouble: tuple[str, ...] = ()

    @property
    def unanswered(self) -> tuple[Cancelled, ...]:
        """Those whose agents have not said that they ended."""
        return tuple(run for run in self.runs if not State(run.state).is_terminal)

    def describe(self) -> str:
        """What was done in a sentence."""
        cancelled = sum(run.state == State.CANCELLED.value for run in self.runs)
        other = len(self.runs) - cancelled - len(self.unanswered)
        parts = [f"{run_count(cancelled)} cancelled"] if cancelled else []
        if other:
            parts.append(f"{run_count(other)} ended otherwise first")
        if self.unanswered:
            parts.append(f"{run_count(len(self.unanswered))} asked to end, not heard of yet")
        if self.jobs:
            parts.append(
                f"{'job' if len(self.jobs) == 1 else 'jobs'} {', '.join(self.jobs[:5])} ended in Slurm's queue"
            )
        return ", ".join(parts) or "nothing was cancelled"


def plan(connection: sqlite3.Connection, wanted: Wanted, jobs: Mapping[tuple[str, str], JobStatus]) -> CancelPlan:
    """See what cancelling means.

    Args:
        connection: the ledger, caught up.
        wanted: what is to be cancelled.
        jobs: what is known of the jobs of live batches.

    Raises:
        NotFoundError: if a run or a job does not exist, or a sweep's folder is gone.
    """
    parts, over = [], 0
    for sweep, numbers in wanted.runs.items():
        part, ended = _of_sweep(connection, standing.of_sweep(connection, sweep, jobs), numbers)
        parts.append(part)
        over += ended
    for job in wanted.jobs:
        for sweep, batches in batches_of(connection, job).items():
            part, ended = _of_job(connection, standing.of_sweep(connection, sweep, jobs), batches)
            parts.append(part)
            over += ended
    return CancelPlan(tuple(parts), over)


def carry_out(
    replica: Replica, plan: CancelPlan, grace_s: float = GRACE_S, tell: Callable[[str], None] = lambda _: None
) -> CancelReport:
    """Do what was planned, and wait until the agents have acknowledged it, a little longer than the grace at most.

    Raises:
        OSError: if an act could not be written; of what it is about nothing was done then.
    """
    ended: list[str] = []
    trouble: list[str] = []
    parts = [part for part in plan.sweeps if part.waiting or part.held or part.batches]
    acts = [_Act(replica.connection, part, grace_s) for part in parts]
    for act in acts:
        act.carry_out()
        ended += act.ended_jobs
        trouble += act.trouble
    if any(act.held for act in acts):
        tell("waiting for the agents to acknowledge")
    until = time.monotonic() + grace_s + ACKNOWLEDGE_S
    while True:
        replica.catch_up(look_at=[act.part.standing.sweep for act in acts])
        if all(act.is_acknowledged(replica.connection) for act in acts) or time.monotonic() > until:
            break
        time.sleep(0.2)
    for act in acts:
        if act.signal is not None and not act.is_acknowledged(replica.connection):
            trouble += act.signal.trouble()
    runs = [found for act in acts for found in act.outcome(replica.connection)]
    return CancelReport(tuple(runs), tuple(ended), tuple(trouble))


# --- choosing


def _of_sweep(connection: sqlite3.Connection, now: Standing, numbers: Collection[int] | None) -> tuple[SweepPlan, int]:
    if numbers is None:
        alive = queries.Filter(states=[State.PENDING.value, State.RUNNING.value])
        runs = queries.runs(connection, now.sweep, alive)
        return _part(now, map(_latest, runs), ()), 0
    runs = [queries.run(connection, now.sweep, number) for number in sorted(numbers)]
    alive_runs = [run for run in runs if not State(run.state).is_terminal]
    return _part(now, map(_latest, alive_runs), ()), len(runs) - len(alive_runs)


def _of_job(connection: sqlite3.Connection, now: Standing, batches: Sequence[Batch]) -> tuple[SweepPlan, int]:
    """Everything a job would still execute."""
    names = {batch.id for batch in batches}
    due = {run: now.attempt(run) for run, batch in now.waiting.items() if batch in names}
    alive = queries.Filter(states=[State.RUNNING.value])
    due |= {run.number: _latest(run) for run in queries.runs(connection, now.sweep, alive) if run.batch in names}
    return _part(now, [due[number] for number in sorted(due)], tuple(sorted(names))), 0


def _latest(run: Run) -> Attempt:
    return Attempt(run.number, max(run.attempt, 1))


def _part(now: Standing, attempts: Iterable[Attempt], batches: tuple[str, ...]) -> SweepPlan:
    claims = Claims(now.paths.claims, "")
    waiting: list[Attempt] = []
    held: dict[Attempt, AgentId] = {}
    for attempt in attempts:
        if attempt.run in now.waiting:
            holder = now.holders.get(attempt.run) if now.waiting[attempt.run] is not None else None
        else:
            holder = agent_of(claims.owner(attempt))
        if holder is None:
            waiting.append(attempt)
        else:
            held[attempt] = holder
    return SweepPlan(now, tuple(waiting), held, batches)


# --- doing


class _Act:
    """Carries out one sweep's part of a plan."""

    def __init__(self, connection: sqlite3.Connection, part: SweepPlan, grace_s: float) -> None:
        self.part = part
        self.ended_jobs: list[str] = []
        self.held = dict(part.held)
        self.trouble: list[str] = []
        self.signal: Signal | None = None
        self._paths = part.standing.paths
        self._agents = Agents(connection, part.standing.sweep)
        self._grace_s = grace_s
        self._by = identity.user_at_host()
        name = f"cancel-{uuid.uuid4().hex[:12]}"
        self._journal = JournalWriter(self._paths.acts, part.standing.sweep, f"cancel by {self._by}", name=name)

    def carry_out(self) -> None:
        """Claim what waits, ask for the rest, and end the jobs that nobody needs any more."""
        if self.part.waiting:
            self.held |= self._claim(self.part.waiting)
        attempts = defaultdict(list)
        for attempt, agent in self.held.items():
            attempts[agent].append(attempt)
        if attempts:
            self._record(asked_event("cancel", sorted({agent.batch for agent in attempts}), sorted(self.held)))
            requests = {
                agent: Request(kind="cancel", by=self._by, attempts=tuple(theirs), grace_s=self._grace_s)
                for agent, theirs in attempts.items()
            }
            asked = self._agents.ask(self._paths, requests)
            self.trouble += asked.trouble
            self.signal = asked.signal
        self._drain_agents()
        self._end_idle_jobs()
        self._journal.close()

    def is_acknowledged(self, connection: sqlite3.Connection) -> bool:
        """Whether every attempt that an agent had has ended, by the word of an agent or of whoever closed its job."""
        return all(State(self._row(connection, attempt)[0]).is_terminal for attempt in self.held)

    def outcome(self, connection: sqlite3.Connection) -> list[Cancelled]:
        """How the runs stand now."""
        every = sorted({*self.part.waiting, *self.held})
        return [Cancelled(self.part.standing.sweep, *attempt, *self._row(connection, attempt)) for attempt in every]

    def _row(self, connection: sqlite3.Connection, attempt: Attempt) -> tuple[str, str | None]:
        """An attempt's state and reason; one that an agent has claimed runs until the agent says otherwise."""
        row = connection.execute(
            "SELECT state, reason, restart FROM attempt WHERE sweep = ? AND run = ? AND number = ?",
            (self.part.standing.sweep, *attempt),
        ).fetchone()
        if row is None or (row[2] is None and attempt in self.held):
            return State.RUNNING.value if attempt in self.held else State.PENDING.value, None
        return str(row[0]), row[1]

    def _record(self, event: Event) -> None:
        self._journal.append([event])
        self._journal.flush(sync=True)

    def _claim(self, attempts: Sequence[Attempt]) -> dict[Attempt, AgentId]:
        """Claim what waits. Returns those that an agent had claimed first."""
        self._record(
            AttemptsCancelled(
                attempts=[(attempt.run, attempt.number) for attempt in attempts],
                reason=f"cancelled by {self._by} before it started",
                user=identity.user(),
                host=identity.host(),
            )
        )
        claims = Claims(self._paths.claims, f"cancel/{self._by}")
        lost = {}
        for attempt in attempts:
            if str(attempt) not in self.part.standing.claimed and not claims.claim(attempt):
                holder = agent_of(claims.owner(attempt))
                if holder is not None:
                    lost[attempt] = holder
        return lost

    def _drain_agents(self) -> None:
        """Whoever cancels a job wants it to end: its agents are to take nothing else instead."""
        agents = [agent for agent in self._agents.known if agent.batch in self.part.batches]
        if agents:
            self._record(asked_event("drain", self.part.batches, []))
            self._agents.ask(self._paths, {agent: Request(kind="drain", by=self._by) for agent in agents})

    def _end_idle_jobs(self) -> None:
        """End the jobs that still wait in Slurm's queue and would find nothing left to do."""
        claimed = Claims(self._paths.claims, "").taken()
        idle = {
            batch.job_id: batch.id
            for batch in self.part.standing.batches
            if batch.state == State.PENDING.value
            and batch.job_id is not None
            and batch.cluster == "slurm"
            and batch.id in self.part.standing.live
            and self._touches(batch)
            and not any(attempt not in claimed for attempt in self._home(batch))
        }
        for job, batch_id in idle.items():
            self._record(asked_event("scancel", [batch_id], [], job))
        if not idle:
            return
        try:
            scancel(idle)
        except SlurmError as error:
            self.trouble.append(f"{error} The jobs {', '.join(idle)} will start, find nothing to do, and end.")
            return
        reason = f"cancelled by {self._by}: none of its runs was left"
        for batch in idle.values():
            self._record(BatchClosed(batch=batch, state=State.CANCELLED.value, reason=reason))
        self.ended_jobs = sorted(idle)

    def _home(self, batch: Batch) -> Iterable[Attempt]:
        yield from (Attempt(*pair) for pair in batch.attempts)
        if batch.share_runs:
            ranges = [
                (other.first_run or 0, other.stop_run or 0)
                for other in self.part.standing.batches
                if other.launch == batch.launch
            ]
        else:
            ranges = [(batch.first_run or 0, batch.stop_run or 0)]
        for first, stop in ranges:
            yield from (Attempt(run, 1) for run in range(first, stop))

    def _touches(self, batch: Batch) -> bool:
        """Whether something that the batch would have executed was cancelled now."""
        if batch.id in self.part.batches or batch.share_runs:
            return True
        first, stop = batch.first_run or 0, batch.stop_run or 0
        home = set(batch.attempts)
        return any(attempt in home or first <= attempt.run < stop for attempt in self.part.waiting)
