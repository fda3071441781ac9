"""What the command line and the dashboard ask, on a ledger that was really folded."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from journals_builder import SweepBuilder

from clusterduck import events
from clusterduck.errors import ConfigError, NotFoundError
from clusterduck.ledger import fold, queries
from clusterduck.ledger.queries import Cursor, Filter

Make = Callable[[], sqlite3.Connection]


def fold_sweep(connection: sqlite3.Connection, sweep: SweepBuilder) -> None:
    root, paths = sweep.paths.root, sweep.paths.journals()
    folded = fold.fold_journals(connection, sweep.sweep, root, paths, clock=time.time, is_time_up=lambda: False)
    assert not folded.problems, folded.problems


@pytest.fixture
def sweep(tmp_path: Path) -> SweepBuilder:
    """A sweep in full swing: one job done, one at work, one waiting."""
    builder = SweepBuilder(tmp_path)
    at = builder.start + 200
    builder.write(builder.launch_journal(), builder.launch(30, batches=3, slots=2))
    builder.write(builder.agent_journal("0-0"), builder.agent(range(10), "node0", slots=2))
    builder.write(
        builder.agent_journal("0-1"),
        [
            builder.agent_started(at, "node1", slots=2, job_id="9001"),
            builder.started(at + 1, 10, slot=0),
            builder.started(at + 2, 11, slot=1),
            builder.located(at + 3, 10),
            builder.beat(at + 4, busy=2, slots=2),
            builder.beat(at + 8, busy=2, slots=2),
            builder.ended(at + 9, 11, state="OUT_OF_MEMORY"),
        ],
        close=False,
    )
    return builder


@pytest.fixture
def ledger(sweep: SweepBuilder, empty: Make) -> Iterator[sqlite3.Connection]:
    connection = empty()
    fold_sweep(connection, sweep)
    yield connection
    connection.close()


def test_sweeps_with_their_counts(ledger: sqlite3.Connection, sweep: SweepBuilder) -> None:
    (found,) = queries.sweeps(ledger)
    assert found == queries.sweep(ledger, sweep.sweep)
    assert (found.id, found.job_name, found.user, found.launches, found.runs) == (sweep.sweep, "train", "ada", 1, 30)
    assert found.folder == str(sweep.paths.sweep_dir)
    assert found.command == ["train.py", "--multirun", "lr=1e-3,1e-4"]
    assert found.created_at == "2025-10-09T08:53:20.000Z"
    assert (found.git_commit, found.git_dirty) == ("0123abc", False)
    counted = {state: count for state, count in found.counts.items() if count}
    assert counted == {"COMPLETED": 9, "FAILED": 1, "OUT_OF_MEMORY": 1, "RUNNING": 1, "PENDING": 18}
    assert found.counts["TIMEOUT"] == 0
    with pytest.raises(NotFoundError):
        queries.sweep(ledger, "train")


def test_names_of_sweeps(tmp_path: Path, empty: Make) -> None:
    connection = empty()
    with pytest.raises(NotFoundError, match="no sweep yet"):
        queries.resolve_sweep(connection, "@last")
    for index, name in enumerate(("train-x7k2p", "train-x8abc", "tr-x7k2p2", "my-eval-b3c4d")):
        sweep = SweepBuilder(tmp_path, name, start=1_760_000_000 + index)
        sweep.write(sweep.launch_journal(), sweep.launch(1))
        fold_sweep(connection, sweep)
    meant = {
        "train-x7k2p": "train-x7k2p",
        "train-x7": "train-x7k2p",
        "train-x8": "train-x8abc",
        "tr-": "tr-x7k2p2",
        "x8": "train-x8abc",
        "my": "my-eval-b3c4d",
        "b3c4d": "my-eval-b3c4d",
        "@last": "my-eval-b3c4d",
    }
    assert {token: queries.resolve_sweep(connection, token) for token in meant} == meant
    with pytest.raises(NotFoundError, match="may mean any of these sweeps: train-x8abc, train-x7k2p"):
        queries.resolve_sweep(connection, "train")
    with pytest.raises(NotFoundError, match="x7k2p2, train-x7k2p"):
        queries.resolve_sweep(connection, "x7k2p")
    for token in ("eval", "", "%", "x9"):
        with pytest.raises(NotFoundError, match="it has my-eval-b3c4d, tr-x7k2p2"):
            queries.resolve_sweep(connection, token)


def test_batches_with_their_first_agent(ledger: sqlite3.Connection, sweep: SweepBuilder) -> None:
    found = queries.batches(ledger, sweep.sweep)
    assert [(b.id, b.job_id, b.state, b.host, b.agent_pid) for b in found] == [
        ("0-0", "9000", "COMPLETED", "node0", 700),
        ("0-1", "9001", "RUNNING", "node1", 700),
        ("0-2", "9002", "PENDING", None, None),
    ]
    assert found[1].share_runs is False
    assert found[1].ends_at == "2025-10-09T09:56:40.000Z"
    assert [b.id for b in queries.batches(ledger, alive=True)] == ["0-1", "0-2"]


def test_jobs_and_all_that_is_in_them_are_in_the_order_of_their_numbers(tmp_path: Path, empty: Make) -> None:
    sweep, connection = SweepBuilder(tmp_path), empty()
    at = sweep.start + 5
    planned = [replace(event, time=at) for event in sweep.launch(12, batches=12)]  # in the same millisecond
    sweep.write(sweep.launch_journal(), planned)
    for batch in [f"0-{number}" for number in reversed(range(12))]:
        sweep.write(sweep.agent_journal(batch), [sweep.agent_started(at + 9, f"of {batch}", slots=2)], close=False)
    fold_sweep(connection, sweep)
    expected = [f"0-{number}" for number in range(12)]
    assert [batch.id for batch in queries.batches(connection)] == expected
    assert [agent.host for agent in queries.agents(connection)] == [f"of {batch}" for batch in expected]
    slots = [(slot.batch, slot.slot) for slot in queries.slots(connection)]
    assert slots == [(batch, slot) for batch in expected for slot in (0, 1)]
    connection.close()


def test_agents_and_slots_with_their_latest_readings(ledger: sqlite3.Connection, sweep: SweepBuilder) -> None:
    assert [agent.host for agent in queries.agents(ledger, sweep.sweep)] == ["node0", "node1"]
    (agent,) = queries.agents(ledger, alive=True)
    assert (agent.host, agent.busy, agent.cpu_percent, agent.memory_bytes) == ("node1", 2, 55.0, 8_000_000_000)
    full, empty_one = queries.slots(ledger)
    assert (full.slot, full.run, full.attempt, full.since) == (0, 10, 1, "2025-10-09T08:56:41.000Z")
    assert (full.host, full.cpus, full.gpus, full.overrides) == ("node1", [0, 1], ["0"], sweep.overrides(10))
    assert (full.sampled_at, full.cpu_percent, full.gpu_memory_bytes) == ("2025-10-09T08:56:48.000Z", 99.5, 2_000_000)
    assert (empty_one.slot, empty_one.run, empty_one.overrides) == (1, None, [])
    assert len(queries.slots(ledger, sweep.sweep, alive=False)) == 4
    readings = ledger.execute("SELECT taken_at FROM sample WHERE batch = '0-1' AND slot = 1 ORDER BY 1").fetchall()
    assert readings == [("2025-10-09T08:56:44.000Z",), ("2025-10-09T08:56:48.000Z",)]


def test_a_run_and_its_attempts(ledger: sqlite3.Connection, sweep: SweepBuilder) -> None:
    run = queries.run(ledger, sweep.sweep, 6)
    assert (run.state, run.attempt, run.reason, run.exception_type) == ("FAILED", 1, "It ended FAILED.", "ValueError")
    assert run.override_values == {"model": "convnet", "lr": "0.001", "seed": "3"}
    (attempt,) = queries.attempts(ledger, sweep.sweep, 6)
    assert attempt.traceback is not None and attempt.traceback.endswith("ValueError: a loss of nan\n")
    assert (attempt.host, attempt.slot, attempt.cpus, attempt.gpus) == ("node0", 0, [0, 1], ["0"])
    assert attempt.log == str(sweep.paths.sweep_dir / "6" / "attempt-1.log")
    assert attempt.duration_s == run.duration_s == pytest.approx(9.01)
    good = queries.run(ledger, sweep.sweep, 9)
    assert (good.return_value, good.return_number, good.reason) == ("0.009", 0.009, None)
    assert queries.attempts(ledger, sweep.sweep, 29) == []
    assert queries.run(ledger, sweep.sweep, 29).batch == "0-2"
    with pytest.raises(NotFoundError, match=r"no run 30; it has 30 \(from 0\)"):
        queries.run(ledger, sweep.sweep, 30)


@pytest.mark.parametrize(
    ("matching", "expected"),
    [
        (Filter(states=["RUNNING"]), [10]),
        (Filter(states=["FAILED", "OUT_OF_MEMORY"]), [6, 11]),
        (Filter(states=["FAILED' OR 1=1 --"]), []),
    ],
)
def test_filters(ledger: sqlite3.Connection, sweep: SweepBuilder, matching: Filter, expected: list[int]) -> None:
    assert [run.number for run in queries.runs(ledger, sweep.sweep, matching)] == expected


@pytest.mark.parametrize("sort", queries.SORTS)
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("matching", [queries.EVERY_RUN, Filter(states=["COMPLETED", "PENDING"])])
def test_pages_join_to_the_whole(
    ledger: sqlite3.Connection, sweep: SweepBuilder, sort: str, descending: bool, matching: Filter
) -> None:
    whole = queries.runs(ledger, sweep.sweep, matching, sort=sort, descending=descending)
    values = [queries.cursor(run, sort) for run in whole]
    known = [value for value in values if value.value is not None]
    assert known == sorted(known, reverse=descending)
    assert values[len(known) :] == sorted(values[len(known) :], key=lambda c: c.number, reverse=descending)
    for size in (1, 4, 7):
        pages: list[queries.Run] = []
        after: Cursor | None = None
        while page := queries.runs(
            ledger, sweep.sweep, matching, sort=sort, descending=descending, after=after, limit=size
        ):
            assert len(page) <= size
            pages += page
            after = queries.cursor(page[-1], sort)
        assert pages == whole


def test_a_sort_that_there_is_not_is_a_sentence(ledger: sqlite3.Connection, sweep: SweepBuilder) -> None:
    with pytest.raises(ConfigError, match="cannot be sorted by 'number; DROP TABLE run'"):
        queries.runs(ledger, sweep.sweep, sort="number; DROP TABLE run")


def test_varying_keys(ledger: sqlite3.Connection, sweep: SweepBuilder, tmp_path: Path) -> None:
    assert queries.varying_keys(ledger, sweep.sweep) == ["lr", "seed"]
    other = SweepBuilder(tmp_path, "other-a2b3c")
    planned = [(0, ["a=1", "~b", "++c.d=x=y"]), (1, ["c.d=x=y", "a=1", "e@f=g"]), (2, ["a=1", "c.d=x=y", "a=2"])]
    other.write(other.launch_journal(), [events.RunsPlanned(launch=0, runs=planned)])
    fold_sweep(ledger, other)
    assert queries.varying_keys(ledger, other.sweep) == ["a", "b", "e@f"]


def test_acts(ledger: sqlite3.Connection, sweep: SweepBuilder) -> None:
    sweep.write(
        sweep.act_journal("close-1"),
        [events.BatchClosed(time=sweep.start + 999, batch="0-2", state="CANCELLED", reason="scancel")],
    )
    fold_sweep(ledger, sweep)
    (act,) = queries.acts(ledger, sweep.sweep)
    assert (act.kind, act.batch, act.state, act.reason) == ("batch_closed", "0-2", "CANCELLED", "scancel")
    assert queries.batches(ledger, alive=True)[0].id == "0-1"


def test_no_question_leaves_a_cursor_open(sweep: SweepBuilder, empty: Make, tmp_path: Path) -> None:
    """A reader that leaves its cursor open would make every writer wait."""
    source = empty()
    fold_sweep(source, sweep)
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as copy:
        source.backup(copy)
    copy.close()
    reader = sqlite3.connect(path, isolation_level=None)
    writer = sqlite3.connect(path, timeout=0, isolation_level=None)
    asked = [
        queries.sweeps(reader),
        queries.batches(reader),
        queries.agents(reader),
        queries.slots(reader),
        queries.runs(reader, sweep.sweep, limit=3),
        queries.attempts(reader, sweep.sweep, 0),
        queries.varying_keys(reader, sweep.sweep),
    ]
    assert all(asked)
    writer.execute("DELETE FROM run")
    reader.close()
    writer.close()


def test_pages_of_a_large_sweep_use_an_index(ledger: sqlite3.Connection, sweep: SweepBuilder) -> None:
    """What makes them fast at 100,000 runs: no page of a sort that people use sorts or scans."""
    asked: list[str] = []
    ledger.set_trace_callback(asked.append)
    for sort in ("number", "state", "ended_at", "duration_s", "return_value"):
        for descending in (False, True):
            after = Cursor(1 if sort in ("duration_s", "return_value") else "a", 3)
            queries.runs(ledger, sweep.sweep, sort=sort, descending=descending, after=after, limit=1)
            queries.runs(ledger, sweep.sweep, sort=sort, descending=descending, limit=1)
    ledger.set_trace_callback(None)
    assert len(asked) >= 20
    for sql in asked:
        plan = " ".join(row[3] for row in ledger.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall())
        assert "TEMP B-TREE" not in plan and "SEARCH run USING INDEX" in plan, (sql, plan)
