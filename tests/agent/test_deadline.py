"""What the job's time limit means for its runs."""

from __future__ import annotations

from clusterduck.agent.deadline import Deadline
from clusterduck.model import State


def test_without_a_known_end_runs_are_started_and_sigterm_is_a_cancellation() -> None:
    deadline = Deadline(None, 120, 3600)
    assert deadline.too_short_for_a_run(0) is None
    assert deadline.last_call is None
    assert deadline.meaning_of_term(0)[0] is State.CANCELLED


def test_a_run_that_cannot_end_in_time_is_not_started_once_it_is_known_how_long_one_takes() -> None:
    deadline = Deadline(3600, 120, None)
    assert deadline.last_call == 3570
    assert deadline.too_short_for_a_run(3500) is None
    deadline.ran(100)
    deadline.ran(50)
    assert deadline.too_short_for_a_run(3400) is None
    why = deadline.too_short_for_a_run(3500)
    assert why is not None
    assert "70 s are left" in why
    assert "100 s (the longest run so far)" in why


def test_what_the_user_expects_outranks_what_was_measured() -> None:
    deadline = Deadline(3600, 120, 600)
    deadline.ran(10)
    assert deadline.too_short_for_a_run(2960) is None
    assert "expected_run_min" in str(deadline.too_short_for_a_run(2980))


def test_a_warning_long_before_the_end_is_about_preemption() -> None:
    deadline = Deadline(3600, 120, None)
    assert "time limit" in deadline.warned(3480)
    assert deadline.meaning_of_term(3500)[0] is State.CANCELLED
    assert deadline.meaning_of_term(3590)[0] is State.TIMEOUT
    assert "preempt" in deadline.warned(1000)
    assert deadline.meaning_of_term(1010)[0] is State.PREEMPTED
