"""The ledger is a function of what the journals say: of no order, and of no number of times that it is said."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals_builder import SweepBuilder, kept_counts, recount, tables

from clusterduck import events
from clusterduck.ledger import fold, queries, schema


def fold_all(connection: sqlite3.Connection, sweep: SweepBuilder, paths: list[Path]) -> None:
    for path in paths:  # one by one
        done = fold.fold_journals(
            connection, sweep.sweep, sweep.paths.root, [path], clock=time.time, is_time_up=lambda: False
        )
        assert not done.problems, done.problems


def with_second_segment(base: Path) -> tuple[SweepBuilder, list[Path]]:
    """Two jobs: the agent of one had to begin a second segment, the other one's died and its job was closed."""
    sweep = SweepBuilder(base)
    at = sweep.start + 100
    told = sweep.agent(range(6), "node0", slots=2)
    torn = [*told[:9], sweep.started(at + 50, 11, slot=1)]  # the last of them is not in the second segment
    paths = [
        sweep.write(sweep.launch_journal(), sweep.launch(12, batches=2, slots=2)),
        sweep.write(sweep.agent_journal("0-0"), torn, close=False),
        sweep.write(sweep.agent_journal("0-0", segment=1), told[5:]),
        sweep.write(
            sweep.agent_journal("0-1"),
            [
                sweep.agent_started(at, "node1", slots=2),
                sweep.started(at + 1, 6, slot=0),
                sweep.started(at + 1, 7, slot=1),
                sweep.located(at + 2, 6),
                sweep.beat(at + 3, busy=2, slots=2),
                sweep.ended(at + 9, 6, started_at=at + 1.5),
            ],
            close=False,
        ),
        sweep.write(
            sweep.act_journal("close-1"),
            [
                events.BatchClosed(time=at + 300, batch="0-1", state="NODE_FAIL", reason="Slurm says: NODE_FAIL"),
                events.RunsClosed(time=at + 301, ranges=[(8, 10), (5, 6)], state="CANCELLED", reason="by ada"),
            ],
        ),
    ]
    return sweep, paths


def with_restart(base: Path) -> tuple[SweepBuilder, list[Path]]:
    """A job that was called dead, started again, and died again; one of its runs left a result that somebody found."""
    sweep = SweepBuilder(base)
    at = sweep.start + 100
    result = sweep.ended(at + 330, 4, started_at=at + 301)
    paths = [
        sweep.write(sweep.launch_journal(), sweep.launch(8, slots=2)),
        sweep.write(
            sweep.agent_journal("0-0"),
            [
                sweep.agent_started(at, "node0", slots=2),
                sweep.started(at + 1, 0, slot=0),
                sweep.started(at + 1, 1, slot=1),
                sweep.ended(at + 5, 0, state="FAILED"),
                sweep.started(at + 6, 2, slot=0),
            ],
            close=False,
        ),
        sweep.write(
            sweep.agent_journal("0-0", restart=1),
            [
                sweep.agent_started(at + 300, "node1", slots=2),
                sweep.started(at + 301, 0, attempt=2, slot=0),
                sweep.started(at + 301, 4, slot=1),
                sweep.ended(at + 310, 0, attempt=2),
                sweep.started(at + 311, 5, slot=0),
                sweep.beat(at + 320, busy=2, slots=2),
            ],
            close=False,
        ),
        sweep.write(
            sweep.act_journal("close-2"),
            [
                events.AttemptEnded(**{**vars(result), "agent": "0-0/1.0"}),
                events.AttemptEnded(**{**vars(sweep.ended(at + 7, 0, state="CANCELLED")), "agent": "0-0/0.0"}),
                events.BatchClosed(time=at + 400, batch="0-0", state="TIMEOUT", reason="the second time"),
            ],
        ),
        sweep.write(
            sweep.act_journal("close-3"),
            [
                events.AttemptEnded(**{**vars(result), "time": at + 333, "reason": "x", "agent": "0-0/1.0"}),
                events.BatchClosed(time=at + 401, batch="0-0", state="FAILED", reason="another host, a bit later"),
                events.BatchClosed(time=at + 120, batch="0-0", state="NODE_FAIL", reason="the first time"),
                events.RunsClosed(time=at + 405, ranges=[(0, 7)], state="CANCELLED", reason="by ada"),
                events.RunsClosed(time=at + 404, ranges=[(6, 8)], state="CANCELLED", reason="by bob"),
            ],
        ),
    ]
    return sweep, paths


