"""The timeline of more slots than are read at once."""

from __future__ import annotations

from pathlib import Path

from dashboards import Open
from journals_builder import SweepBuilder

from clusterduck_tui.widgets.chart import TimelineChart


async def test_slots_far_down_are_read_when_they_come_into_view(project: Path, opened: Open) -> None:
    built = SweepBuilder(project)
    built.write_all(runs=180, batches=45)
    async with opened() as it:
        await it.press("3")
        await it.see("180 slots", "node0/0")
        await it.press(*["pagedown"] * 9)
        chart = it.app.main.query_one(TimelineChart)
        await it.fact(lambda: chart.scroll_y == chart.max_scroll_y == 161)
        await it.see("node9/3", "C39")  # agents that began together go by the names of their batches, as text
        await it.press("plus", "plus", "h", "h", "h")
        await it.press("0")
        await it.see("node9/3", "C39")
