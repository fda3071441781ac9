"""The agent's decisions as a pure state machine: events go in, commands come out; no clock, no I/O.

It decides which claimed attempt starts in which slot, how many more to claim, and when there is nothing left to do.
What is set apart (:mod:`clusterduck.losses`) starts only while few enough slots are busy, and keeps others from
starting beside it. All that takes time (claiming, starting, killing) is done by the supervisor, which answers with
events.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from clusterduck.model import Attempt, State

# --- events


@dataclass(frozen=True)
class SlotOpened:
    """The slot may be used from now on: its start delay is over."""

    slot: int


@dataclass(frozen=True)
class Claimed:
    """The answer to a :class:`Claim`: what is ours now, how many more there may be to claim, and which of ours are set
    apart: how many slots may be busy while one of them runs."""

    asked: int
    attempts: tuple[Attempt, ...]
    left: int
    most_together: Mapping[Attempt, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """An attempt's process, and all it started, is gone; its slot is free."""

    slot: int
    state: State


@dataclass(frozen=True)
class Drained:
    """Claim nothing more and give back what has not started; what runs may go on to its end."""


@dataclass(frozen=True)
class StopAsked:
    """The job has to end: claim nothing more, give back what has not started, end what runs, in this state."""

    state: State
    reason: str
    grace_s: float


@dataclass(frozen=True)
class CancelAsked:
    """Somebody wants these attempts not to go on, whether they run or wait; those that are not here are passed over."""

    attempts: frozenset[Attempt]
    reason: str
    grace_s: float


@dataclass(frozen=True)
class MoreToClaim:
    """There is more in the queue than was known."""

    left: int


@dataclass(frozen=True)
class Doubted:
    """The job may have been started again elsewhere: nothing is started or claimed until that is known."""


@dataclass(frozen=True)
class Reassured:
    """It was not: all goes on."""


Event = SlotOpened | Claimed | Ended | Drained | StopAsked | CancelAsked | MoreToClaim | Doubted | Reassured

# --- commands


@dataclass(frozen=True)
class Claim:
    """Claim up to ``count`` attempts."""

    count: int


@dataclass(frozen=True)
class Start:
    """Start an attempt in a slot that is free."""

    slot: int
    attempt: Attempt


@dataclass(frozen=True)
class StandBy:
    """Prepare an attempt for a slot that another one still runs in."""

    slot: int
    attempt: Attempt


@dataclass(frozen=True)
class Dismiss:
    """Forget what was prepared for a slot."""

    slot: int


@dataclass(frozen=True)
class Release:
    """Give back attempts that were claimed and never started."""

    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class AskToEnd:
    """Ask the run in a slot to end, and kill it ``grace_s`` seconds later; it ends in this state then."""

    slot: int
    state: State
    reason: str
    grace_s: float
    with_job: bool = False


@dataclass(frozen=True)
class Drop:
    """Record that attempts which are ours were cancelled before they started."""

    attempts: tuple[Attempt, ...]
    reason: str


@dataclass(frozen=True)
class Finish:
    """Nothing runs, and nothing more will."""


Command = Claim | Start | StandBy | Dismiss | Release | AskToEnd | Drop | Finish


