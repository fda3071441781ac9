"""The timeline of more slots than are read at once, and what stands in a row and on a card where room is short."""

from __future__ import annotations

from pathlib import Path

from dashboards import Open, make_live
from journals_builder import SweepBuilder

from clusterduck.ledger.history import Lane
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


async def test_a_long_override_shows_its_value_on_a_card(project: Path, opened: Open) -> None:
    make_live(project, ["model.encoder.some_really_long_name_that_goes_on=adamw"])
    async with opened() as it:
        await it.press("2")
        await it.see("some_re…=adamw")
