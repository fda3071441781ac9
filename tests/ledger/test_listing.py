"""Lists of runs agree with what Python would make of the rows; what happened over time is what the journals say."""

from __future__ import annotations

import math
import re
import sqlite3
import string
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from journals_builder import SweepBuilder

from clusterduck import events
from clusterduck.errors import ConfigError
from clusterduck.ledger import columns, history, queries
from clusterduck.ledger.columns import are_numbers
from clusterduck.ledger.listing import Listing, Term, order, parse_filter
from clusterduck.ledger.overrides import as_dict
from clusterduck.ledger.queries import Run
from clusterduck.ledger.replica import Replica
from clusterduck.ledger.schema import migrate

SWEEP = "train-x7k2p"


@pytest.fixture
def built(tmp_path: Path) -> SweepBuilder:
    return SweepBuilder(tmp_path)


@pytest.fixture
def connection(built: SweepBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """24 runs in two jobs; runs 6, 13 and 20 failed; four more of a later launch wait."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    built.write_all()
    built.write(built.launch_journal(1), built.launch(4, launch=1, first=24))
    with Replica.open(built.ledger) as replica:
        replica.catch_up()
        yield replica.connection


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("state:failed", lambda run: run.state == "FAILED"),
        ("state:trouble", lambda run: run.state == "FAILED"),
        ("!state:comp", lambda run: run.state != "COMPLETED"),
        ("node:node1", lambda run: run.host == "node1"),
        ("!node:node1", lambda run: run.host != "node1"),
        ("batch:1-0", lambda run: run.batch == "1-0"),
        ("batch:0-", lambda run: run.batch in ("0-0", "0-1")),
        ("!batch:0-1", lambda run: run.batch != "0-1"),
        ("state:failed,comp", lambda run: run.state in ("FAILED", "COMPLETED")),
        ("seed=1", lambda run: run.override_values["seed"] == "1"),
        ("!seed=1 lr=0.001", lambda run: run.override_values["seed"] != "1" and run.override_values["lr"] == "0.001"),
        ("ENDED", lambda run: run.state == "FAILED"),
        ("%", lambda run: False),
        ("convnet node0", lambda run: run.host == "node0"),
        ("", lambda run: True),
    ],
)
def test_filters(connection: sqlite3.Connection, text: str, holds: Callable[[Run], bool]) -> None:
    expected = [run.number for run in queries.runs(connection, SWEEP) if holds(run)]
    assert list(order(connection, Listing(SWEEP, parse_filter(text)))) == expected
    assert list(order(connection, Listing(SWEEP, parse_filter(text), descending=True))) == expected[::-1]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    ("sort", "key"),
    [
        ("state", lambda run: run.state),
        ("attempt", lambda run: run.attempt),
        ("return_value", lambda run: run.return_number),
        ("duration_s", lambda run: run.duration_s),
        ("reason", lambda run: run.reason),
        ("=seed", lambda run: float(run.override_values["seed"])),
        ("=lr", lambda run: float(run.override_values["lr"])),
        ("=nothing", lambda run: None),
    ],
)
def test_orders(
    connection: sqlite3.Connection, sort: str, key: Callable[[Run], float | str | None], descending: bool
) -> None:
    runs = queries.runs(connection, SWEEP)
    valued = [(key(run), run.number) for run in runs if key(run) is not None]
    rest = [run.number for run in runs if key(run) is None]
    expected = [number for _, number in sorted(valued, reverse=descending)] + (rest[::-1] if descending else rest)
    assert list(order(connection, Listing(SWEEP, sort=sort, descending=descending))) == expected


PLANS = [
    {0: ["lr=1e-3", "m=b"], 1: ["+lr=0.001", "m=10"], 2: ["lr=10", "m=9"], 3: ["~lr"]},
    {4: ["lr=9", "m=a"], 5: ["lr=1", "lr=1e-3", "m=c"], 8: ["lr=-1", "m=10"]},
    {6: ["lr=0.5", "m=\u00c4b"], 7: ["lr=nAn"]},
]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_orders_by_overrides_of_several_plans(tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    built = SweepBuilder(tmp_path)
    planned = [events.RunsPlanned(launch=0, runs=list(plan.items())) for plan in PLANS[:parts]]
    built.write(built.launch_journal(), planned)
    texts = {run: its for plan in PLANS[:parts] for run, its in plan.items()}
    with Replica.open(built.ledger) as replica:
        replica.catch_up()
        for key in ("lr", "m", "none"):
            values = {run: as_dict(its)[key] for run, its in sorted(texts.items()) if key in as_dict(its)}
            is_number = all(_is_number(value) for value in values.values())
            ordered = sorted(values, key=lambda run: float(values[run]) if is_number else values[run])
            expected = ordered + [run for run in sorted(texts) if run not in values]
            back = ordered[::-1] + [run for run in sorted(texts, reverse=True) if run not in values]
            assert list(order(replica.connection, Listing(SWEEP, sort=f"={key}"))) == expected
            assert list(order(replica.connection, Listing(SWEEP, sort=f"={key}", descending=True))) == back
        for word in ("lr=1e-3", "LR=1E-3", "lr=1", "0.0", "m=1", "\u00c4", "\u00e4", "~lr", "!lr=1e-3"):
            found = list(order(replica.connection, Listing(SWEEP, parse_filter(word), sort="=m")))
            assert sorted(found) == [run for run, its in sorted(texts.items()) if _holds(its, word)], word


@pytest.mark.parametrize(
    "override",
    ["x={0}", "x={0}e-3", "x=a{0}", "+x={0}", "x=a{1}", "x={1}", "x={2}", "x=a{2}", "x=a{1}b{0}"],
)
def test_orders_by_overrides_that_few_runs_share_or_many(override: str) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        migrate(made, "a new file")
        texts = {run: override.format(run * 7919 % 101, run // 2 * 7919 % 101, run % 5) for run in range(90)}
        plan = [(run, [text]) for run, text in texts.items()]
        columns.write(made, SWEEP, [plan[first : first + 25] for first in range(0, 90, 25)])
        values = {run: text.partition("=")[2] for run, text in texts.items()}
        is_number = _is_number(values[0])
        expected = sorted(values, key=lambda run: float(values[run]) if is_number else values[run])
        assert list(columns.in_order(made, SWEEP, "x")) == expected


FORMS = [
    "x={0}a",
    "x=",
    "+x={0}a",
    "~x",
    "~x={0}",
    'x="{0}"',
    'x={0}", "x={0}',
    "x=\\\\{0}",
    "x=[\u00c4, {0}]",
    "x={0}\udcff",
]


@pytest.mark.parametrize("forms", [FORMS, *([FORMS[0], form] for form in FORMS), ["x=[a, {0}]", "x=x={0}"]])
def test_orders_by_overrides_of_any_form(forms: list[str]) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        migrate(made, "a new file")
        texts = {run: forms[run * 13 // 7 % len(forms)].format(run * 7919 % 31) for run in range(90)}
        plan = [(run, [text]) for run, text in texts.items()]
        columns.write(made, SWEEP, [plan[:20], plan[20:21], plan[21:]])
        expected = sorted(texts, key=lambda run: as_dict([texts[run]])["x"])
        assert list(columns.in_order(made, SWEEP, "x")) == expected


def _is_number(value: str) -> bool:
    try:
        return not math.isnan(float(value))
    except ValueError:
        return False


def _holds(texts: list[str], word: str) -> bool:
    wanted = word.lstrip("!").translate(LOWER)
    lowered = [text.translate(LOWER) for text in texts]
    is_whole = "=" in word
    held = any(text in (wanted, f"+{wanted}") if is_whole else wanted in text for text in lowered)
    return held != word.startswith("!")


#: Lower case for ASCII letters alone.
LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def test_what_is_no_filter_and_no_order(connection: sqlite3.Connection) -> None:
    with pytest.raises(ConfigError, match="'nonsense' is no state"):
        parse_filter("state:nonsense")
    with pytest.raises(ConfigError, match="in the order of"):
        order(connection, Listing(SWEEP, sort="number; DROP TABLE run"))
    assert list(order(connection, Listing(SWEEP, sort="=\udcff"))) == list(range(28))
    assert list(order(connection, Listing(SWEEP, parse_filter("\udcff")))) == []
    assert parse_filter("! a:b x=[1,2]") == (Term("text", "!"), Term("text", "a:b"), Term("override", "x=[1,2]"))


def test_lanes_hold_every_attempt_in_its_slot(connection: sqlite3.Connection) -> None:
    lanes = history.lanes(connection, SWEEP)
    assert len(lanes) == 8
    assert sorted(run for lane in lanes for run, *_ in lane.bars) == list(range(24))
    for lane in lanes:
        assert lane.end is not None
        spans = [(start, end) for *_, start, end in lane.bars]
        assert all(lane.start <= start and end is not None and end <= lane.end for start, end in spans)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans) if end is not None)
    start = min(bar[3] for lane in lanes for bar in lane.bars)
    early = history.lanes(connection, SWEEP, end=start + 5)
    assert sorted(run for lane in early for run, *_ in lane.bars) == [0, 1, 2, 3, 12, 13, 14, 15]
    late = history.lanes(connection, SWEEP, start + 12, start + 15, rows=(1, 4))
    assert [len(lane.bars) for lane in late] == [0, 1, 1, 1, 0, 0, 0, 0]
    assert all(bar[3] < start + 15 and (bar[4] or 0) > start + 12 for lane in late for bar in lane.bars)


def test_runs_planned_by_others_meanwhile_are_not_in_the_order_yet(
    connection: sqlite3.Connection, built: SweepBuilder
) -> None:
    waiting = [built.launch(300, launch=2, first=28)]

    def another_process(sql: str) -> None:
        if "override_part" in sql and waiting:
            built.write(built.launch_journal(2), waiting.pop())
            with Replica.open(built.ledger) as other:
                other.catch_up()

    connection.set_trace_callback(another_process)
    listing = Listing(SWEEP, sort="=seed")
    assert sorted(order(connection, listing)) == list(range(28))
    assert not waiting
    assert sorted(order(connection, listing)) == list(range(328))


def test_no_list_reads_a_table_from_end_to_end(connection: sqlite3.Connection) -> None:
    asked: list[str] = []
    connection.set_trace_callback(asked.append)
    for sort in (*queries.SORTS, "slot", "=seed"):
        order(connection, Listing(SWEEP, sort=sort))
    for words in ("state:failed,running", "state:trouble", "node:node", "batch:-", "seed=1", "convnet"):
        order(connection, Listing(SWEEP, parse_filter(words)))
    are_numbers(connection, SWEEP, "seed")
    history.lanes(connection, SWEEP)
    history.lanes(connection, SWEEP, 0.0, 4e9, rows=(0, 4))
    connection.set_trace_callback(None)
    plans = {
        sql: [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
        for sql in asked
        if sql.startswith(("SELECT", "WITH"))
    }
    assert len(plans) >= 20
    for sql, plan in plans.items():
        assert not [step for step in plan if "AUTOMATIC" in step], (sql, plan)
        assert "TEMP B-TREE" not in " ".join(plan) or "FROM attempt" not in sql, (sql, plan)
        assert not [step for step in plan if re.match(r"SCAN (run|attempt|override_part|agent|batch)\b", step)], (
            sql,
            plan,
        )
        if "run WHERE" in sql:
            assert any("SEARCH run USING" in step for step in plan), (sql, plan)
        if " IN (" in sql:
            assert not any(">?" in step for step in plan), (sql, plan)


def test_the_time_that_slots_were_busy_is_kept(connection: sqlite3.Connection) -> None:
    counted = {
        tuple(key): took
        for *key, took in connection.execute(
            "SELECT batch, restart, node, sum(CAST(round(duration_s * 1000) AS INTEGER)) FROM attempt GROUP BY 1, 2, 3"
        )
    }
    kept = {(agent.batch, agent.restart, agent.node): agent.busy_ms for agent in queries.agents(connection, SWEEP)}
    assert kept == counted
    assert all(kept.values())


def test_pace_and_occupancy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    built = SweepBuilder(tmp_path)
    built.write(built.launch_journal(), built.launch(8))
    at = built.start + 100
    events = [built.agent_started(at, "node1", slots=2), built.started(at, 0), built.ended(at + 40, 0, started_at=at)]
    events += [built.started(at + 40, 1)]
    built.write(built.agent_journal(), events, close=False)
    with Replica.open(built.ledger) as replica:
        replica.catch_up()
        pace = history.pace(replica.connection, SWEEP, pending=6, running=1, now=at + 50)
        assert (pace.typical_s, pace.slots, pace.busy, pace.per_hour) == (40.0, 2, 1, 6.0)
        assert pace.left_s == pytest.approx((6 * 40 + 30) / 2, abs=0.01)
        found = history.occupancy(replica.connection, at + 50)
        assert history.share_of_time([found[SWEEP]]) == pytest.approx(50 / 100, abs=0.001)
