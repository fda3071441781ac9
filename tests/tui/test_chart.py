"""The timeline of more slots than are read at once, and what stands in a row and on a card where room is short."""

from __future__ import annotations

from pathlib import Path

import pytest
from dashboards import Open, make_live
from journals_builder import SweepBuilder

from clusterduck.ledger import history
from clusterduck.ledger.history import Lane
from clusterduck.ledger.replica import Replica
from clusterduck_tui.messages import ALL_TIME
from clusterduck_tui.widgets.chart import TimelineChart, lane_cells


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


@pytest.mark.parametrize("columns", [9, 10])
def test_a_slot_of_which_not_all_attempts_are_read_looks_the_same(
    tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    built = SweepBuilder(tmp_path)
    built.write_all(runs=1200, batches=1)  # 300 to a slot
    with Replica.open(built.ledger) as replica:
        replica.catch_up()
        whole = history.lanes(replica.connection, built.sweep)
        first, last = whole[0].start, whole[0].end
        assert last is not None
        for start, end in ((None, None), (first + 50, last - 70)):
            low, high = start or first, end or last
            some = history.lanes(replica.connection, built.sweep, start, end, pieces=2 * columns)
            for every, its in zip(whole, some, strict=True):
                assert 10 < len(its.bars) < 5 * columns < len(every.bars)
                window = (low, high)
                assert lane_cells(its, window, columns, ALL_TIME) == lane_cells(every, window, columns, ALL_TIME)
                elsewhere = (low + (high - low) * 0.02, high)  # other columns: another run stands for some of them
                cells = [
                    "".join(cell for cell, _ in lane_cells(one, elsewhere, columns, ALL_TIME)) for one in (its, every)
                ]
                assert cells[0] == cells[1]


async def test_a_long_override_shows_its_value_on_a_card(project: Path, opened: Open) -> None:
    make_live(project, ["model.encoder.some_really_long_name_that_goes_on=adamw"])
    async with opened() as it:
        await it.press("2")
        await it.see("some_re…=adamw")
