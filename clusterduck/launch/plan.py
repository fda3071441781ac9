"""From override lists to batches: which runs each job executes. Pure: no clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from clusterduck.events import RUNS_PER_LINE
from clusterduck.model import Attempt
from clusterduck.queue import longest_first


@dataclass(frozen=True)
class Batch:
    """A job to be submitted: its id and its home range of runs, ``first`` up to, not including, ``stop``."""

    id: str
    first: int
    stop: int


def batches(launch: int, first: int, count: int, runs_per_batch: int | None) -> list[Batch]:
    """Cut the runs of a launch into jobs of ``runs_per_batch`` runs each (None: one job for all), in order.

    The last job has what is left.
    """
    size = runs_per_batch or max(count, 1)
    return [
        Batch(f"{launch}-{index}", start, min(start + size, first + count))
        for index, start in enumerate(range(first, first + count, size))
    ]


def in_lines(first: int, overrides: Sequence[list[str]]) -> Iterator[list[tuple[int, list[str]]]]:
    """The runs with their numbers, in groups small enough for a line of a journal."""
    for start in range(0, len(overrides), RUNS_PER_LINE):
        yield [(first + start + at, run) for at, run in enumerate(overrides[start : start + RUNS_PER_LINE])]


def homes(
    attempts: Sequence[Attempt], runs_per_batch: int | None, expected_s: Mapping[int, float]
) -> list[tuple[Attempt, ...]]:
    """Which job executes which of the attempts that are sent again, each in the order in which they are best begun.

    Args:
        attempts: one for each run, in order.
        runs_per_batch: as :func:`batches` has it.
        expected_s: how long runs are expected to take, in seconds, where that is known: then the longest come first,
            and are dealt to the jobs in turn, so that no job gets all of them.
    """
    size = runs_per_batch or max(len(attempts), 1)
    jobs = -(-len(attempts) // size)
    if not expected_s:
        return [tuple(attempts[job * size : (job + 1) * size]) for job in range(jobs)]
    of_run = {attempt.run: attempt for attempt in attempts}
    ordered = [of_run[run] for run in longest_first(of_run, expected_s)]
    return [tuple(ordered[job::jobs]) for job in range(jobs)]
