"""What the dashboard knows at the moment, and what the person in front of it has chosen and marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clusterduck import job_words
from clusterduck.ledger.history import Pace
from clusterduck.ledger.queries import Batch, Run, Sweep
from clusterduck.model import FAILED_STATES, State
from clusterduck.slurm.jobs import JobStatus
from clusterduck.standing import Neglected, remedy
from clusterduck_tui.looks import Looks

LIVE = (State.PENDING.value, State.RUNNING.value)


@dataclass
class Known:
    """Shared by the views, changed by the app alone."""

    ledger: Path | None = None
    trouble: str | None = None
    is_reading: bool = False
    is_caught_up: bool = False
    has_chosen: bool = False
    slurm_trouble: str | None = None
    sweeps: tuple[Sweep, ...] = ()
    batches: tuple[Batch, ...] = ()
    paces: dict[str, Pace] = field(default_factory=dict)
    jobs: dict[tuple[str, str], JobStatus] = field(default_factory=dict)
    chosen: str | None = None
    marks: dict[str, set[int]] = field(default_factory=dict)
    looks: Looks = field(default_factory=Looks)
    neglected: Mapping[str, Neglected] = field(default_factory=dict)
    read_only: bool = False

    @property
    def sweep(self) -> Sweep | None:
        """The chosen sweep."""
        return None if self.chosen is None else self.sweep_called(self.chosen)

    def sweep_called(self, name: str) -> Sweep | None:
        """The sweep of that id."""
        return next((sweep for sweep in self.sweeps if sweep.id == name), None)

    @property
    def marked(self) -> set[int]:
        """The marked runs of the chosen sweep."""
        return self.marks.setdefault(self.chosen or "", set())

    def new_failures(self, sweep: Sweep) -> int:
        """How many runs failed since this sweep's runs were last looked at, in whichever session."""
        return self.looks.new_failures(sweep.id, failures(sweep), is_caught_up=self.is_caught_up)

    def note_look(self) -> None:
        """The chosen sweep's runs are being looked at."""
        if self.sweep is not None:
            self.looks.look(self.sweep.id, failures(self.sweep))

    def why(self, run: Run) -> str:
        """A run's reason; for one that waits and that no job will take, that it does."""
        return self.in_vain(run) or run.reason or ""

    def in_vain(self, run: Run) -> str | None:
        """A sentence on a run that waits and that no job will take; None for any other."""
        its = self.neglected.get(run.sweep) if run.state == State.PENDING.value else None
        return None if its is None else its.why(run)

    @property
    def neglect(self) -> str:
        """A sentence on the runs of the chosen sweep that no job will take; empty if there are none."""
        its = self.neglected.get(self.chosen or "")
        if its is None:
            return ""
        waits, them = ("1 run waits", "it") if its.count == 1 else (f"{its.count} runs wait", "them")
        return f"{waits}, and no job will take {them}: {remedy(its.sweep)} sends {them}."

    def batches_of(self, sweep: str | None) -> list[Batch]:
        """The jobs of a sweep, those at work first, then those that wait, then those that are over, newest first."""
        its = [batch for batch in self.batches if batch.sweep == sweep]
        rank = {State.RUNNING.value: 0, State.PENDING.value: 1}
        its.sort(key=lambda batch: batch.ended_at or "", reverse=True)
        return sorted(its, key=lambda batch: rank.get(batch.state, 2))

    def standing(self, batch: Batch) -> tuple[str, str]:
        """A job's state and reason: Slurm's word on one that is not over, else the ledger's."""
        return job_words.standing(batch, self.jobs.get((batch.sweep, batch.id)))

    def time_left(self, batch: Batch) -> float | None:
        """Seconds until a job's limit: Slurm's answer, else what its agent was told at its start."""
        job = self.jobs.get((batch.sweep, batch.id))
        return job_words.time_left(batch, job) if batch.state == State.RUNNING.value else None


def failures(sweep: Sweep) -> int:
    """How many of a sweep's runs ended neither well nor by somebody's wish."""
    return sum(sweep.counts.get(state.value, 0) for state in FAILED_STATES)
