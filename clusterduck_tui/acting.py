"""What can be done to runs and jobs, thought through and carried out by the same functions as the commands use.

Each act is planned first, which changes nothing and says what it would do; whoever has agreed has it carried out. Both
take place in a thread of their own with a connection of its own, so that the screen never waits. What carries them out
is imported there, too: it brings Hydra with it, which the first paint does not wait for.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from textual.message import Message

from clusterduck.errors import ClusterduckError
from clusterduck.ledger import history
from clusterduck.ledger.replica import Replica
from clusterduck.model import FAILED_STATES, State
from clusterduck.slurm.jobs import JobStatus
from clusterduck_tui.messages import ActDone, Planned, Progress

if TYPE_CHECKING:
    from clusterduck import cancel, requeue

Jobs = Mapping[tuple[str, str], JobStatus]
Tell = Callable[[str], None]

#: More time after TIMEOUT, more memory after OUT_OF_MEMORY: so many times as much is offered.
MORE_TIME = 2.0
MORE_MEMORY = 1.5


class Deed(Protocol):
    """An act on runs or jobs."""

    @property
    def title(self) -> str:
        """What it is, e.g. for a dialog's head."""

    def plan(self, replica: Replica, jobs: Jobs) -> None:
        """See what it would do."""

    @property
    def description(self) -> str:
        """What it would do, in a sentence; known once it is planned."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""

    def carry_out(self, replica: Replica, jobs: Jobs, tell: Tell) -> list[str]:
        """Do it; returns what happened and what went wrong in sentences."""


@dataclass
class Cancel:
    """Cancel runs of a sweep (None: all of them), or the runs of a job."""

    sweep: str
    runs: tuple[int, ...] | None = None
    job: str | None = None
    planned: cancel.CancelPlan | None = None

    @property
    def title(self) -> str:
        """What is cancelled."""
        if self.job is not None:
            return f"Cancel job {self.job} of {self.sweep}"
        if self.runs is None:
            return f"Cancel the whole sweep {self.sweep}"
        return f"Cancel {named(self.sweep, self.runs)}"

    def plan(self, replica: Replica, jobs: Jobs) -> None:
        """See what it would do."""
        from clusterduck import cancel

        runs = {} if self.job is not None else {self.sweep: self.runs}
        wanted = cancel.Wanted(runs, () if self.job is None else (self.job,))
        self.planned = cancel.plan(replica.connection, wanted, jobs)

    @property
    def description(self) -> str:
        """What it would do."""
        return "" if self.planned is None else sentence(self.planned.describe())

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to cancel."""
        planned = self.planned
        return planned is None or (not planned.count and not any(part.batches for part in planned.sweeps))

    def carry_out(self, replica: Replica, jobs: Jobs, tell: Tell) -> list[str]:
        """Do it."""
        from clusterduck import cancel

        assert self.planned is not None
        report = cancel.carry_out(replica, self.planned, tell=tell)
        return [sentence(report.describe()), *report.trouble]