def with_requeue(base: Path) -> tuple[SweepBuilder, list[Path]]:
    """Runs that people put back into the queue, some of which they then cancelled, and one that another job took."""
    sweep = SweepBuilder(base)
    at = sweep.start + 500
    ada = {"user": "ada", "host": "login1"}
    again = events.AttemptsRequeued(
        time=at, attempts=[(1, 2), (2, 2), (3, 2)], kind="person", reason="once more", overrides=["lr=1"], **ada
    )
    paths = [
        sweep.write(sweep.launch_journal(), sweep.launch(8, batches=2, slots=2)),
        sweep.write(sweep.agent_journal("0-0"), sweep.agent(range(4), "node0", slots=2)),
        sweep.write(
            sweep.act_journal("requeue-1"),
            [
                again,
                events.AttemptsCancelled(time=at + 9, attempts=[(3, 2), (7, 1)], reason="by ada", **ada),
                events.Asked(time=at + 10, kind="cancel", batches=["0-1"], attempts=[(1, 2)], **ada),
            ],
        ),
        sweep.write(
            sweep.act_journal("cancel-2"),
            [
                again,
                events.AttemptsCancelled(time=at + 8, attempts=[(3, 2), (1, 2)], reason="by bob", user="b", host="h"),
                events.RunsClosed(time=at + 7, ranges=[(5, 8)], state="CANCELLED", reason="by eve"),
            ],
        ),
        sweep.write(
            sweep.agent_journal("0-1"),
            [sweep.agent_started(at, "node1", slots=2), sweep.started(at + 5, 1, attempt=2)],
            close=False,
        ),
    ]
    return sweep, paths


def with_preemption(base: Path) -> tuple[SweepBuilder, list[Path]]:
    """A job whose launcher died before it could write down its id; it was preempted, and went on at its next start."""
    sweep = SweepBuilder(base)
    at = sweep.start + 100
    launched = [event for event in sweep.launch(4, slots=2) if not isinstance(event, events.BatchSubmitted)]
    ended = [
        events.AttemptEnded(**{**vars(sweep.ended(at + 20, run, state="CANCELLED")), "by_job_end": True})
        for run in (0, 1)
    ]
    again = events.AttemptsRequeued(
        time=at + 50,
        attempts=[(0, 2)],
        kind="restart",
        reason="it ended with its job",
        user="ada",
        host="n",
        batch="0-0",
    )
    paths = [
        sweep.write(sweep.launch_journal(), launched[:-1], close=False),
        sweep.write(
            sweep.agent_journal("0-0"),
            [
                sweep.agent_started(at, "node0", slots=2, job_id="9000"),
                sweep.started(at + 1, 0, slot=0),
                sweep.started(at + 1, 1, slot=1),
                *ended,
                events.AgentEnded(time=at + 21, reason="the job was cancelled, or preempted", exit_code=1),
            ],
        ),
        sweep.write(sweep.act_journal("recovery-0-0-1.0"), [again]),
        sweep.write(
            sweep.agent_journal("0-0", restart=1),
            [
                sweep.agent_started(at + 60, "node1", slots=2, job_id="9000"),
                sweep.started(at + 61, 0, attempt=2, slot=0),
                sweep.ended(at + 70, 0, attempt=2, started_at=at + 61),
            ],
            close=False,
        ),
        sweep.write(
            sweep.act_journal("requeue-1"),
            [
                events.BatchPlanned(
                    time=at + 80,
                    batch="r1-0",
                    launch=0,
                    first=0,
                    stop=0,
                    nodes=1,
                    slots_per_node=2,
                    share_runs=False,
                    attempts=[(1, 2)],
                )
            ],
        ),
    ]
    return sweep, paths


