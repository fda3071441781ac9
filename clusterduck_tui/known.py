"""What the dashboard knows at the moment, and what the person in front of it has chosen and marked."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from clusterduck.ledger.history import Pace
from clusterduck.ledger.queries import Batch, Sweep
from clusterduck.model import FAILED_STATES, State
from clusterduck.slurm.jobs import ABSENT, UNKNOWN, JobStatus
from clusterduck.wording import seconds_of

#: An agent that was not heard of for so many seconds may be dead.
SILENT_S = 90.0

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
    looked_at: dict[str, int] = field(default_factory=dict)
    read_only: bool = False

    @property
    def sweep(self) -> Sweep | None:
        """The chosen sweep."""
        return next((sweep for sweep in self.sweeps if sweep.id == self.chosen), None)

    @property
    def marked(self) -> set[int]:
        """The marked runs of the chosen sweep."""
        return self.marks.setdefault(self.chosen or "", set())

    def new_failures(self, sweep: Sweep) -> int:
        """How many runs failed since this sweep's runs were last looked at (or the dashboard opened)."""
        return max(0, failures(sweep) - self.looked_at.setdefault(sweep.id, failures(sweep)))

    def note_look(self) -> None:
        """The chosen sweep's runs are being looked at."""
        if self.sweep is not None:
            self.looked_at[self.sweep.id] = failures(self.sweep)

    def batches_of(self, sweep: str | None) -> list[Batch]:
        """The jobs of a sweep, those at work first, then those that wait, then those that are over, newest first."""
        its = [batch for batch in self.batches if batch.sweep == sweep]
        rank = {State.RUNNING.value: 0, State.PENDING.value: 1}
        its.sort(key=lambda batch: batch.ended_at or "", reverse=True)
        return sorted(its, key=lambda batch: rank.get(batch.state, 2))

    def standing(self, batch: Batch) -> tuple[str, str]:
        """A job's state and reason: Slurm's word on one that is not over, else the ledger's."""
        job = self.jobs.get((batch.sweep, batch.id))
        if batch.state not in LIVE:
            return batch.state, batch.reason or ""
        if job is None:
            return batch.state, "not submitted" if batch.job_id is None else ""
        if job.state == UNKNOWN and silence(batch.heartbeat_at) <= SILENT_S:
            return batch.state, ""  # nobody could ask about its job, but its agent has just said that it is alive
        if job.is_over:
            return job.state, f"{job.reason}; the agent has not said so (yet)".removeprefix("; ")
        return (UNKNOWN if job.state == ABSENT else job.state), job.reason

    def time_left(self, batch: Batch) -> float | None:
        """Seconds until a job's limit: Slurm's answer, else what its agent was told at its start."""
        job = self.jobs.get((batch.sweep, batch.id))
        if batch.state != State.RUNNING.value:
            return None
        if job is not None and job.time_left_s is not None:
            return job.time_left_s
        ends_at = seconds_of(batch.ends_at)
        return None if ends_at is None else max(0.0, ends_at - time.time())


def failures(sweep: Sweep) -> int:
    """How many of a sweep's runs ended neither well nor by somebody's wish."""
    return sum(sweep.counts.get(state.value, 0) for state in FAILED_STATES)


def silence(heard_at: str | None) -> float:
    """Seconds since an agent was heard of; for ever if it never was."""
    heard = seconds_of(heard_at)
    return float("inf") if heard is None else time.time() - heard
