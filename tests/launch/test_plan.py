from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clusterduck.launch import plan


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
    assert all(0 < len(line) <= plan.RUNS_PER_LINE for line in lines)