class AgentState:
    """What the agent knows and means to do.

    Args:
        slots: how many slots the node has; all are closed until :class:`SlotOpened`.
        left: how many attempts there may be to claim.
        claimants: how many slots there are in all agents that claim from the same runs, if others do: then the last
            attempts are not claimed ahead of time, but taken by whoever is free first. 0 if no other does.
        standbys: how many attempts may be prepared ahead of time, each for the slot of one that runs.
    """

    def __init__(self, slots: int, left: int, claimants: int, standbys: int = 0) -> None:
        self._open = [False] * slots
        self._busy: dict[int, Attempt] = {}
        self._ready: deque[Attempt] = deque()
        self._most_together: dict[Attempt, int] = {}  # of those that are set apart
        self._most_standbys = standbys
        self._standbys: dict[int, Attempt] = {}
        self._asked = 0
        self._left = left
        self._claimants = claimants
        self._draining = False
        self._stopping = False
        self._in_doubt = False
        self._finished = False
        self.completed = 0
        self.unsuccessful = 0

    @property
    def busy(self) -> dict[int, Attempt]:
        """Which attempt each occupied slot holds."""
        return dict(self._busy)

    @property
    def stopping(self) -> bool:
        """Whether the job has to end."""
        return self._stopping

    @property
    def in_doubt(self) -> bool:
        """Whether the job may have been started again elsewhere."""
        return self._in_doubt

    @property
    def draining(self) -> bool:
        """Whether nothing more is claimed."""
        return self._draining

    @property
    def left(self) -> int:
        """How many attempts there may be to claim."""
        return self._left

    @property
    def unstarted(self) -> int:
        """How many attempts there may be to start: those claimed ahead of time, and those left to claim."""
        return len(self._ready) + self._left

    @property
    def ready(self) -> tuple[Attempt, ...]:
        """What was claimed ahead of time and has not started."""
        return tuple(self._ready)

    @property
    def idle(self) -> bool:
        """Whether a slot is empty for want of attempts."""
        has_room = self._room() and len(self._busy) < sum(self._open)
        return bool(has_room) and not (self._draining or self._ready or self._asked)

    def handle(self, event: Event) -> list[Command]:
        """Take one event and say what is to be done."""
        commands: list[Command] = []
        if isinstance(event, SlotOpened):
            self._open[event.slot] = True
        elif isinstance(event, Claimed):
            self._asked -= event.asked
            self._left = event.left
            if self._draining and event.attempts:
                commands.append(Release(event.attempts))
            else:
                self._ready.extend(event.attempts)
                self._most_together.update(event.most_together)
        elif isinstance(event, Ended):
            del self._busy[event.slot]
            if event.state is State.COMPLETED:
                self.completed += 1
            else:
                self.unsuccessful += 1
        elif isinstance(event, MoreToClaim):
            self._left = event.left
        elif isinstance(event, CancelAsked):
            commands += self._cancel(event)
        elif isinstance(event, (Doubted, Reassured)):
            self._in_doubt = isinstance(event, Doubted)
        else:
            commands += self._drain()
            if isinstance(event, StopAsked) and not self._stopping:
                self._stopping = True
                commands += [
                    AskToEnd(slot, event.state, event.reason, event.grace_s, with_job=True)
                    for slot in sorted(self._busy)
                ]
        return commands + self._schedule()

    def _drain(self) -> list[Command]:
        self._draining = True
        given_back = tuple(self._ready)
        commands = self._forget(given_back)
        return [*commands, Release(given_back)] if given_back else []

    def _forget(self, attempts: Collection[Attempt]) -> list[Command]:
        """Take attempts out of those that are ready, and dismiss what was prepared for them."""
        self._ready = deque(attempt for attempt in self._ready if attempt not in attempts)
        dismissed = [slot for slot, attempt in sorted(self._standbys.items()) if attempt in attempts]
        for slot in dismissed:
            del self._standbys[slot]
        return [Dismiss(slot) for slot in dismissed]

    def _cancel(self, event: CancelAsked) -> list[Command]:
        commands: list[Command] = [
            AskToEnd(slot, State.CANCELLED, event.reason, event.grace_s)
            for slot, attempt in sorted(self._busy.items())
            if attempt in event.attempts
        ]
        waiting = tuple(attempt for attempt in self._ready if attempt in event.attempts)
        if waiting:
            commands += self._forget(waiting)
            self.unsuccessful += len(waiting)
            commands.append(Drop(waiting, event.reason))
        return commands

    def _schedule(self) -> list[Command]:
        if self._in_doubt and not self._stopping:
            return []
        commands: list[Command] = []
        free = [slot for slot, is_open in enumerate(self._open) if is_open and slot not in self._busy]
        while free and (started := self._start_next(free)):
            commands += started
        free = free[: self._room()]
        if not (self._draining or any(attempt in self._most_together for attempt in self._ready)):
            need = min(len(free) + self._ahead(len(free)) - len(self._ready) - self._asked, self._left - self._asked)
            if need > 0:
                self._asked += need
                commands.append(Claim(need))
        commands += self._stand_by()
        waiting = self._asked and not self._stopping  # a claim that hangs does not hold up the job's end
        if not (self._busy or self._ready or waiting or self._finished) and (self._draining or not self._left):
            self._finished = True
            commands.append(Finish())
        return commands

    def _start_next(self, free: list[int]) -> list[Command]:
        """Start in a slot what was prepared for it; where nothing was, what is ready and for no other slot; at last
        what was prepared for a slot that is still busy; what is set apart after all others. Nothing, if what runs or is
        ready is to have fewer beside it."""
        apart, busy = self._most_together, len(self._busy)
        fitting = [attempt for attempt in self._ready if attempt not in apart]
        fitting = fitting or [attempt for attempt in self._ready if busy < apart[attempt]]
        if not (fitting and self._room()):
            return []
        slot = next((slot for slot in free if slot in self._standbys), free[0])
        free.remove(slot)
        prepared = self._standbys.pop(slot, None)
        if prepared is not None:
            self._ready.remove(prepared)
            self._busy[slot] = prepared
            return [Start(slot, prepared)]
        elsewhere = set(self._standbys.values())
        attempt = next((attempt for attempt in fitting if attempt not in elsewhere), fitting[0])
        commands = self._forget([attempt])
        self._busy[slot] = attempt
        return [*commands, Start(slot, attempt)]

    def _room(self) -> int:
        """How many more slots may be busy beside what runs."""
        slots = len(self._open)
        together = (self._most_together.get(attempt, slots) for attempt in self._busy.values())
        return min(together, default=slots) - len(self._busy)

    def _stand_by(self) -> list[Command]:
        """Have what is ready prepared for slots that are busy, but for what is set apart."""
        prepared = set(self._standbys.values())
        waiting = (each for each in self._ready if each not in prepared and each not in self._most_together)
        slots = (slot for slot in sorted(self._busy) if slot not in self._standbys)
        room = self._most_standbys - len(prepared)
        found = dict(itertools.islice(zip(slots, waiting, strict=False), max(room, 0)))
        self._standbys |= found
        return [StandBy(slot, attempt) for slot, attempt in found.items()]

    def _ahead(self, free: int) -> int:
        """How many attempts to hold ready for slots that are busy: one for each, but not the last ones if others claim
        too."""
        spare = self._left - free - self._claimants
        return max(0, min(len(self._busy), spare))
