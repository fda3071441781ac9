"""Each view shows what it is for, and keys lead from one to the other."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest
from dashboards import Open
from journals_builder import SweepBuilder

from clusterduck.events import AgentEnded
from clusterduck_tui import feed
from clusterduck_tui.messages import LedgerState, NodesRead
from clusterduck_tui.widgets.board import NodesBoard
from clusterduck_tui.widgets.logview import LogView
from clusterduck_tui.widgets.run import RunView
from clusterduck_tui.widgets.table import ListTable


async def test_overview_shows_sweeps_and_jobs(finished: SweepBuilder, live: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        text = await it.see("train-bb3fg", "train-aa2de", "Jobs of train-bb3fg: 1 of 1 alive", "3/4 slots")
        lines = text.splitlines()
        assert lines[2].startswith("train-bb3fg") and "3/8" in lines[2]  # the newest first, and what has ended
        assert lines[3].startswith("train-aa2de") and "24/24" in lines[3]
        assert "CC" in lines[3] and "F" in lines[3]
        await it.press("j")
        await it.see("Jobs of train-aa2de: 0 of 2 alive", "9001")


async def test_the_newest_sweep_is_chosen_however_long_reading_takes(
    finished: SweepBuilder, live: SweepBuilder, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one is there first, journal by journal, and what was read once is not read again for hours."""
    monkeypatch.setattr(feed, "STRETCH_S", 0.0)
    monkeypatch.setattr(feed, "SHARE", 1e-9)
    async with opened(wait=False) as it:
        await it.fact(lambda: it.app.known.is_caught_up)
        assert it.app.known.chosen == "train-bb3fg"


async def test_news_do_not_move_the_cursor_that_somebody_moves(
    finished: SweepBuilder, live: SweepBuilder, opened: Open
) -> None:
    """They come before the app has heard of the choice; it goes to and fro meanwhile."""
    async with opened() as it:
        await it.see("Jobs of train-bb3fg", "train-aa2de")
        table = it.app.main.query_one("#sweeps", ListTable)
        overview = it.app.main.view("overview")
        for turns in range(12):  # of the event loop, between two keys
            for steps, sweep in (((1,), "train-aa2de"), ((-1, 1, -1), "train-bb3fg"), ((1, -1), "train-bb3fg")):
                for step in steps:
                    table.action_move(step)
                    it.app.main.show_known()
                    for _ in range(turns):
                        await asyncio.sleep(0)
                meant = overview.sweep_meant()
                assert table.chosen == sweep and meant is not None and meant.id == sweep
                await it.see(f"Jobs of {sweep}")
                it.app.main.show_known()
                assert table.chosen == sweep


async def test_what_is_kept_of_the_board_is_what_would_be_painted_anew(project: Path, opened: Open) -> None:
    """The node under the cursor goes, so that the cursor is on one that has not changed."""
    built = SweepBuilder(project, "train-bb3fg", start=time.time() - 200)
    built.write(built.launch_journal(), built.launch(16, batches=4))
    at = built.start + 100
    for node in range(4):
        events = [built.agent_started(at, f"node{node}")]
        events += [built.started(at + 1, 4 * node + slot, slot=slot) for slot in range(4)]
        built.write(built.agent_journal(f"0-{node}"), events, close=False)
    async with opened(size=(80, 24)) as it:
        await it.press("2")
        await it.see("node0", "run 3")
        await it.press("G")
        await it.see("node3")
        built.write(built.agent_journal("0-3"), [built.ended(at + 2, 15)], close=False)
        await it.see("3: empty")
        built.write(built.agent_journal("0-3"), [AgentEnded(time=at + 2, reason="done", exit_code=0)])
        await it.miss("node3")
        board = it.app.main.query_one(NodesBoard)
        assert board.slot_here is not None and board.slot_here.run == 11
        kept = [board.render_line(y) for y in range(board.size.height)]
        board._painted.clear()
        assert kept == [board.render_line(y) for y in range(board.size.height)]


