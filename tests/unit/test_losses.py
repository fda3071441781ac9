"""What becomes of a run that was lost with its node or agent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clusterduck import losses


@given(slots=st.integers(1, 256))
def test_what_takes_its_agent_down_is_left_failed_after_a_few_losses_and_only_if_it_ran_alone(slots: int) -> None:
    times, together = 0, slots
    while losses.why_failed(times, slots) is None:
        together = losses.most_together(times, slots)
        assert 1 <= together <= slots
        times += 1
        assert times <= 6
    assert together == 1
    assert times >= 2


def test_one_loss_changes_nothing_and_more_set_a_run_apart() -> None:
    assert [losses.is_set_apart(times) for times in range(4)] == [False, False, True, True]
    assert [losses.most_together(times, 4) for times in range(4)] == [4, 4, 1, 1]
    assert [losses.most_together(times, 128) for times in range(7)] == [128, 128, 32, 8, 2, 1, 1]
    assert [losses.why_failed(times, 4) is None for times in range(5)] == [True, True, True, False, False]
    assert [losses.why_failed(times, 1) is None for times in range(3)] == [True, True, False]
    assert losses.why_again("lost", 1) == "lost"
