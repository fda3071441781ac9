"""What a sweep's journals say so far, read on from where the last look ended.

For a launcher that waits for its runs, and for one that wants to know whether another sweep still uses a folder. It
needs no ledger and no database.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from clusterduck import journal
from clusterduck.events import (
    AgentEnded,
    AgentStarted,
    AttemptEnded,
    AttemptsCancelled,
    AttemptsRequeued,
    AttemptStarted,
    BatchClosed,
    BatchPlanned,
    BatchSubmitted,
    Event,
    JournalClosed,
    LaunchStarted,
    RunsClosed,
    SubmissionDoubted,
)
from clusterduck.model import State
from clusterduck.paths import SweepPaths

#: An agent heard of this long after its batch was closed shows that it was closed too early, in seconds.
CLOCK_SLACK_S = 60.0


@dataclass
class AgentView:
    """An agent: where it is, whether it has ended, and when it was last heard of (seconds since the epoch)."""

    batch: BatchView
    restart: int
    host: str = ""
    pid: int = 0
    ended: bool = False
    failed: bool = False
    last_words: str = ""
    heard_at: float = 0.0

    @property
    def verdict(self) -> tuple[State, str] | None:
        """What became of the attempts whose end it has not reported; None while it may still do so."""
        closed = self.batch.closed
        if self.ended:
            return State.FAILED, "The agent ended without a word on how this run ended."
        if closed is not None and closed.time + CLOCK_SLACK_S >= self.heard_at:
            return State(closed.state), closed.reason
        if self.batch.restart > self.restart:
            return State.NODE_FAIL, "The job was started again, and the agent before it never said how it ended."
        return None


@dataclass
class BatchView:
    """A batch: how it was submitted, and its agents by (restart, node)."""

    nodes: int = 1
    submitted: BatchSubmitted | None = None
    doubted: SubmissionDoubted | None = None
    closing: BatchClosed | None = None
    agents: dict[tuple[int, int], AgentView] = field(default_factory=dict)

    @property
    def closed(self) -> BatchClosed | None:
        """What was concluded of its end; nothing if it was that no job was taken, and there is one."""
        closing = self.closing
        return None if closing is not None and closing.unsubmitted and (self.submitted or self.agents) else closing

    @property
    def restart(self) -> int:
        """How often its job was started again."""
        return max((restart for restart, _ in self.agents), default=0)

    @property
    def is_over(self) -> bool:
        """Whether every agent of its latest start has ended, or it was closed and has not been heard of since."""
        ended = [agent.ended for (restart, _), agent in self.agents.items() if restart == self.restart]
        if len(ended) >= self.nodes and all(ended):
            return True
        return self.closed is not None and self.closed.time + CLOCK_SLACK_S >= self.heard_at

    @property
    def heard_at(self) -> float:
        """When any of its agents was last heard of; 0 if none ever was."""
        return max((agent.heard_at for agent in self.agents.values()), default=0.0)


@dataclass
class RunView:
    """A run's latest attempt (0: none yet), the agent that executes it, and what was reported of it.

    ``cancelled`` is who cancelled it before any agent began it.
    """

    number: int
    attempt: int = 0
    agent: AgentView | None = None
    ended: AttemptEnded | None = None
    closed: RunsClosed | None = None
    cancelled: AttemptsCancelled | None = None

    @property
    def end(self) -> AttemptEnded | None:
        """How the latest attempt ended, as reported, or as it follows from its agent's end."""
        if self.ended is None and self.agent is not None:
            verdict = self.agent.verdict
            if verdict is not None:
                state, reason = verdict
                return AttemptEnded(run=self.number, attempt=self.attempt, state=state.value, reason=reason)
        if self.ended is None and self.agent is None and self.cancelled is not None:
            reason = self.cancelled.reason
            return AttemptEnded(run=self.number, attempt=self.attempt, state=State.CANCELLED.value, reason=reason)
        return self.ended

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.end is not None or (self.closed is not None and self.attempt == 0)


