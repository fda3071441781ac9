"""The agent's decisions: a bare state fed with events, and laws that hold whatever the events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clusterduck.agent.state import (
    AgentState,
    AskToEnd,
    CancelAsked,
    Claim,
    Claimed,
    Command,
    Dismiss,
    Doubted,
    Drained,
    Drop,
    Ended,
    Finish,
    MoreToClaim,
    Reassured,
    Release,
    SlotOpened,
    StandBy,
    Start,
    StopAsked,
)
from clusterduck.model import Attempt, State


def attempts(first: int, count: int) -> tuple[Attempt, ...]:
    return tuple(Attempt(run, 1) for run in range(first, first + count))


def test_it_claims_for_free_slots_first_and_starts_what_it_got() -> None:
    state = AgentState(slots=2, left=10, claimants=0)
    assert state.handle(SlotOpened(0)) == [Claim(1)]
    assert state.handle(SlotOpened(1)) == [Claim(1)]
    assert state.handle(Claimed(1, attempts(0, 1), 9)) == [Start(0, Attempt(0, 1)), Claim(1)]
    assert state.handle(Claimed(1, attempts(1, 1), 8)) == [Start(1, Attempt(1, 1)), Claim(1)]
    assert state.busy == {0: Attempt(0, 1), 1: Attempt(1, 1)}


def test_an_attempt_held_ready_starts_at_once_when_a_slot_is_free() -> None:
    state = AgentState(slots=1, left=3, claimants=0)
    state.handle(SlotOpened(0))
    assert state.handle(Claimed(1, attempts(0, 1), 2)) == [Start(0, Attempt(0, 1)), Claim(1)]
    state.handle(Claimed(1, attempts(1, 1), 1))
    assert state.handle(Ended(0, State.COMPLETED)) == [Start(0, Attempt(1, 1)), Claim(1)]


def test_what_is_ready_is_prepared_for_a_busy_slot_and_starts_there() -> None:
    state = AgentState(slots=2, left=5, claimants=0, standbys=2)
    state.handle(SlotOpened(0))
    state.handle(SlotOpened(1))
    state.handle(Claimed(1, attempts(0, 1), 4))
    state.handle(Claimed(1, attempts(1, 1), 3))
    assert state.handle(Claimed(1, attempts(2, 1), 2)) == [StandBy(0, Attempt(2, 1))]
    assert state.handle(Claimed(1, attempts(3, 1), 1)) == [StandBy(1, Attempt(3, 1))]
    assert state.handle(Ended(1, State.COMPLETED)) == [Start(1, Attempt(3, 1))]
    assert state.handle(Drained()) == [Dismiss(0), Release(attempts(2, 1))]


def test_no_slot_waits_for_what_is_prepared_elsewhere() -> None:
    state = AgentState(slots=2, left=3, claimants=0, standbys=2)
    state.handle(SlotOpened(0))
    state.handle(SlotOpened(1))
    state.handle(Claimed(1, attempts(0, 1), 2))
    state.handle(Claimed(1, attempts(1, 1), 1))
    assert state.handle(Claimed(1, attempts(2, 1), 0)) == [StandBy(0, Attempt(2, 1))]
    assert state.handle(Ended(1, State.COMPLETED)) == [Dismiss(0), Start(1, Attempt(2, 1))]


def test_no_more_is_prepared_than_may_be() -> None:
    state = AgentState(slots=2, left=5, claimants=0, standbys=1)
    state.handle(SlotOpened(0))
    state.handle(SlotOpened(1))
    state.handle(Claimed(1, attempts(0, 1), 4))
    state.handle(Claimed(1, attempts(1, 1), 3))
    assert state.handle(Claimed(1, attempts(2, 1), 2)) == [StandBy(0, Attempt(2, 1))]
    assert state.handle(Claimed(1, attempts(3, 1), 1)) == []
    cancelled = CancelAsked(frozenset(attempts(2, 1)), "you said so", 1.0)
    assert state.handle(cancelled) == [
        Dismiss(0),
        Drop(attempts(2, 1), "you said so"),
        StandBy(0, Attempt(3, 1)),
    ]


def test_the_last_attempts_are_not_claimed_ahead_where_others_claim_too() -> None:
    state = AgentState(slots=2, left=3, claimants=4)
    state.handle(SlotOpened(0))
    state.handle(SlotOpened(1))
    assert state.handle(Claimed(1, attempts(0, 1), 2)) == [Start(0, Attempt(0, 1))]
    assert state.handle(Claimed(1, attempts(1, 1), 1)) == [
        Start(1, Attempt(1, 1))
    ]  # one is left for whoever is free first


def test_nothing_to_claim_ends_well() -> None:
    state = AgentState(slots=2, left=0, claimants=4)
    assert state.handle(SlotOpened(0)) == [Finish()]


def test_stopping_gives_back_what_has_not_started_and_asks_the_rest_to_end() -> None:
    state = AgentState(slots=1, left=3, claimants=0)
    state.handle(SlotOpened(0))
    state.handle(Claimed(1, attempts(0, 1), 2))
    state.handle(Claimed(1, attempts(1, 1), 1))
    stop = StopAsked(State.TIMEOUT, "time is up", 5.0)
    assert state.handle(stop) == [Release(attempts(1, 1)), AskToEnd(0, State.TIMEOUT, "time is up", 5.0, with_job=True)]
    assert state.handle(stop) == []
    assert state.handle(Ended(0, State.CANCELLED)) == [Finish()]
    assert (state.completed, state.unsuccessful) == (0, 1)


def test_in_doubt_nothing_is_started_or_claimed_until_it_is_reassured() -> None:
    state = AgentState(slots=2, left=9, claimants=0)
    state.handle(SlotOpened(0))
    state.handle(Claimed(1, attempts(0, 1), 8))
    state.handle(Claimed(1, attempts(1, 1), 7))
    assert state.handle(Doubted()) == []
    assert state.handle(Ended(0, State.COMPLETED)) == []
    assert state.handle(SlotOpened(1)) == []
    assert state.handle(Reassured()) == [Start(0, Attempt(1, 1)), Claim(2)]


def test_what_is_asked_to_end_in_doubt_does_end() -> None:
    state = AgentState(slots=1, left=2, claimants=0)
    state.handle(SlotOpened(0))
    state.handle(Claimed(1, attempts(0, 1), 1))
    state.handle(Claimed(1, attempts(1, 1), 0))
    state.handle(Doubted())
    ask = AskToEnd(0, State.PREEMPTED, "again", 0.0, with_job=True)
    assert state.handle(StopAsked(State.PREEMPTED, "again", 0.0)) == [Release(attempts(1, 1)), ask]
    assert state.handle(Ended(0, State.PREEMPTED)) == [Finish()]


def test_draining_lets_what_runs_go_on() -> None:
    state = AgentState(slots=1, left=3, claimants=0)
    state.handle(SlotOpened(0))
    state.handle(Claimed(1, attempts(0, 1), 2))
    state.handle(Claimed(1, attempts(1, 1), 1))
    assert state.handle(Drained()) == [Release(attempts(1, 1))]
    assert not state.idle
    assert state.handle(Ended(0, State.COMPLETED)) == [Finish()]


def test_cancelling_ends_what_runs_drops_what_waits_and_passes_over_what_is_not_here() -> None:
    state = AgentState(slots=1, left=3, claimants=0)
    state.handle(SlotOpened(0))
    state.handle(Claimed(1, attempts(0, 1), 2))
    state.handle(Claimed(1, attempts(1, 1), 1))
    commands = state.handle(CancelAsked(frozenset(attempts(0, 2) + attempts(9, 1)), "you said so", 1.0))
    assert commands == [
        AskToEnd(0, State.CANCELLED, "you said so", 1.0),
        Drop(attempts(1, 1), "you said so"),
        Claim(1),
    ]


def test_an_idle_slot_takes_what_is_put_into_the_queue_later() -> None:
    state = AgentState(slots=2, left=1, claimants=0)
    state.handle(SlotOpened(0))
    state.handle(SlotOpened(1))
    state.handle(Claimed(1, attempts(0, 1), 0))
    assert state.idle
    assert state.handle(MoreToClaim(2)) == [Claim(2)]
    assert not state.idle


def test_what_is_set_apart_waits_until_few_enough_slots_are_busy_and_the_others_wait_for_it() -> None:
    state = AgentState(slots=3, left=9, claimants=0, standbys=3)
    for slot in range(3):
        state.handle(SlotOpened(slot))
    commands = state.handle(Claimed(3, attempts(0, 3), 6, {Attempt(0, 1): 1}))
    assert commands == [Start(0, Attempt(1, 1)), Start(1, Attempt(2, 1))], "it is not prepared, nor more claimed"
    assert not state.idle
    assert state.handle(Ended(0, State.COMPLETED)) == []
    assert state.handle(Ended(1, State.COMPLETED)) == [Start(0, Attempt(0, 1)), Claim(1)], "one ahead for its slot"
    assert state.handle(Claimed(1, attempts(3, 1), 5)) == [StandBy(0, Attempt(3, 1))]
    assert state.handle(Ended(0, State.COMPLETED)) == [Start(0, Attempt(3, 1)), Claim(3)]


def test_nothing_is_looked_for_while_a_slot_is_empty_for_the_sake_of_what_is_set_apart() -> None:
    state = AgentState(slots=2, left=1, claimants=0)
    state.handle(SlotOpened(0))
    state.handle(SlotOpened(1))
    assert state.handle(Claimed(1, attempts(0, 1), 0, {Attempt(0, 1): 1})) == [Start(0, Attempt(0, 1))]
    assert not state.idle


def test_a_claim_that_hangs_does_not_hold_up_the_end_and_is_given_back_when_it_comes() -> None:
    state = AgentState(slots=1, left=3, claimants=0)
    state.handle(SlotOpened(0))
    assert state.handle(StopAsked(State.CANCELLED, "stop", 5.0)) == [Finish()]
    assert state.handle(Claimed(1, attempts(0, 1), 2)) == [Release(attempts(0, 1))]


def test_a_claim_that_comes_after_draining_is_given_back() -> None:
    state = AgentState(slots=1, left=3, claimants=0)
    state.handle(SlotOpened(0))
    assert state.handle(Drained()) == []
    assert state.handle(Claimed(1, attempts(0, 1), 2)) == [Release(attempts(0, 1)), Finish()]


@given(
    slots=st.integers(1, 5),
    runs=st.integers(0, 30),
    claimants=st.integers(0, 12),
    rivals=st.integers(0, 10),
    standbys=st.integers(0, 6),
    stop_after=st.one_of(st.none(), st.integers(0, 40)),
    apart=st.dictionaries(st.integers(0, 29), st.integers(1, 5)),
    order=st.randoms(use_true_random=False),
)
def test_whatever_happens_every_claimed_attempt_runs_once_or_is_given_back(
    slots: int,
    runs: int,
    claimants: int,
    rivals: int,
    standbys: int,
    stop_after: int | None,
    apart: dict[int, int],
    order: object,
) -> None:
    state = AgentState(slots, runs, claimants, standbys)
    queue = list(range(runs))
    if claimants:
        del queue[: min(rivals, len(queue))]  # others were faster
    waiting: list[object] = [SlotOpened(slot) for slot in range(slots)]
    started: list[Attempt] = []
    released: list[Attempt] = []
    claimed: list[Attempt] = []
    occupied: dict[int, Attempt] = {}
    prepared: dict[int, Attempt] = {}
    finished = 0
    steps = 0

    def carry_out(commands: list[Command]) -> None:
        nonlocal finished
        for command in commands:
            if isinstance(command, Claim):
                assert command.count > 0
                got = tuple(Attempt(run, 1) for run in queue[: command.count])
                del queue[: command.count]
                claimed.extend(got)
                together = {attempt: apart[attempt.run] for attempt in got if attempt.run in apart}
                waiting.append(Claimed(command.count, got, len(queue), together))
            elif isinstance(command, Start):
                assert command.slot not in occupied
                assert prepared.pop(command.slot, command.attempt) == command.attempt
                occupied[command.slot] = command.attempt
                assert len(occupied) <= min(apart.get(attempt.run, slots) for attempt in occupied.values())
                started.append(command.attempt)
                waiting.append(Ended(command.slot, State.COMPLETED))
            elif isinstance(command, StandBy):
                assert command.slot in occupied
                assert command.slot not in prepared
                prepared[command.slot] = command.attempt
                assert len(set(prepared.values())) == len(prepared) <= standbys
            elif isinstance(command, Dismiss):
                del prepared[command.slot]
            elif isinstance(command, Release):
                assert not set(command.attempts) & set(prepared.values())
                released.extend(command.attempts)
            elif isinstance(command, Finish):
                finished += 1

    while waiting:
        if steps == stop_after:
            carry_out(state.handle(StopAsked(State.CANCELLED, "stop", 5.0)))
        steps += 1
        event = waiting.pop(order.randrange(len(waiting)))  # type: ignore[attr-defined]
        if isinstance(event, Ended):
            del occupied[event.slot]
        carry_out(state.handle(event))  # type: ignore[arg-type]
    assert finished == 1
    assert not prepared
    assert sorted(started + released) == sorted(claimed)
    if stop_after is None or stop_after >= steps:
        assert not queue
        assert not released