async def test_nodes_show_slots_loads_and_an_empty_slot(live: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.press("2")
        text = await it.see("3 of 4 slots busy", "75 % now", "so far", "node7")
        assert "run 3" in text and "run 5" in text and "3: empty" in text
        assert "lr=0.0001 seed=1" in text and "model=" not in text  # only what varies
        assert "of ~25 s" in text or "of ~30" in text
        assert "40%" in text and "cpu 4,5 gpu 2" in text
        await it.press("l", "enter")
        await it.see("train-bb3fg/4", "R RUNNING")


async def test_runs_show_what_varies_and_why_runs_failed(finished: SweepBuilder, opened: Open) -> None:
    async with opened(size=(200, 50)) as it:
        await it.press("4")
        text = await it.see("24 runs", "It ended FAILED.")
        heading = text.splitlines()[2]
        assert "lr" in heading and "seed" in heading and "model" not in heading
        assert "node1/3" in text and "0.003" in text


async def test_a_run_with_its_traceback_log_and_config(finished: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.press("5")
        await it.see("no run chosen: press 4, and Enter on one")
        await it.press("4")
        await it.see("24 runs", "C COMPLETED")
        await it.press("j", "j", "j", "j", "j", "j", "enter")
        await it.see("train-aa2de/6", "F FAILED", "ValueError: a loss of nan", "+seed=3", "node0")
        await it.press("t")
        await it.see("this is run 6", "following")
        await it.press("t")
        await it.see("seed: 6")
        await it.press("escape")
        await it.see("overrides")
        await it.press("J", "t")
        await it.see("train-aa2de/7", "this is run 7")
        await it.press("escape", "escape")
        text = await it.see("24 runs")
        assert text.splitlines()[0].startswith(" 1 Overview")


async def test_what_a_run_returned_is_shown_exactly_and_no_longer_than_that(
    finished: SweepBuilder, opened: Open
) -> None:
    async with opened() as it:
        await it.press("4")
        await it.see("24 runs", "C COMPLETED")
        await it.press("j", "j", "j", "enter")
        text = await it.see("train-aa2de/3", "returned  0.003")
        assert "0.0030" not in text


async def test_side_by_side_where_there_is_room(finished: SweepBuilder, opened: Open) -> None:
    async with opened(size=(200, 50)) as it:
        await it.press("4")
        await it.see("C COMPLETED")
        await it.press("enter")
        await it.see("overrides", "this is run 0")
        await it.pilot.resize_terminal(80, 24)
        await it.miss("this is run 0")
        await it.see("overrides")


async def test_timeline_shows_bars_and_gaps(live: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.press("3")
        text = await it.see("4 slots", "node7/0", "node7/3", "C0─", "F2", "R3")
        last = next(line for line in text.splitlines() if line.startswith("node7/3"))
        assert set(last.removeprefix("node7/3").strip()) == {"░"}
        await it.press("plus")
        await it.miss("C0─")
        await it.press("0")
        await it.see("C0─")


async def test_activity_shows_ends_and_acts(finished: SweepBuilder, opened: Open) -> None:
    async with opened(size=(200, 50)) as it:
        await it.press("6")
        text = await it.see("job 9000", "train-aa2de/6", "It ended FAILED.")
        assert text.index("train-aa2de/23") < text.index("train-aa2de/6")  # the latest first


async def test_keys_lead_through_the_views(finished: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.see("train-aa2de")
        for subject in ("nodes", "timeline", "runs", "run", "activity", "overview"):
            await it.press("tab")
            assert it.app.main.front.subject == subject
        await it.press("shift+tab")
        assert it.app.main.front.subject == "activity"
        for _ in range(30):  # Esc goes back, and never quits
            await it.press("escape")
        assert it.app.main.front.subject == "overview"
        assert it.app.is_running


async def test_cards_leave_room_for_the_scroll_bar_that_they_need(project: Path, opened: Open) -> None:
    built = SweepBuilder(project, "train-bb3fg", start=time.time() - 200)
    built.write(built.launch_journal(), built.launch(16, batches=8))
    for node in range(8):
        start = built.agent_started(built.start + 100, f"node{node}")
        built.write(built.agent_journal(f"0-{node}"), [start], close=False)
    async with opened() as it:
        await it.press("2")
        await it.see("node0")
        it.app.feed.stop()  # no later news mend it
        it.app.feed.join()
        await it.pilot.pause()
        board = it.app.main.query_one(NodesBoard)
        nodes = board.nodes
        for shown, is_barred in (((), False), (nodes, True), (nodes[:1], False)):
            board.show(NodesRead(shown, {}, {}, {}), shown)
            await it.fact(partial(lambda wanted: board.show_vertical_scrollbar == wanted, is_barred))
            await it.fact(lambda: board.virtual_size.width == board.scrollable_content_region.width)


async def test_help_is_that_of_the_view(finished: SweepBuilder, opened: Open) -> None:
    async with opened(size=(120, 60)) as it:
        await it.press("4", "question_mark")
        await it.see("All runs of the sweep", "only trouble", "clusterduck requeue", "F FAILED")
        await it.press("escape", "2", "question_mark")
        await it.see("Every node of a job that runs", "clusterduck nodes")
        await it.press("question_mark")
        await it.miss("Every node of a job that runs")


async def test_the_palette_has_every_action(finished: SweepBuilder, opened: Open) -> None:
    async with opened(size=(120, 40)) as it:
        await it.see("train-aa2de")
        await it.press("ctrl+p")
        await it.pilot.press(*"copy name")
        await it.see("Copy name (y)")
        await it.press("enter")
        await it.fact(lambda: it.app.clipboard == "train-aa2de")


async def test_copies_a_runs_name_and_folder(finished: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.press("4")
        await it.see("C COMPLETED")
        await it.press("j", "y")
        assert it.app.clipboard == "train-aa2de/1"
        await it.press("Y")
        assert it.app.clipboard == str(finished.paths.sweep_dir / "1")


async def test_the_wanted_sweep_is_in_front(
    finished: SweepBuilder, live: SweepBuilder, project: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little of the ledger is known at first: on this host nobody has read it before."""
    monkeypatch.setattr(feed, "STRETCH_S", 0.0)
    for wanted, chosen in (("aa2", "train-aa2de"), ("@last", "train-bb3fg"), ("zz9", "train-bb3fg")):
        monkeypatch.setenv("TMPDIR", str(project.parent / wanted))
        monkeypatch.setattr("tempfile.tempdir", None)
        (project.parent / wanted).mkdir()
        async with opened(wanted) as it:
            await it.see(f"Jobs of {chosen}")
            assert it.app.known.chosen == chosen
            if wanted == "zz9":
                await it.see("No sweep 'zz9' in this ledger")


async def test_who_chooses_while_the_ledger_is_read_is_not_overruled_by_the_name_given_at_the_start(
    finished: SweepBuilder, live: SweepBuilder, opened: Open
) -> None:
    async with opened("zz9") as it:
        await it.see("Jobs of train-bb3fg")
        it.app.feed.stop()
        it.app.feed.join()
        it.app._wanted, it.app.known.is_caught_up = "bb3", False  # as if it were still being read
        await it.press("j")
        await it.see("Jobs of train-aa2de")
        it.app.post_message(LedgerState(it.app.known.ledger, None, is_caught_up=True))
        await it.fact(lambda: it.app.known.is_caught_up)
        assert it.app.known.chosen == "train-aa2de"


async def test_what_happens_is_seen(live: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.press("4")
        await it.see("R 3")
        at = live.start + 150
        live.write(live.agent_journal(), [live.ended(at, 3, state="TIMEOUT", started_at=at - 20)], close=False)
        await it.see("R 2", "T TIMEOUT", "T 1")
        await it.press("1")
        await it.fact(lambda: it.app.known.sweep is not None and it.app.known.sweep.counts["TIMEOUT"] == 1)


async def test_new_failures_are_counted_until_they_are_looked_at(live: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.see("3/8")
        at = live.start + 150
        live.write(live.agent_journal(), [live.ended(at, 3, state="FAILED", started_at=at - 20)], close=False)
        await it.see("4/8", "+1")
        await it.press("4")
        await it.see("F 2")
        await it.fact(lambda: it.text.count("F FAILED") == 2)
        await it.press("1")
        await it.miss("+1")


async def test_a_log_view_reads_nothing_behind_other_views(finished: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.press("4")
        await it.see("C COMPLETED")
        await it.press("enter", "t")
        await it.see("this is run 0")
        run = it.app.main.view("run")
        assert isinstance(run, RunView)
        log = run.query_one("#log", LogView)
        assert log.is_on_screen
        await it.press("1")
        assert not log.is_on_screen