def preempted_twice(base: Path) -> tuple[SweepBuilder, list[Path]]:
    """A job that was ended and started again twice; a part of its first journal was written twice."""
    sweep = SweepBuilder(base)
    planned = [event for event in sweep.launch(6, slots=2) if not isinstance(event, events.BatchSubmitted)]
    paths = [sweep.write(sweep.launch_journal(), planned)]
    for restart, run in ((0, 0), (1, 1), (2, 2)):
        at = sweep.start + 100 + 1000 * restart
        ended = vars(sweep.ended(at + 9, run, state="CANCELLED")) | {"by_job_end": True}
        new = [
            sweep.agent_started(at, f"node{restart}", slots=2),
            sweep.started(at + 1, run),
            events.AttemptEnded(**ended),
            events.AgentEnded(time=at + 10, reason="Slurm ended the job", exit_code=1, timed_out=restart == 2),
        ]
        paths.append(sweep.write(sweep.agent_journal(restart=restart), new))
        if restart == 0:
            paths.append(sweep.write(sweep.agent_journal(restart=restart, segment=1), new[1:]))
    return sweep, paths


def test_what_became_of_runs_preempted_one_after_the_other(
    tmp_path: Path, empty: Callable[[], sqlite3.Connection]
) -> None:
    sweep, paths = preempted_twice(tmp_path)
    replica = empty()
    fold_all(replica, sweep, paths)
    states = replica.execute("SELECT state FROM run ORDER BY number").fetchall()
    assert states == [("PREEMPTED",), ("PREEMPTED",), ("CANCELLED",), *[("PENDING",)] * 3]
    assert replica.execute("SELECT state, job_id, reason FROM batch").fetchall() == [
        ("TIMEOUT", "9000", "Slurm ended the job")
    ]


#: For folders whose names are all of one length, so that the same example has the same bytes.
NUMBERS = itertools.count(10_000)


def in_doubt(base: Path) -> tuple[SweepBuilder, list[Path]]:
    """Five jobs. Of four nobody knew whether Slurm took them: one was found late, of one the agent spoke, one was never
    taken, and of one nobody knows it yet. The fifth was refused."""
    sweep = SweepBuilder(base)
    at = sweep.start + 100
    launch = sweep.launch(10, batches=5, slots=2)
    submitted = [event for event in launch if isinstance(event, events.BatchSubmitted)]
    doubts = [events.SubmissionDoubted(time=at, batch=f"0-{index}", reason="no answer") for index in (0, 1, 3, 4)]
    never = [
        events.BatchClosed(time=at + 60, batch=f"0-{index}", state="FAILED", reason="never taken", unsubmitted=True)
        for index in (0, 1, 2, 3)
    ]
    refused = events.RunsClosed(time=at, ranges=[(4, 6)], state="FAILED", reason="refused")
    paths = [
        sweep.write(sweep.launch_journal(), [*(event for event in launch if event not in submitted), *doubts, refused]),
        sweep.write(sweep.act_journal("adopt-1"), never),
        sweep.write(sweep.act_journal("adopt-2"), submitted[:1]),
        sweep.write(
            sweep.agent_journal("0-1"),
            [sweep.agent_started(at + 61, "node1", slots=2), sweep.started(at + 62, 2), sweep.started(at + 62, 3)],
            close=False,
        ),
    ]
    return sweep, paths


def test_what_became_of_jobs_in_doubt(tmp_path: Path, empty: Callable[[], sqlite3.Connection]) -> None:
    sweep, paths = in_doubt(tmp_path)
    connection = empty()
    fold_all(connection, sweep, paths)
    batches = queries.batches(connection, sweep.sweep)
    assert [(batch.state, batch.job_id, batch.reason) for batch in sorted(batches, key=lambda batch: batch.id)] == [
        ("PENDING", "9000", None),
        ("RUNNING", "9000", None),
        ("FAILED", None, "never taken"),
        ("FAILED", None, "never taken"),
        ("PENDING", None, "no answer"),
    ]
    states = [run.state for run in queries.runs(connection, sweep.sweep)]
    assert states == ["PENDING"] * 2 + ["RUNNING"] * 2 + ["FAILED"] * 2 + ["PENDING"] * 4


