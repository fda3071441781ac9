from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clusterduck import events
from clusterduck.launch import plan
from clusterduck.model import Attempt


def test_runs_go_into_jobs_in_order() -> None:
    assert plan.batches(2, 10, 10, 4) == [
        plan.Batch("2-0", 10, 14),
        plan.Batch("2-1", 14, 18),
        plan.Batch("2-2", 18, 20),
    ]
    assert plan.batches(0, 0, 10, None) == [plan.Batch("0-0", 0, 10)]


@given(
    first=st.integers(0, 1000),
    count=st.integers(0, 2000),
    size=st.none() | st.integers(1, 700),
    launch=st.integers(0, 9),
)
def test_every_run_is_in_exactly_one_job(first: int, count: int, size: int | None, launch: int) -> None:
    planned = plan.batches(launch, first, count, size)
    assert [run for batch in planned for run in range(batch.first, batch.stop)] == list(range(first, first + count))
    assert all(batch.first < batch.stop for batch in planned)
    assert size is None or all(batch.stop - batch.first <= size for batch in planned)
    assert len({batch.id for batch in planned}) == len(planned)


@given(first=st.integers(0, 50), count=st.integers(0, 1600))
def test_every_run_is_written_down_once(first: int, count: int) -> None:
    runs = [[f"a={number}"] for number in range(count)]
    lines = list(plan.in_lines(first, runs))
    assert [run for line in lines for run in line] == list(enumerate(runs, first))
    assert all(0 < len(line) <= events.RUNS_PER_LINE for line in lines)


def test_attempts_that_took_long_are_dealt_to_the_jobs_and_begin_first() -> None:
    attempts = [Attempt(run, 2) for run in range(5)]
    assert plan.homes(attempts, 2, {}) == [tuple(attempts[:2]), tuple(attempts[2:4]), tuple(attempts[4:])]
    took = {0: 1.0, 1: 9.0, 3: 5.0}  # the others count as the median
    assert [[attempt.run for attempt in home] for home in plan.homes(attempts, 2, took)] == [[1, 4], [2, 0], [3]]
    assert plan.homes(attempts, None, took) == [tuple(Attempt(run, 2) for run in (1, 2, 3, 4, 0))]
    assert plan.homes([], 2, took) == []


@given(took=st.dictionaries(st.integers(0, 30), st.floats(0, 1e6)), count=st.integers(1, 30), size=st.integers(1, 9))
def test_every_attempt_that_is_sent_again_is_in_one_job_of_no_more_than_its_size(
    took: dict[int, float], count: int, size: int
) -> None:
    attempts = [Attempt(run, 2) for run in range(count)]
    homes = plan.homes(attempts, size, took)
    assert sorted(attempt for home in homes for attempt in home) == attempts
    assert len(homes) == -(-count // size)
    assert all(0 < len(home) <= size for home in homes)
