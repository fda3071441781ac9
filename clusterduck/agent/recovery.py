"""What a job that Slurm has started again does first: find out what its earlier agents left unfinished, and put that
back.

Nothing that completed runs again: a result file counts even if the agent that should have reported it is dead. What a
run did not finish gets a new attempt, except that a run which was lost again and again, at last alone, is left FAILED:
it may be the cause (:mod:`clusterduck.losses`). A job that was asked to claim nothing more is asked again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clusterduck import identity, inbox, journal, losses
from clusterduck.agent.claiming import Claiming
from clusterduck.agent.settings import AgentSettings
from clusterduck.errors import ClusterduckError
from clusterduck.events import Asked, AttemptEnded, AttemptLocated, AttemptsRequeued, AttemptStarted, Event
from clusterduck.journal import JournalWriter
from clusterduck.model import AgentId, Attempt, State
from clusterduck.paths import SweepPaths, require_own_up_to
from clusterduck.queue import Claims, Queue, Requeued, following
from clusterduck.result import read_report

#: How the names of the journals begin of those acts that may ask a job to claim nothing more.
ACTS_THAT_DRAIN = ("drain-", "cancel-")


class Recovery:
    """One agent's part of recovering what the job's earlier agents left: what the agent of the same node index had.

    An agent that finds out late that its job was started again does the same for what it had itself, since its
    successor may have looked before that was there to be seen. Its claims stand: a run that could be claimed once more
    although a new attempt of it is in the queue would be executed twice.

    Args:
        settings: the batch's.
        agent: the new agent.
        claiming: its way through the queue.
        say: prints a line into the job's log.
    """

    def __init__(self, settings: AgentSettings, agent: AgentId, claiming: Claiming, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._agent = agent
        self._claiming = claiming
        self._say = say
        self._sweep = SweepPaths(Path(settings.sweep_root))
        self._queue = Queue(self._sweep.queue)
        self._act: JournalWriter | None = None
        self._recorded = False
        self._folders: dict[int, str] = {}
        self._in_queue: set[Attempt] = set()

    def run(self) -> None:
        """Recover what the job's earlier agents left.

        Raises:
            OSError: call again; what was put back stays put back.
        """
        self._recover(
            "recovery",
            lambda other: other.restart < self._agent.restart and other.node % self._settings.nodes == self._agent.node,
        )
        by = self._drained_by()
        if by is not None:
            inbox.post(self._sweep.agent(self._agent) / "inbox", inbox.Request(kind="drain", by=by))

    def hand_over(self) -> None:
        """Put back what this agent itself leaves to the one that has taken over; all of it must have ended.

        Raises:
            OSError: call again; what was put back stays put back.
        """
        self._recover("handing-over", lambda other: other == self._agent)

    def _recover(self, kind: str, is_meant: Callable[[AgentId], bool]) -> None:
        journals = self._sweep.agent_journals(self._settings.batch).items()
        earlier = [(agent, files) for agent, files in journals if is_meant(agent)]
        if self._act is None:
            name = f"{kind}-{self._agent.batch}-{self._agent.restart}.{self._agent.node}"
            said_by = f"{kind} by agent {self._agent}"
            self._act = JournalWriter(self._sweep.acts, self._sweep.sweep, said_by, name=name)
        self._in_queue = set(self._queue.listing())
        started: set[Attempt] = set()
        ended: dict[Attempt, AttemptEnded] = {}
        for _, files in earlier:
            for event in (event for path in files for event in journal.read_all(path)):
                if isinstance(event, AttemptStarted):
                    started.add(Attempt(event.run, event.attempt))
                elif isinstance(event, AttemptLocated):
                    self._folders[event.run] = self._sweep.place(event.run_dir)
                elif isinstance(event, AttemptEnded):
                    ended[Attempt(event.run, event.attempt)] = event
        for attempt in sorted(started):
            end = ended.get(attempt)
            if end is None:
                self._recover_lost(attempt)
            elif end.by_job_end and end.state != State.COMPLETED.value:
                self._put_back(attempt, f"attempt {attempt.number} ended {end.state} with its job", times_lost=0)
        for attempt in sorted(self._claimed_by([agent for agent, _ in earlier]) - started):
            reason = f"attempt {attempt.number} was claimed and never started"
            self._put_back(attempt, reason, self._losses_before(attempt))
        if self._recorded:
            self._act.close()

    def _drained_by(self) -> str | None:
        """Who asked the job to claim nothing more before it was started again, by draining or cancelling it."""
        for path in sorted(self._sweep.acts.iterdir()):
            if not path.name.startswith(ACTS_THAT_DRAIN):
                continue
            try:
                asked = [event for event in journal.read_all(path) if isinstance(event, Asked)]
            except ClusterduckError as error:
                self._say(f"{error} Whether that drained this job is not known.")
                continue
            for event in asked:
                if event.kind == "drain" and self._settings.batch in event.batches:
                    return f"{event.user}@{event.host}"
        return None

    def _record(self, event: Event) -> None:
        assert self._act is not None
        self._recorded = True
        self._act.append([event])
        self._act.flush(sync=True)

    def _recover_lost(self, attempt: Attempt) -> None:
        """Whose agent died without a word: see if it left a result, else put it back."""
        try:
            require_own_up_to(self._sweep.result(attempt), self._sweep.root)
            report = read_report(self._sweep.result(attempt))
        except FileNotFoundError:
            pass
        except ClusterduckError as error:
            self._say(f"{error} The run is executed again.")
        else:
            known = {key: value for key, value in report.items() if key in AttemptEnded.__dataclass_fields__}
            known |= {"result": str(self._sweep.result(attempt)), "run": attempt.run, "attempt": attempt.number}
            self._record(AttemptEnded(**known))
            return
        times_lost = self._losses_before(attempt) + 1
        reason = losses.why_failed(times_lost, self._settings.parallel_runs_per_node)
        if reason is None:
            again = losses.why_again(f"attempt {attempt.number} was lost with its node or agent", times_lost)
            self._put_back(attempt, again, times_lost)
            return
        self._say(f"run {attempt} is not executed again: {reason}")
        self._record(AttemptEnded(run=attempt.run, attempt=attempt.number, state=State.FAILED.value, reason=reason))

    def _losses_before(self, attempt: Attempt) -> int:
        return self._queue.read(attempt).losses if attempt.number > 1 else 0

    def _put_back(self, attempt: Attempt, reason: str, times_lost: int) -> None:
        entry = following(
            attempt,
            self._queue.read(attempt) if attempt.number > 1 else None,
            launch=self._settings.launch,
            kind="restart",
            reason=reason,
            by=str(self._agent),
            folder=self._folders.get(attempt.run),
            losses=times_lost,
        )
        if entry.attempt in self._in_queue:
            return
        self._record(requeued_event(entry, self._settings.batch))
        if self._claiming.put_back(entry):
            self._say(f"run {attempt.run} is executed again as attempt {entry.attempt.number}: {reason}")

    def _claimed_by(self, agents: list[AgentId]) -> set[Attempt]:
        claims = Claims(self._sweep.claims, str(self._agent))
        names = {str(agent) for agent in agents}
        return {attempt for attempt in claims.taken() if claims.owner(attempt) in names}


def requeued_event(entry: Requeued, batch: str) -> AttemptsRequeued:
    """The event to be recorded before an agent of the batch puts an entry into the queue."""
    return AttemptsRequeued(
        attempts=[(entry.attempt.run, entry.attempt.number)],
        kind=entry.kind,
        reason=entry.reason,
        user=identity.user(),
        host=identity.host(),
        batch=batch,
    )
