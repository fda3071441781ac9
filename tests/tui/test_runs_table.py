"""The runs' table: filters, orders, marks, and a cursor that belongs to its run."""

from __future__ import annotations

from pathlib import Path

from dashboards import Open, Opened
from journals_builder import SweepBuilder
from textual.widgets import Input

from clusterduck_tui.widgets.runs import Runs, RunsTable


def table(it: Opened) -> RunsTable:
    view = it.app.main.view("runs")
    assert isinstance(view, Runs)
    return view.table


async def at_runs(it: Opened) -> RunsTable:
    await it.press("4")
    await it.fact(lambda: len(table(it).order) > 0)
    return table(it)


async def type_filter(it: Opened, text: str) -> None:
    await it.press("slash")
    it.app.main.query_one("#filter", Input).value = text  # as if it were pasted
    await it.press("enter")


async def test_filters(finished: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        runs = await at_runs(it)
        await type_filter(it, "state:failed")
        await it.fact(lambda: list(runs.order) == [6, 13, 20])
        assert "/ state:failed" in it.text  # it stays visible
        await it.press("escape")
        await it.fact(lambda: len(runs.order) == 24)
        await type_filter(it, "seed=1")
        await it.fact(lambda: list(runs.order) == [2, 3])
        await it.press("escape")
        await type_filter(it, "node:node1 !lr=0.001")
        await it.fact(lambda: list(runs.order) == [13, 15, 17, 19, 21, 23])
        await it.press("escape")
        await type_filter(it, "state:nonsense")
        await it.see("'nonsense' is no state")


async def test_only_trouble(finished: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        runs = await at_runs(it)
        await it.press("f")
        await it.fact(lambda: list(runs.order) == [6, 13, 20])
        await it.press("f")
        await it.fact(lambda: len(runs.order) == 24)


async def test_orders_both_ways_and_the_cursor_stays_with_its_run(finished: SweepBuilder, opened: Open) -> None:
    async with opened(size=(200, 50)) as it:
        runs = await at_runs(it)
        await it.press("j", "j", "j")
        assert runs.chosen == 3
        await it.press("o")
        await it.fact(lambda: runs.order[0] == 23)
        assert runs.chosen == 3
        await it.press("s")  # by state, still the largest first
        await it.fact(lambda: list(runs.order[:3]) == [20, 13, 6])
        assert runs.chosen == 3
        await it.press("s", "o")  # by the first override that varies
        await it.fact(
            lambda: runs.listing is not None and runs.listing.sort == "=lr" and list(runs.order[:2]) == [1, 3]
        )
        await type_filter(it, "seed=1")
        await it.fact(lambda: list(runs.order) == [3, 2])
        assert runs.chosen == 3
        await it.pilot.click(runs, offset=(4, 0))
        await it.fact(lambda: list(runs.order) == [2, 3])
        assert runs.chosen == 3


async def test_marks_and_ranges(finished: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        runs = await at_runs(it)
        await it.press("space", "space", "j")
        assert it.app.known.marked == {0, 1}
        await it.see("2 marked", "●")
        await it.press("v", "j", "j", "v")
        assert it.app.known.marked == {0, 1, 3, 4, 5}
        await it.press("space")
        assert it.app.known.marked == {0, 1, 3, 4}
        await it.press("f")
        await it.fact(lambda: len(runs.order) == 3)
        await it.press("asterisk")
        assert it.app.known.marked == {0, 1, 3, 4, 6, 13, 20}
        await it.press("asterisk")
        assert it.app.known.marked == {0, 1, 3, 4}
        await it.press("escape", "escape")
        assert it.app.known.marked == set()


async def test_a_long_list_scrolls_at_once_and_shows_what_it_scrolled_to(project: Path, opened: Open) -> None:
    built = SweepBuilder(project, "train-cc4gh")
    built.write(built.launch_journal(), built.launch(5000))
    async with opened() as it:
        runs = await at_runs(it)
        await it.press("G")
        assert runs.chosen == 4999
        await it.see("4999", "PENDING")
        await it.fact(lambda: it.text.count("· PENDING") == 19)
        await it.press("ctrl+u")
        assert runs.chosen == 4990
        await it.press("g")
        await it.fact(lambda: runs.chosen == 0 and it.text.count("· PENDING") == 19)
        assert len(runs._runs) < 1000  # it knows only what was near
