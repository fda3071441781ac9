"""What can be done to runs and jobs, thought through and carried out by the same functions as the commands use.

Each act is planned first, which changes nothing and says what it would do; whoever has agreed has it carried out. Both
take place in a thread of their own with a connection of its own, so that the screen never waits. What carries them out
is imported there, too: it brings Hydra with it, which the first paint does not wait for.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from textual.message import Message

from clusterduck.errors import ClusterduckError
from clusterduck.ledger import queries
from clusterduck.ledger.replica import Replica
from clusterduck.model import FAILED_STATES, State
from clusterduck.slurm.jobs import JobStatus
from clusterduck.wording import run_count
from clusterduck_tui.messages import ActDone, Planned, Progress
from clusterduck_tui.offers import Offer, offers

if TYPE_CHECKING:
    from clusterduck import cancel, requeue

Jobs = Mapping[tuple[str, str], JobStatus]
Tell = Callable[[str], None]
Post = Callable[[Message], object]


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
    """Send runs again: these, or (None) all failed ones of the sweep; with other launcher options where given.

    Attributes:
        sweep: the sweep.
        runs: the runs' numbers.
        changes: launcher options as ``name=value``; the first plan fills in what it offers.
        overrides: what is added to each run's overrides.
        as_submitted: run the function as it was submitted, not today's code.
        fresh: move each run's folder aside first.
        planned: what it would do, once that is thought through.
        offers: what the first plan offers to change, and why; None before it.
    """

    sweep: str
    runs: tuple[int, ...] | None = None
    changes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    as_submitted: bool = False
    fresh: bool = False
    planned: requeue.RequeuePlan | None = None
    offers: Sequence[Offer] | None = None

    @property
    def title(self) -> str:
        """What is sent again."""
        return (
            f"Requeue all failed runs of {self.sweep}"
            if self.runs is None
            else f"Requeue {named(self.sweep, self.runs)}"
        )

    def plan(self, replica: Replica, jobs: Jobs) -> None:
        """See what it would do; at first also which launcher options it would be wise to change."""
        self._plan(replica, jobs)
        if self.offers is None:
            assert self.planned is not None
            self.offers = offers(replica.connection, self.planned)
            if self.offers:
                self.changes = tuple(offer.change for offer in self.offers)
                self._plan(replica, jobs)

    def _plan(self, replica: Replica, jobs: Jobs) -> None:
        from clusterduck import requeue

        wish = requeue.Wish(
            states=() if self.runs is not None else tuple(state.value for state in FAILED_STATES),
            runs=None if self.runs is None else {self.sweep: self.runs},
            changes=requeue.parse_changes(self.changes),
            overrides=self.overrides,
            as_submitted=self.as_submitted,
            fresh=self.fresh,
        )
        self.planned = requeue.plan(replica.connection, [self.sweep], wish, jobs)

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
        """Do it; thought through once more, because things may have changed since."""
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
    has_begun: bool = True
    running: int | None = None
    waiting: int = 0

    @property
    def title(self) -> str:
        """Which job."""
        return f"Drain job {self.job} of {self.sweep}"

    def plan(self, replica: Replica, jobs: Jobs) -> None:
        """See that there is such a job, what it executes, and what waits for it."""
        from clusterduck import drain, standing

        found = drain.batches_of(replica.connection, self.job).get(self.sweep, ())
        batches = {batch.id for batch in found}
        self.has_begun = any(batch.state == State.RUNNING.value for batch in found)
        slots = queries.slots(replica.connection, self.sweep, alive=True)
        self.running = sum(slot.run is not None and slot.batch in batches for slot in slots)
        now = standing.of_sweep(replica.connection, self.sweep, jobs)
        self.waiting = sum(batch in batches for batch in now.waiting.values())  # also what it has claimed ahead

    @property
    def description(self) -> str:
        """What it would do."""
        if self.running is None:
            return ""
        ends = f"{run_count(self.running)} {'goes' if self.running == 1 else 'go'} on to the end, then the job ends."
        if not self.has_begun:
            ends = "It has not begun, so it leaves the queue of jobs."
        elif not self.running:
            ends = "It executes no run, so it ends at once."
        stay = f"{run_count(self.waiting)} waiting for it {'stays' if self.waiting == 1 else 'stay'} in the queue."
        return f"{ends} It takes nothing more: {stay}" if self.waiting else f"{ends} No run waits for it."

    @property
    def is_empty(self) -> bool:
        """There is always somebody to ask, else the plan fails."""
        return False

    def carry_out(self, replica: Replica, jobs: Jobs, tell: Tell) -> list[str]:
        """Do it."""
        from clusterduck import drain

        return [sentence(drain.drain(replica, self.job))]


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

        return [f"{timeline.export(replica.connection, self.sweep, self.path)} slots are in {self.path}."]


class Worker:
    """Plans acts and carries them out, each in a thread of its own.

    Attributes:
        busy: the titles of what is being carried out now.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self.busy: list[str] = []

    def plan(self, ledger: Path, act: Deed, jobs: Jobs, post: Post | None = None) -> None:
        """Think an act through; ``Planned`` tells when it can be asked about, ``ActDone`` if it cannot be done.

        Args:
            ledger: the ledger's path.
            act: the act.
            jobs: what is known of the jobs.
            post: who is told; by default whoever is told all else.
        """
        tell = post or self._post

        def think(replica: Replica) -> None:
            act.plan(replica, jobs)
            tell(Planned(act))

        self._start(ledger, act, think, tell)

    def carry_out(self, ledger: Path, act: Deed, jobs: Jobs) -> None:
        """Do it; ``ActDone`` tells what happened."""
        self.busy.append(act.title)
        self._start(ledger, act, lambda replica: self._carry_out(replica, act, jobs), self._post)

    def done(self, title: str) -> None:
        """It was told what happened."""
        if title in self.busy:
            self.busy.remove(title)

    def _start(self, ledger: Path, act: Deed, do: Callable[[Replica], None], post: Post) -> None:
        def run() -> None:
            try:
                with Replica.open(ledger) as replica:
                    replica.catch_up(look_at=[getattr(act, "sweep", "")])
                    do(replica)
            except (ClusterduckError, OSError, sqlite3.Error) as error:
                post(ActDone(act.title, [str(error)], went_well=False))
            except Exception as error:  # whatever it is: the screen stays, and says so
                post(ActDone(act.title, [f"{type(error).__name__}: {error}"], went_well=False))

        threading.Thread(target=run, name="clusterduck-act", daemon=True).start()

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
