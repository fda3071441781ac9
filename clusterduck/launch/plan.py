"""From override lists to batches: which runs each job executes. Pure: no clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: How many runs go into one line of the launch's journal.
RUNS_PER_LINE = 500


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