@dataclass
class Requeue:
    """Send runs again: these, or (None) all failed ones of the sweep; with other launcher options where given."""

    sweep: str
    runs: tuple[int, ...] | None = None
    changes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    as_submitted: bool = False
    planned: requeue.RequeuePlan | None = None
    offers: dict[str, tuple[float, float | None]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What is sent again."""
        return (
            f"Requeue all failed runs of {self.sweep}"
            if self.runs is None
            else f"Requeue {named(self.sweep, self.runs)}"
        )

    def plan(self, replica: Replica, jobs: Jobs) -> None:
        """See what it would do, and which launcher options it would be wise to change."""
        from clusterduck import requeue

        wish = requeue.Wish(
            states=() if self.runs is not None else tuple(state.value for state in FAILED_STATES),
            runs=None if self.runs is None else {self.sweep: self.runs},
            changes=requeue.parse_changes(self.changes),
            overrides=self.overrides,
            as_submitted=self.as_submitted,
        )
        self.planned = requeue.plan(replica.connection, [self.sweep], wish, jobs)
        if not self.changes:
            self.offers = _offers(self.planned)

    @property
    def description(self) -> str:
        """What it would do, and why runs are left out."""
        if self.planned is None:
            return ""
        words = [sentence(self.planned.describe()), *self.planned.remarks]
        skipped = self.planned.skipped
        words += [f"Not run {skip.run}: {skip.why}." for skip in skipped[:3]]
        if len(skipped) > 3:
            words.append(f"Nor {len(skipped) - 3} others.")
        return " ".join(words)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be sent again."""
        return self.planned is None or not self.planned.count

    def carry_out(self, replica: Replica, jobs: Jobs, tell: Tell) -> list[str]:
        """Do it; thought through once more if options were changed since."""
        from clusterduck import requeue

        self.plan(replica, jobs)
        assert self.planned is not None
        report = requeue.carry_out(replica.connection, replica.ledger, self.planned, tell)
        return [sentence(report.describe()), *report.trouble]


@dataclass
class Drain:
    """Have a job finish what runs, and take nothing more."""

    sweep: str
    job: str

    @property
    def title(self) -> str:
        """Which job."""
        return f"Drain job {self.job} of {self.sweep}"

    def plan(self, replica: Replica, jobs: Jobs) -> None:
        """See that there is such a job."""
        from clusterduck import drain

        drain.batches_of(replica.connection, self.job)

    @property
    def description(self) -> str:
        """What it would do."""
        return (
            "Its agents finish what runs and take nothing more, then the job ends; one that has not begun leaves "
            "Slurm's queue. Its other runs stay PENDING, to be requeued."
        )

    @property
    def is_empty(self) -> bool:
        """There is always somebody to ask, else the plan fails."""
        return False

    def carry_out(self, replica: Replica, jobs: Jobs, tell: Tell) -> list[str]:
        """Do it."""
        from clusterduck import drain

        return [sentence(drain.drain(replica.connection, self.job))]


@dataclass
class DrawTimeline:
    """Write the picture of a sweep's slots over time into a file."""

    sweep: str
    path: Path

    @property
    def title(self) -> str:
        """What is drawn."""
        return f"Timeline of {self.sweep}"

    def plan(self, replica: Replica, jobs: Jobs) -> None:
        """There is nothing to think through."""

    @property
    def description(self) -> str:
        """Where to."""
        return f"Into {self.path}."

    @property
    def is_empty(self) -> bool:
        """There is always something to draw."""
        return False

    def carry_out(self, replica: Replica, jobs: Jobs, tell: Tell) -> list[str]:
        """Draw it."""
        from clusterduck import timeline

        lanes = history.lanes(replica.connection, self.sweep)
        timeline.write(self.path, timeline.html(self.sweep, lanes))
        return [f"{len(lanes)} slots are in {self.path}."]


class Worker:
    """Plans acts and carries them out, each in a thread of its own.

    Attributes:
        busy: the titles of what is being carried out now.
    """

    def __init__(self, post: Callable[[Message], object]) -> None:
        self._post = post
        self.busy: list[str] = []

    def plan(self, ledger: Path, act: Deed, jobs: Jobs) -> None:
        """Think an act through; ``Planned`` tells when it can be asked about, ``ActDone`` if it cannot be done."""
        self._start(ledger, act, lambda replica: self._plan(replica, act, jobs))

    def carry_out(self, ledger: Path, act: Deed, jobs: Jobs) -> None:
        """Do it; ``ActDone`` tells what happened."""
        self.busy.append(act.title)
        self._start(ledger, act, lambda replica: self._carry_out(replica, act, jobs))

    def done(self, title: str) -> None:
        """It was told what happened."""
        if title in self.busy:
            self.busy.remove(title)

    def _start(self, ledger: Path, act: Deed, do: Callable[[Replica], None]) -> None:
        def run() -> None:
            try:
                with Replica.open(ledger) as replica:
                    replica.catch_up(look_at=[getattr(act, "sweep", "")])
                    do(replica)
            except (ClusterduckError, OSError, sqlite3.Error) as error:
                self._post(ActDone(act.title, [str(error)], went_well=False))
            except Exception as error:  # whatever it is: the screen stays, and says so
                self._post(ActDone(act.title, [f"{type(error).__name__}: {error}"], went_well=False))

        threading.Thread(target=run, name="clusterduck-act", daemon=True).start()

    def _plan(self, replica: Replica, act: Deed, jobs: Jobs) -> None:
        act.plan(replica, jobs)
        self._post(Planned(act))

    def _carry_out(self, replica: Replica, act: Deed, jobs: Jobs) -> None:
        def tell(words: str) -> None:
            self._post(Progress(act.title, words))

        sentences = act.carry_out(replica, jobs, tell)
        replica.catch_up(look_at=[getattr(act, "sweep", "")])
        self._post(ActDone(act.title, sentences, went_well=len(sentences) == 1))


def named(sweep: str, runs: Sequence[int]) -> str:
    """Runs in a few words: ``run 7 of x``, ``runs 1, 2, 3 of x``, ``120 runs of x``."""
    if len(runs) == 1:
        return f"run {sweep}/{runs[0]}"
    if len(runs) <= 6:
        return f"runs {', '.join(str(run) for run in runs)} of {sweep}"
    return f"{len(runs)} runs of {sweep}"


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _offers(plan: requeue.RequeuePlan) -> dict[str, tuple[float, float | None]]:
    """Options to raise, each with what it should be and what it was: more time after TIMEOUT, more memory after OOM."""
    states = {chosen.run.state for part in plan.sweeps for chosen in part.chosen}
    options: list[Any] = [launch.options for part in plan.sweeps for launch in part.launches.values()]
    offers: dict[str, tuple[float, float | None]] = {}
    if not options:
        return offers
    if State.TIMEOUT.value in states:
        was = max(float(option.timeout_min) for option in options)
        offers["timeout_min"] = (round(was * MORE_TIME), was)
    if State.OUT_OF_MEMORY.value in states:
        amounts = [option.submitit.get("mem_gb") for option in options]
        known = [float(amount) for amount in amounts if amount is not None]
        if known:
            offers["mem_gb"] = (round(max(known) * MORE_MEMORY, 1), max(known))
    return offers
