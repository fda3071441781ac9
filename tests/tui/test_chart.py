"""The timeline of more slots than are read at once, and what stands in a row and on a card where room is short."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboards import Open, make_live
from journals_builder import SweepBuilder

from clusterduck.ledger import history
from clusterduck.ledger.history import Lane
from clusterduck.ledger.replica import Replica
from clusterduck_tui.messages import ALL_TIME
from clusterduck_tui.widgets.chart import IDLE, TimelineChart, lane_cells


async def test_slots_far_down_are_read_when_they_come_into_view(project: Path, opened: Open) -> None:
    built = SweepBuilder(project)
    built.write_all(runs=180, batches=45)
    async with opened() as it:
        await it.press("3")
        await it.see("180 slots", "node0/0")
        await it.press(*["pagedown"] * 9)
        chart = it.app.main.query_one(TimelineChart)
        await it.fact(lambda: chart.scroll_y == chart.max_scroll_y == 160)
        await it.see("node9/3", "C39")  # agents that began together go by the names of their batches, as text
        await it.press("plus", "plus", "h", "h", "h")
        await it.press("0")
        await it.see("node9/3", "C39")


def test_a_runs_number_does_not_stand_behind_another_ones_letter() -> None:
    bars = ((3, 1, "FAILED", 10.1, 10.4), (16, 1, "RUNNING", 10.5, None))
    lane = Lane("0-0", 0, 0, 0, "node1", 5.0, 20.0, bars)
    cells = lane_cells(lane, (0.0, 20.0), 20, ALL_TIME)
    assert "".join(cell for cell, _ in cells) == "     ░░░░░FR16──────"


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[sqlite3.Connection, str]]:
    """A ledger whose sweep has 300 attempts in each of 4 slots: one pauses, in one nothing fails, one is at work."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    built = SweepBuilder(tmp_path)
    built.write_all(runs=1200, batches=1)
    with Replica.open(built.ledger) as replica:
        replica.catch_up()
        replica.connection.execute("DELETE FROM attempt WHERE slot = 1 AND run BETWEEN 400 AND 800")
        replica.connection.execute("UPDATE attempt SET state = 'COMPLETED' WHERE slot = 2")
        replica.connection.execute("UPDATE attempt SET state = 'FAILED' WHERE run = 1195")
        replica.connection.execute("UPDATE attempt SET state = 'RUNNING', ended_at = NULL WHERE run = 1199")
        yield replica.connection, built.sweep


@pytest.mark.parametrize("columns", [9, 10])
def test_a_slot_of_which_not_all_attempts_are_read_looks_the_same(
    many: tuple[sqlite3.Connection, str], columns: int
) -> None:
    whole = history.lanes(*many)
    first, last = whole[0].start, whole[0].end
    assert last is not None
    column = history.column_s(last - first, columns)
    for at, until in ((None, None), (2, columns - 3)):
        low, high = first + (at or 0) * column, first + (columns if until is None else until) * column
        start, end = (None, None) if at is None else (low, high)
        count = columns if at is None or until is None else until - at
        some = history.lanes(*many, start, end, columns=count)
        for every, its in zip(whole, some, strict=True):
            assert len(its.bars) <= count + 2 < len(every.bars)
            assert its.slot != 3 or at is not None or its.bars[-1][2] == "RUNNING"
            window = (low, high)
            assert lane_cells(its, window, count, ALL_TIME) == lane_cells(every, window, count, ALL_TIME)


def test_of_very_many_slots_some_columns_are_shown_as_one(many: tuple[sqlite3.Connection, str]) -> None:
    columns = 40
    whole, some = history.lanes(*many), history.lanes(*many, columns=columns, most=4 * 120)
    first, last = whole[0].start, whole[0].end
    assert last is not None
    column = history.column_s(last - first, columns)
    for every, its in zip(whole, some, strict=True):
        assert its.piece == pytest.approx(2 * column)
        cells = lane_cells(its, (first, first + columns * column), columns, ALL_TIME)
        looks = []
        for at in range(0, columns, 2):
            low, high = first + at * column, first + (at + 2) * column
            began = [bar for bar in every.bars if low <= bar[3] < high]
            shown = ([bar for bar in began if bar[2] == "FAILED"] or began)[-1:]
            looks.append(shown[0][2][0] if shown else IDLE if high < last else "")
        assert ["".join(cell for cell, _ in cells[at : at + 2]) for at in range(0, columns - 2, 2)] == [
            look * 2 for look in looks[:-1]
        ]
        assert (IDLE in looks) == (its.slot == 1) and ("F" in looks) == (its.slot != 2)
    many[0].execute("DELETE FROM attempt WHERE slot > 0")  # what these do not take is for the one that is left
    assert history.lanes(*many, columns=columns, most=4 * 120)[0].piece == pytest.approx(column)


async def test_a_long_override_shows_its_value_on_a_card(project: Path, opened: Open) -> None:
    make_live(project, ["model.encoder.some_really_long_name_that_goes_on=adamw"])
    async with opened() as it:
        await it.press("2")
        await it.see("some_re…=adamw")