SCENES = [with_second_segment, with_restart, with_requeue, with_preemption, preempted_twice, in_doubt]


@pytest.mark.parametrize("scene", SCENES)
def test_every_order_of_journals_gives_the_same_tables(
    scene: Callable[[Path], tuple[SweepBuilder, list[Path]]],
    tmp_path: Path,
    empty: Callable[[], sqlite3.Connection],
) -> None:
    sweep, paths = scene(tmp_path)
    first = empty()
    fold_all(first, sweep, paths)
    expected = tables(first)
    assert kept_counts(first, sweep.sweep) == recount(first, sweep.sweep)
    for order in itertools.permutations(paths):
        replica = empty()
        fold_all(replica, sweep, list(order))
        assert tables(replica) == expected, [path.name for path in order]
        replica.close()


def test_what_the_restarted_job_left(tmp_path: Path, empty: Callable[[], sqlite3.Connection]) -> None:
    sweep, paths = with_restart(tmp_path)
    replica = empty()
    fold_all(replica, sweep, paths)
    runs = replica.execute("SELECT number, attempt, state, reason, duration_s FROM run ORDER BY number").fetchall()
    assert runs == [
        (0, 2, "COMPLETED", None, 9.0),
        (1, 1, "NODE_FAIL", "the first time", 119.0),
        (2, 1, "NODE_FAIL", "the first time", 114.0),
        (3, 0, "CANCELLED", "by ada", None),
        (4, 1, "COMPLETED", None, 29.0),
        (5, 1, "TIMEOUT", "the second time", 89.0),
        (6, 0, "CANCELLED", "by bob", None),
        (7, 0, "CANCELLED", "by bob", None),
    ]
    batch = replica.execute("SELECT state, reason, started_at, ended_at FROM batch").fetchall()
    assert batch == [("TIMEOUT", "the second time", "2025-10-09T09:00:00.000Z", "2025-10-09T09:01:40.000Z")]
    assert replica.execute("SELECT count(*) FROM slot WHERE run IS NOT NULL").fetchone() == (0,)
    assert replica.execute("SELECT state FROM attempt WHERE run = 0 AND number = 1").fetchone() == ("FAILED",)


def test_what_became_of_requeued_runs(tmp_path: Path, empty: Callable[[], sqlite3.Connection]) -> None:
    sweep, paths = with_requeue(tmp_path)
    replica = empty()
    fold_all(replica, sweep, paths)
    runs = replica.execute("SELECT number, attempt, state, reason, batch FROM run ORDER BY number").fetchall()
    assert runs == [
        (0, 1, "COMPLETED", None, "0-0"),
        (1, 2, "RUNNING", None, "0-1"),
        (2, 2, "PENDING", None, None),
        (3, 2, "CANCELLED", "by bob", None),
        (4, 0, "PENDING", None, "0-1"),
        (5, 0, "CANCELLED", "by eve", "0-1"),
        (6, 0, "CANCELLED", "by eve", "0-1"),
        (7, 1, "CANCELLED", "by ada", None),
    ]
    acts = replica.execute("SELECT kind, run, attempt, user FROM act ORDER BY at").fetchall()
    assert acts == [
        ("requeue", None, None, "ada"),
        ("runs_closed", None, None, None),
        ("cancel", None, None, "b"),
        ("cancel", None, None, "ada"),
        ("ask_cancel", 1, 2, "ada"),
    ]