class Watch:
    """Reads the journals of one sweep, again and again.

    Attributes:
        runs: every run that has an attempt or was closed, by number.
        batches: every batch, by id.
        launches: the launches that began, by number.
    """

    def __init__(self, paths: SweepPaths) -> None:
        self._paths = paths
        self._offsets: dict[Path, int] = {}
        self._bad: dict[Path, int] = {}
        self._closed: set[Path] = set()
        self.runs: dict[int, RunView] = {}
        self.batches: dict[str, BatchView] = {}
        self.launches: dict[int, LaunchStarted] = {}

    def look(self, launch: int | None = None) -> bool:
        """Read what is new; returns whether anything was.

        Args:
            launch: look only at this launch, its batches and at acts, which is cheaper in a sweep of many launches.
        """
        journals = self._paths.journals() if launch is None else self._journals_of(launch)
        return sum(self._read(path) for path in journals if path not in self._closed) > 0

    def _journals_of(self, launch: int) -> list[Path]:
        found = []
        try:
            with os.scandir(self._paths.root / "batches") as entries:
                own = [Path(entry.path) for entry in entries if entry.name.startswith(f"{launch}-")]
        except FileNotFoundError:
            own = []
        for batch in own:
            found += [path for agent in _listed(batch) for path in _listed(agent) if path.name.endswith(".jsonl")]
        for folder in (self._paths.launch(launch), self._paths.acts):
            found += [path for path in _listed(folder) if path.name.endswith(".jsonl")]
        return found

    def _read(self, path: Path) -> int:
        count = 0
        while True:
            try:
                # A bad line that was bad at the last look too, and that good lines follow, stays bad.
                chunk = journal.read(path, self._offsets.get(path, 0), self._bad.pop(path, None))
            except (FileNotFoundError, NotADirectoryError):
                return count
            for event in chunk.events:
                self._take(event, path)
            count += len(chunk.events)
            self._offsets[path] = chunk.offset
            if chunk.bad_at is not None:
                self._bad[path] = chunk.bad_at
            if not chunk.more:
                return count

    def _take(self, event: Event, path: Path) -> None:
        agent = self._agent(path)
        if agent is not None:
            agent.heard_at = max(agent.heard_at, event.time)
            self._take_of_agent(event, agent)
        match event:
            case LaunchStarted():
                self.launches[event.launch] = event
            case BatchPlanned():
                self._batch(event.batch).nodes = event.nodes
            case BatchSubmitted():
                self._batch(event.batch).submitted = event
            case BatchClosed():
                self._batch(event.batch).closing = event
            case SubmissionDoubted():
                self._batch(event.batch).doubted = event
            case RunsClosed() | AttemptsRequeued() | AttemptsCancelled():
                self._take_act(event)
            case AttemptStarted():
                self._attempt(event.run, event.attempt, agent)
            case AttemptEnded():
                view = self._attempt(event.run, event.attempt, agent)
                if event.attempt == view.attempt and (view.ended is None or agent is not None):
                    view.ended = event  # an agent's own word outranks that of whoever closed the batch
            case JournalClosed():
                self._closed.add(path)

    def _take_act(self, event: RunsClosed | AttemptsRequeued | AttemptsCancelled) -> None:
        match event:
            case RunsClosed():
                for first, stop in event.ranges:
                    for run in range(first, stop):
                        self._run(run).closed = event
            case AttemptsRequeued():
                for run, attempt in event.attempts:
                    self._attempt(run, attempt, None)
            case AttemptsCancelled():
                for run, attempt in event.attempts:
                    view = self._attempt(run, attempt, None)
                    if attempt == view.attempt:
                        view.cancelled = event

    @staticmethod
    def _take_of_agent(event: Event, agent: AgentView) -> None:
        match event:
            case AgentStarted():
                agent.host, agent.pid = event.host, event.pid
            case AgentEnded():
                agent.ended, agent.failed, agent.last_words = True, event.exit_code != 0, event.reason

    def _batch(self, batch: str) -> BatchView:
        return self.batches.setdefault(batch, BatchView())

    def _run(self, number: int) -> RunView:
        return self.runs.setdefault(number, RunView(number))

    def _attempt(self, number: int, attempt: int, agent: AgentView | None) -> RunView:
        view = self._run(number)
        if attempt > view.attempt:
            view.attempt, view.agent, view.ended, view.cancelled = attempt, agent, None, None
        elif attempt == view.attempt and agent is not None:
            view.agent = agent
        return view

    def _agent(self, path: Path) -> AgentView | None:
        """The agent whose journal this is (``batches/<batch>/<restart>.<node>/``), or None if it is not an agent's."""
        folder = path.parent
        if folder.parent.parent != self._paths.root / "batches":
            return None
        restart, _, node = folder.name.partition(".")
        if not (restart.isdigit() and node.isdigit()):
            return None
        batch = self._batch(folder.parent.name)
        return batch.agents.setdefault((int(restart), int(node)), AgentView(batch, int(restart)))


def _listed(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
