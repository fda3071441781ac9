"""Which attempts an agent may claim, best first: its home range of the plan, what was put back, then what others left;
and last what is set apart because it was lost with its agent more than once.

Used by the writer thread alone, since all of it touches the shared file system; every method may raise OSError, and may
then be called again: what it had done stays done.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clusterduck import journal, losses
from clusterduck.agent.settings import AgentSettings
from clusterduck.errors import ClusterduckError
from clusterduck.events import RunsPlanned
from clusterduck.model import AgentId, Attempt
from clusterduck.paths import SweepPaths, require_own_up_to
from clusterduck.queue import Claims, Queue, Requeued, divide, order_of_looking

#: From one listing of the claims to the next, where none is needed: so many times as long as one takes.
REST_FACTOR = 20


def claimants(settings: AgentSettings) -> int:
    """How many slots there are in all agents that claim from the same runs as this one; 0 if no other agent does."""
    jobs = settings.jobs if settings.share_runs else 1
    if settings.share_runs and settings.attempts:
        jobs = max(jobs, 2)  # this one is beside those of the launch
    agents = jobs * settings.nodes
    return agents * settings.parallel_runs_per_node if agents > 1 else 0


@dataclass
class Haul:
    """What claiming has brought.

    Attributes:
        attempts: what is ours now.
        requeued: for those that were put back, what was said then.
        left: how many more there may be.
        closed: the ranges of runs that will not start any more, because of ``max_failures``.
    """

    attempts: list[Attempt] = field(default_factory=list)
    requeued: dict[Attempt, Requeued] = field(default_factory=dict)
    left: int = 0
    closed: list[tuple[int, int]] = field(default_factory=list)


class Claiming:
    """The agent's way through the sweep's queue.

    Args:
        settings: the batch's.
        agent: who claims.
        payloads: the folder on the node's own disk for copies of payloads.
        say: prints a line into the job's log.
    """

    def __init__(self, settings: AgentSettings, agent: AgentId, payloads: Path, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._sweep = SweepPaths(Path(settings.sweep_root))
        self._claims = Claims(self._sweep.claims, str(agent))
        self._queue = Queue(self._sweep.queue)
        self._payloads = payloads
        self._say = say
        self._seen_in_queue: set[Attempt] = set()
        self._set_apart: set[Attempt] = set()
        self._node = agent.node
        self._is_in_order = not settings.ordered
        self._listed_at = time.monotonic()
        self._listing_took_s = 0.0
        self._claimed_since = 0
        self._claimants = claimants(settings)
        self._home = dict.fromkeys(Attempt.parse(text) for text in settings.attempts)  # in order, and quick to ask
        self._candidates = deque([*self._home, *self._planned({})])

    @property
    def left(self) -> int:
        """How many attempts there may be to claim."""
        return len(self._candidates)

    def claim(self, count: int, haul: Haul) -> None:
        """Claim until ``haul`` has ``count`` attempts, or there are no more.

        Raises:
            OSError: call again, with the same haul.
        """
        if not self._is_in_order:
            self._put_in_order()
        if self._failed_enough():
            haul.closed = self.close()
        while len(haul.attempts) < count and (self._candidates or self.look()):
            attempt = self._candidates[0]
            entry = None
            if attempt.number > 1 or attempt in self._home or attempt in self._seen_in_queue:
                entry = self._entry(attempt)
                if entry is None:
                    self._candidates.popleft()
                    continue
                if losses.is_set_apart(entry.losses) and attempt not in self._set_apart:
                    self._set_apart.add(attempt)
                    self._candidates.rotate(-1)
                    continue
            if self._claims.claim(attempt):
                self._candidates.popleft()
                haul.attempts.append(attempt)
                if entry is not None:
                    haul.requeued[attempt] = entry
            else:  # others are here: one listing spares a question for each that is gone
                self._candidates.popleft()
                if self._has_rested():
                    self._forget_taken()
            self._claimed_since += 1
        if self._is_stale():
            self._forget_taken()
        if not self._candidates:
            self.look()
        haul.left = len(self._candidates)

    def _is_stale(self) -> bool:
        """Whether the others may have claimed half of what we believe is left, if they are as quick as we are."""
        others = self._claimants / self._settings.parallel_runs_per_node - 1
        return others > 0 and 2 * others * self._claimed_since >= len(self._candidates) and self._has_rested()

    def _has_rested(self) -> bool:
        return time.monotonic() - self._listed_at > REST_FACTOR * self._listing_took_s

    def _planned(self, expected_s: Mapping[int, float]) -> list[Attempt]:
        """What of the plan may be claimed here beside the home of a batch that was sent for some attempts, best
        first."""
        settings = self._settings
        batch = (settings.first_run, settings.stop_run)
        everything = (settings.plan_first, settings.plan_stop) if settings.share_runs else None
        runs = order_of_looking(divide(*batch, settings.nodes)[self._node], batch, everything, expected_s)
        return [attempt for attempt in (Attempt(run, 1) for run in runs) if attempt not in self._home]

    def _put_in_order(self) -> None:
        """Have the longest runs claimed first, as far as the launch's journal tells which they are."""
        expected_s: dict[int, float] = {}
        folder = self._sweep.launch(self._settings.launch)
        try:
            require_own_up_to(folder, self._sweep.root)
            for path in sorted(folder.glob("*.jsonl")):
                for event in journal.read_all(path):
                    if isinstance(event, RunsPlanned):
                        known = zip(event.runs, event.expected_s, strict=False)
                        expected_s.update({run: took for (run, _), took in known if took is not None})
        except ClusterduckError as error:
            self._say(f"the runs are begun in the order of their numbers: {error}")
        planned = self._planned(expected_s)
        unclaimed, fresh = set(self._candidates), set(planned)
        first = [attempt for attempt in self._candidates if attempt not in fresh]
        self._candidates = deque([*first, *(attempt for attempt in planned if attempt in unclaimed)])
        self._is_in_order = True

    def look(self) -> int:
        """See what was put into the queue since the last look. Returns how many candidates there are now.

        Raises:
            OSError: call again.
        """
        if self._failed_enough():
            return 0
        new = [attempt for attempt in self._queue.listing() if attempt not in self._seen_in_queue]
        if new:
            taken = self._claims.taken()
            known = set(self._candidates)
            self._candidates.extend(attempt for attempt in new if attempt not in taken and attempt not in known)
            self._seen_in_queue.update(new)
        return len(self._candidates)

    def close(self) -> list[tuple[int, int]]:
        """Give up all that is left to claim; returns the runs of it that never began, as ranges."""
        closed = _ranges(attempt.run for attempt in self._candidates if attempt.number == 1)
        self._candidates.clear()
        return closed

    def put_back(self, entry: Requeued) -> bool:
        """Put a new attempt into the queue; ours to claim first. False if it was there already.

        Raises:
            OSError: call again.
        """
        put = self._queue.put(entry)
        if put:
            self._seen_in_queue.add(entry.attempt)
            self._candidates.appendleft(entry.attempt)
        return put

    def release(self, attempt: Attempt) -> None:
        """Give back a claim on an attempt that never started.

        Raises:
            OSError: call again.
        """
        self._claims.release(attempt)

    def mark_failure(self, attempt: Attempt) -> None:
        """Leave a mark for ``max_failures``, which all agents of the sweep can count.

        Raises:
            OSError: call again.
        """
        if self._settings.max_failures is not None:
            self._make_failures()
            with contextlib.suppress(FileExistsError):
                os.symlink(str(attempt), self._sweep.failures / str(attempt.run))

    def fetch_payload(self, launch: int) -> Path:
        """Copy a launch's payload to the node's own disk, once.

        Raises:
            OSError: call again.
            UnsafePathError: if somebody else could have written it.
        """
        target = self.payload_copy(launch)
        if not target.exists():
            source = self._sweep.payload(launch)
            require_own_up_to(source, self._sweep.root)
            beside = target.with_suffix(".new")
            beside.write_bytes(source.read_bytes())
            os.replace(beside, target)
        return target

    def payload_copy(self, launch: int) -> Path:
        """Where the copy lies."""
        return self._payloads / f"payload-{launch}.pkl"

    def _entry(self, attempt: Attempt) -> Requeued | None:
        """What was said when the attempt was put back; None if it cannot be run here, which is said."""
        try:
            entry = self._queue.read(attempt)
            self.fetch_payload(entry.launch)
        except ClusterduckError as error:
            self._say(f"attempt {attempt} in the queue is passed over: {error}")
            return None
        except FileNotFoundError as error:
            self._say(f"attempt {attempt} in the queue is passed over: {error}")
            return None
        if entry.reserved and attempt not in self._home:
            return None  # for a job with other settings
        return entry

    def _forget_taken(self) -> None:
        began = time.monotonic()
        taken = self._claims.taken()
        self._candidates = deque(attempt for attempt in self._candidates if attempt not in taken)
        self._listed_at, self._claimed_since = time.monotonic(), 0
        self._listing_took_s = self._listed_at - began

    def _failed_enough(self) -> bool:
        most = self._settings.max_failures
        if most is None:
            return False
        self._make_failures()  # a name that was absent, NFS goes on calling absent for up to half a minute
        return len(os.listdir(self._sweep.failures)) >= most

    def _make_failures(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._sweep.failures, 0o700)


def _ranges(runs: Iterable[int]) -> list[tuple[int, int]]:
    """Run numbers as ranges: first, stop."""
    found: list[tuple[int, int]] = []
    for run in sorted(runs):
        if found and found[-1][1] == run:
            found[-1] = (found[-1][0], run + 1)
        else:
            found.append((run, run + 1))
    return found