def test_what_became_of_a_preempted_job(tmp_path: Path, empty: Callable[[], sqlite3.Connection]) -> None:
    sweep, paths = with_preemption(tmp_path)
    replica = empty()
    fold_all(replica, sweep, paths)
    attempts = replica.execute("SELECT run, number, state, by_job_end FROM attempt ORDER BY run, number").fetchall()
    assert attempts == [(0, 1, "PREEMPTED", 1), (0, 2, "COMPLETED", 0), (1, 1, "PREEMPTED", 1)]
    (reason,) = replica.execute("SELECT reason FROM run WHERE number = 1").fetchone()
    assert reason == "Its job was preempted or requeued: Slurm started it again."
    first, again = queries.batches(replica, sweep.sweep)
    assert (first.job_id, first.cluster, first.state) == ("9000", "slurm", "RUNNING")
    assert (again.job_id, again.state, again.attempts) == (None, "PENDING", [(1, 2)])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_journals_folded_in_turns_give_the_same_tables(
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
    empty: Callable[[], sqlite3.Connection],
) -> None:
    """Stretch by stretch, a few lines at a time, from whichever journal comes next."""
    scene = data.draw(st.sampled_from(SCENES))
    sweep, paths = scene(tmp_path_factory.mktemp(f"turns-{next(NUMBERS)}", numbered=False))
    whole = empty()
    fold_all(whole, sweep, paths)
    replica = empty()
    stretch = data.draw(st.integers(300, 2500))
    left = list(paths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "STRETCH_BYTES", stretch)
        while left:
            path = data.draw(st.sampled_from(left))
            folded = fold.fold_journals(
                replica, sweep.sweep, sweep.paths.root, [path], clock=time.time, is_time_up=lambda: True
            )
            if not folded.left:
                left.remove(path)
            assert kept_counts(replica, sweep.sweep) == recount(replica, sweep.sweep)
    assert tables(replica) == tables(whole)
    replica.close()
    whole.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_journals_folded_into_a_file_that_nobody_reads_give_the_same_tables(
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
    empty: Callable[[], sqlite3.Connection],
) -> None:
    """Plans are held back there until more is known of a run, or too many are."""
    scene = data.draw(st.sampled_from(SCENES))
    sweep, paths = scene(tmp_path_factory.mktemp(f"private-{next(NUMBERS)}", numbered=False))
    whole, private = empty(), empty()
    fold_all(whole, sweep, paths)
    for name in schema.SELDOM_NEEDED:
        private.execute(f"DROP INDEX {name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "STRETCH_BYTES", data.draw(st.integers(300, 2500)))
        patch.setattr(fold, "STRETCHES_AT_ONCE", data.draw(st.integers(1, 4)))
        patch.setattr(fold, "MOST_HELD", data.draw(st.sampled_from([0, 3, 100])))
        patch.setattr(fold, "RELEASED_AT_ONCE", data.draw(st.integers(1, 5)))
        folded = fold.fold_journals(
            private,
            sweep.sweep,
            sweep.paths.root,
            data.draw(st.permutations(paths)),
            clock=time.time,
            is_time_up=lambda: False,
            is_private=True,
        )
    assert not folded.problems and not folded.left
    assert tables(private) == tables(whole)
    private.close()
    whole.close()


@pytest.mark.parametrize("scene", SCENES)
def test_journals_folded_in_one_transaction_give_the_same_tables(
    scene: Callable[..., tuple[SweepBuilder, list[Path]]], tmp_path: Path, empty: Callable[[], sqlite3.Connection]
) -> None:
    sweep, paths = scene(tmp_path)
    one_by_one, together = empty(), empty()
    fold_all(one_by_one, sweep, paths)
    transactions: list[str] = []
    together.set_trace_callback(lambda sql: transactions.append(sql) if sql.startswith("BEGIN") else None)
    done = fold.fold_journals(together, sweep.sweep, sweep.paths.root, paths, clock=time.time, is_time_up=lambda: False)
    assert not done.problems and done.journals == len(paths) > 1 == len(transactions)
    assert tables(together) == tables(one_by_one)


def test_folding_again_from_the_start_changes_nothing(tmp_path: Path, empty: Callable[[], sqlite3.Connection]) -> None:
    sweep, paths = with_second_segment(tmp_path)
    replica = empty()
    fold_all(replica, sweep, paths)
    before = tables(replica)
    replica.execute("DELETE FROM journal")  # as if every segment had been written a second time
    fold_all(replica, sweep, paths)
    assert tables(replica) == before
