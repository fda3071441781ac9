"""Send runs again: first to live agents that have room, the rest in new jobs. The command line and the dashboard call
this alike.

The act is recorded first, then the new attempts are put into the sweep's queue, exclusively: of two people who send the
same run again, one does.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clusterduck import git, identity, standing
from clusterduck.asking import Agents
from clusterduck.errors import ClusterduckError
from clusterduck.events import AttemptsCancelled, AttemptsRequeued, Event
from clusterduck.inbox import Request
from clusterduck.launch import earlier
from clusterduck.launch.again import Again
from clusterduck.model import AgentId, Attempt
from clusterduck.queue import Claims, Queue, Requeued, following
from clusterduck.requeue_plan import Chosen, RequeuePlan, Skipped, SweepPlan, Wish, check_overrides, parse_changes, plan
from clusterduck.standing import agent_of
from clusterduck.wording import run_count

__all__ = [
    "RequeuePlan",
    "RequeueReport",
    "Sent",
    "Skipped",
    "Wish",
    "carry_out",
    "check_overrides",
    "parse_changes",
    "plan",
]

#: How long live agents have to claim what they have room for, in seconds.
ACKNOWLEDGE_S = 10.0


@dataclass(frozen=True)
class Sent:
    """What became of one run.

    Attributes:
        agent: the live agent that took it,
        job_id: or the new job that will,
        batch: and its batch. None of them: it waits in the queue for somebody to send it.
    """

    sweep: str
    run: int
    attempt: int
    agent: AgentId | None = None
    host: str | None = None
    batch: str | None = None
    job_id: str | None = None


@dataclass(frozen=True)
class RequeueReport:
    """What was done: each run that was sent, those that were not, what went wrong, and what was planned."""

    sent: tuple[Sent, ...]
    skipped: tuple[Skipped, ...]
    trouble: tuple[str, ...] = ()
    plan: RequeuePlan | None = None

    def describe(self) -> str:
        """What was done in a sentence."""
        taken = [sent for sent in self.sent if sent.agent is not None]
        in_jobs = [sent for sent in self.sent if sent.job_id is not None]
        jobs = list(dict.fromkeys(str(sent.job_id) for sent in in_jobs))
        left = len(self.sent) - len(taken) - len(in_jobs)
        parts = []
        if taken:
            hosts = ", ".join(sorted({sent.host or "?" for sent in taken}))
            parts.append(f"{run_count(len(taken))} taken by {hosts}")
        if in_jobs:
            shown = ", ".join(jobs[:5]) + (f" and {len(jobs) - 5} more" if len(jobs) > 5 else "")
            parts.append(f"{run_count(len(in_jobs))} in {'job' if len(jobs) == 1 else 'jobs'} {shown}")
        if left:
            parts.append(f"{run_count(left)} left in the queue: send {'it' if left == 1 else 'them'} with --unfinished")
        done = ", ".join(parts) or "no run was sent again"
        planned = sum(part.to_live for part in self.plan.sweeps) if self.plan is not None else len(taken)
        return done if self.plan is None or planned == len(taken) else f"{done} (planned: {self.plan.places})"


def carry_out(
    connection: sqlite3.Connection, ledger: Path, plan: RequeuePlan, tell: Callable[[str], None] = lambda _: None
) -> RequeueReport:
    """Do what was planned.

    Args:
        connection: the ledger.
        ledger: its path.
        plan: what to do.
        tell: is told in a few words what takes time.

    Raises:
        OSError: if an act could not be written. What was not done then is on record as waiting, or was never begun.
    """
    sent: list[Sent] = []
    skipped = list(plan.skipped)
    trouble: list[str] = []
    for sweep in plan.sweeps:
        _Act(connection, ledger, plan.wish, sweep, tell).carry_out(sent, skipped, trouble)
    return RequeueReport(tuple(sent), tuple(skipped), tuple(trouble), plan)


# --- doing


class _Act:
    """Carries out one sweep's part of a plan."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        ledger: Path,
        wish: Wish,
        part: SweepPlan,
        tell: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._ledger = ledger
        self._wish = wish
        self._part = part
        self._tell = tell
        self._paths = part.standing.paths
        self._sweep = part.standing.sweep
        self._queue = Queue(self._paths.queue)
        self._agents = Agents(connection, self._sweep)
        self._by = identity.user_at_host()

    def carry_out(self, sent: list[Sent], skipped: list[Skipped], trouble: list[str]) -> None:
        queued = set(self._queue.listing())
        free = []
        for one in self._part.chosen:
            if one.attempt in queued:
                skipped.append(self._lost(one.attempt))
            elif self._close_earlier(one):
                free.append(one)
            else:
                skipped.append(Skipped(self._sweep, one.run.number, "it is being started this very moment"))
        if not free:
            return
        room = self._part.to_live
        entries = [
            self._entry(one, queued, reserved=self._is_reserved(place >= room, one)) for place, one in enumerate(free)
        ]
        act = Again(self._paths, self._ledger, f"requeue by {self._by}")
        act.record(*self._events(free, entries))
        put = []
        for entry in entries:
            if self._queue.put(entry):
                put.append(entry)
            else:
                skipped.append(self._lost(entry.attempt))
        taken = self._offer(put)
        hosts = {agent: known.host for agent, known in self._agents.known.items()}
        for attempt, agent in taken.items():
            sent.append(Sent(self._sweep, *attempt, agent=agent, host=hosts.get(agent), batch=agent.batch))
        try:
            self._submit(act, [entry for entry in put if entry.attempt not in taken], sent, trouble)
        finally:
            act.close()

    def _close_earlier(self, one: Chosen) -> bool:
        """See to it that the run's earlier attempt can no longer begin. False if an agent has just taken it."""
        before = Attempt(one.attempt.run, one.attempt.number - 1)
        if before.number == 0 or str(before) in self._part.standing.claimed:
            return True
        claims = Claims(self._paths.claims, f"requeue/{self._by}")
        return claims.claim(before) or agent_of(claims.owner(before)) is None

    def _is_reserved(self, is_beyond: bool, one: Chosen) -> bool:
        """Whether only a new job takes the run: live agents take what they have room for, unless runs are shared."""
        shares = self._part.launches[one.run.launch or 0].options.share_runs
        return bool(self._wish.changes) or (is_beyond and not shares)

    def _entry(self, one: Chosen, queued: Collection[Attempt], reserved: bool) -> Requeued:
        """What goes into the queue."""
        before = Attempt(one.attempt.run, one.attempt.number - 1)
        entry = following(
            before,
            self._read(before, queued),
            launch=one.run.launch or 0,
            kind="person",
            reason=f"requeued by {self._by}",
            by=self._by,
            folder=standing.folder_of(self._connection, one.run.sweep, one.run.number),
        )
        return replace(
            entry,
            overrides=(*entry.overrides, *self._wish.overrides),
            as_submitted=self._wish.as_submitted,
            fresh=self._wish.fresh,
            reserved=reserved,
        )

    def _read(self, attempt: Attempt, queued: Collection[Attempt]) -> Requeued | None:
        if attempt not in queued:
            return None
        with contextlib.suppress(ClusterduckError, FileNotFoundError):
            return self._queue.read(attempt)
        return None

    def _events(self, chosen: Sequence[Chosen], entries: Sequence[Requeued]) -> list[Event]:
        """The act on record: an event for the runs of each launch, since each has code of its own."""
        found: list[Event] = []
        user, host = identity.user(), identity.host()
        commits: dict[str, git.Commit | None] = {}
        for number, launch in self._part.launches.items():
            attempts = [(entry.attempt.run, entry.attempt.number) for entry in entries if entry.launch == number]
            if not attempts:
                continue
            if not self._wish.as_submitted and launch.code not in commits:
                commits[launch.code] = git.commit_of(launch.code)
            commit = commits.get(launch.code)
            found.append(
                AttemptsRequeued(
                    attempts=attempts,
                    kind="person",
                    reason=f"requeued by {self._by}",
                    overrides=list(self._wish.overrides),
                    as_submitted=self._wish.as_submitted,
                    fresh=self._wish.fresh,
                    git_commit=commit.hash if commit else None,
                    git_dirty=commit.dirty if commit else None,
                    user=user,
                    host=host,
                )
            )
        replaced = [(one.replaces.run, one.replaces.number) for one in chosen if one.replaces is not None]
        if replaced:
            reason = f"never started; a later attempt was requeued by {self._by}"
            found.append(AttemptsCancelled(attempts=replaced, reason=reason, user=user, host=host))
        return found

    def _lost(self, attempt: Attempt) -> Skipped:
        with contextlib.suppress(ClusterduckError, OSError):
            return Skipped(self._sweep, attempt.run, f"already requeued by {self._queue.read(attempt).by}")
        return Skipped(self._sweep, attempt.run, "already requeued by somebody else")

    def _offer(self, entries: Sequence[Requeued]) -> dict[Attempt, AgentId]:
        """Hurry the agents that have room; what they claim within some seconds counts as taken."""
        offered = [entry for entry in entries if not entry.reserved]
        if not offered:
            return {}
        room = len(offered)
        self._tell(f"offering {run_count(room)} to running jobs")
        request = Request(kind="look", by=self._by)
        self._agents.ask(self._paths, {each.agent: request for each in self._part.rooms})
        claims = Claims(self._paths.claims, "")
        until = time.monotonic() + ACKNOWLEDGE_S
        wanted = {entry.attempt for entry in offered}
        while True:
            claimed = wanted & claims.taken()
            if len(claimed) >= room or time.monotonic() > until:
                owners = {attempt: agent_of(claims.owner(attempt)) for attempt in sorted(claimed)}
                return {attempt: agent for attempt, agent in owners.items() if agent is not None}
            time.sleep(0.1)

    def _submit(self, act: Again, entries: Sequence[Requeued], sent: list[Sent], trouble: list[str]) -> None:
        for number, launch in self._part.launches.items():
            attempts = [entry.attempt for entry in entries if entry.launch == number]
            if not attempts:
                continue
            self._tell(f"submitting {run_count(len(attempts))}")
            took_s = earlier.attempts(self._connection, self._sweep)
            placed: set[Attempt] = set()
            try:
                for job in act.submit(launch, attempts, took_s):
                    placed.update(job.attempts)
                    sent += [
                        Sent(self._sweep, *attempt, batch=job.batch, job_id=job.job_id) for attempt in job.attempts
                    ]
            except ClusterduckError as error:
                trouble.append(str(error))
            sent += [Sent(self._sweep, *attempt) for attempt in attempts if attempt not in placed]
