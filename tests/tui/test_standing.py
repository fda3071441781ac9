"""What the dashboard says of how sweeps stand: failures since the last look, and runs that no job will take."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from dashboards import Open
from journals_builder import SweepBuilder

from clusterduck.events import BatchClosed
from clusterduck.paths import LedgerPaths
from clusterduck_tui.looks import NAME, Looks


def kept(sweep: SweepBuilder) -> dict[str, int]:
    file = LedgerPaths(sweep.ledger).replica_folder / NAME
    return dict(json.loads(file.read_bytes())) if file.exists() else {}


async def test_failures_between_sessions_are_new_until_looked_at(live: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.see("3/8")
        await it.fact(lambda: kept(live) == {live.sweep: 1})  # what had failed before the first session is not new
        assert "+1" not in it.text
    at = live.start + 150
    live.write(live.agent_journal(), [live.ended(at, 3, state="FAILED", started_at=at - 20)], close=False)
    async with opened() as it:
        await it.see("4/8", "+1")
        await it.press("4")
        await it.see("F 2")
        await it.fact(lambda: kept(live) == {live.sweep: 2})
    async with opened() as it:
        await it.see("4/8")
        assert "+1" not in it.text


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": "b"}', b"\xff\xfe"])
def test_what_is_no_memory_of_looks_is_written_anew(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / NAME
    file.write_bytes(content)
    looks = Looks()
    looks.open(tmp_path)
    assert looks.new_failures("a", 3, is_caught_up=True) == 0
    assert looks.new_failures("a", 5, is_caught_up=True) == 2
    looks.keep()
    assert json.loads(file.read_bytes()) == {"a": 3}
    assert list(tmp_path.iterdir()) == [file]


def test_two_dashboards_keep_what_each_has_looked_at(tmp_path: Path) -> None:
    one, other = Looks(), Looks()
    for looks, sweep in ((one, "a"), (other, "b")):
        looks.open(tmp_path)
        looks.look(sweep, 1)
    one.keep()
    other.keep()
    later = Looks()
    later.open(tmp_path)
    assert [later.new_failures(sweep, 4, is_caught_up=True) for sweep in "abc"] == [3, 3, 4]


def test_a_folder_that_cannot_be_written_costs_the_memory_only(tmp_path: Path) -> None:
    looks = Looks()
    looks.open(tmp_path / "gone")
    looks.look("a", 1)
    looks.keep()
    assert looks.new_failures("a", 2, is_caught_up=True) == 1
    (tmp_path / "gone").mkdir()
    looks.keep()
    assert json.loads((tmp_path / "gone" / NAME).read_bytes()) == {"a": 1}


async def test_runs_that_no_job_will_take_are_said_to_wait_in_vain(project: Path, opened: Open) -> None:
    lost = SweepBuilder(project, "train-cc4gh", start=time.time() - 60)
    lost.write(lost.launch_journal(), lost.launch(4), close=False)
    at = time.time() - 50
    ended = [lost.started(at, 0), lost.ended(at + 1, 0, state="FAILED"), lost.started(at, 1), lost.ended(at + 1, 1)]
    lost.write(lost.agent_journal(), [lost.agent_started(at, "node1"), *ended], close=False)
    lost.write(lost.paths.acts / "close.jsonl", [BatchClosed(time=at + 2, batch="0-0", state="CANCELLED", reason="so")])
    async with opened(size=(200, 40)) as it:
        await it.see("2 runs wait, and no job will take them: clusterduck requeue --unfinished --sweep train-cc4gh")
        await it.press("4")
        await it.see("No job will take it: its batch 0-0 ended CANCELLED (so). Send it with")
        await it.press("j", "j", "enter")
        text = await it.see("train-cc4gh/2", "No job will take it")
        assert "waits for" not in text
