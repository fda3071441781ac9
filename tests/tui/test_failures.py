"""Whatever happens to the ledger, the replica or Slurm: a notice, and recovery."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from dashboards import Open, Slurm, make_live
from journals_builder import SweepBuilder, make_older
from sqlite_utils import Database

from clusterduck.ledger import schema
from clusterduck.ledger.replica import Replica
from clusterduck.paths import LedgerPaths
from clusterduck_tui import feed


async def test_no_ledger_yet_and_then_there_is_one(project: Path, opened: Open) -> None:
    async with opened(wait=False) as it:
        await it.see("No ledger here or in a folder above yet", "--multirun")
        for key in ("2", "3", "4", "5", "6", "question_mark", "escape", "c", "r", "d", "space", "enter", "y", "1"):
            await it.press(key)  # nothing to act on, nothing that breaks
        SweepBuilder(project).write_all()
        await it.see("train-x7k2p", "24/24")
        await it.miss("No ledger")


async def test_what_a_newer_version_makes_of_the_replica_is_waited_for_with_a_word(
    live: SweepBuilder, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Replica.open(live.ledger) as replica:
        replica.catch_up()
        make_older(replica.connection)
    may_go_on = threading.Event()

    def slow(step: schema.Step) -> schema.Step:
        @functools.wraps(step)
        def wait_and_do(db: Database) -> None:
            assert may_go_on.wait(60)
            step(db)

        return wait_and_do

    monkeypatch.setattr(schema, "STEPS", tuple(map(slow, schema.STEPS)))
    monkeypatch.setattr(schema, "RUNS_WORTH_A_WORD", 8)
    async with opened(wait=False) as it:
        await it.see("this host's copy of the ledger")  # is brought up to date by this thread of it or that
        may_go_on.set()
        await it.see("train-bb3fg")
        await it.miss("this host's copy")


async def test_the_ledger_is_deleted_and_another_made(live: SweepBuilder, project: Path, opened: Open) -> None:
    async with opened() as it:
        await it.see("train-bb3fg")
        shutil.rmtree(live.ledger.parent.rename(project / "deleted"))  # at once: something may be written just now
        await it.see("No ledger")
        await it.press("4", "2")
        SweepBuilder(project, "train-dd5hi").write_all()
        await it.press("1")
        await it.see("train-dd5hi")
        await it.miss("No ledger")


async def test_the_replica_is_deleted_or_damaged_under_its_feet(live: SweepBuilder, opened: Open) -> None:
    folder = LedgerPaths(live.ledger).replica_folder
    async with opened() as it:
        await it.see("3/8")
        shutil.rmtree(folder.rename(folder.with_name("deleted")))  # it is made anew at any moment
        at = live.start + 150
        live.write(live.agent_journal(), [live.ended(at, 3, state="FAILED", started_at=at - 20)], close=False)
        await it.see("4/8")
        await it.fact((folder / "replica.db").exists)  # the look under way may have gone into the old one
        (folder / "replica.db-wal").unlink(missing_ok=True)
        (folder / "replica.db").write_bytes(b"this is no database" * 1000)
        live.write(live.agent_journal(), [live.ended(at + 1, 4, started_at=at - 20)], close=False)
        await it.see("5/8")


async def test_a_replica_of_a_newer_version(live: SweepBuilder, opened: Open) -> None:
    replica = LedgerPaths(live.ledger).replica_folder / "replica.db"
    async with opened() as it:
        await it.see("3/8")
    with sqlite3.connect(replica) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    async with opened(wait=False) as it:
        await it.see("newer clusterduck")
        assert it.app.is_running


async def test_the_sweeps_folder_vanishes(live: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.see("3/8")
        shutil.rmtree(live.paths.sweep_dir)
        await it.press("4")
        await it.see("R RUNNING")  # what is known stays
        await it.press("enter", "t")
        await it.see("no log yet")


async def test_slurm_is_absent(live: SweepBuilder, opened: Open, tmp_path: Path) -> None:
    (tmp_path / "bin" / "squeue").unlink()
    async with opened() as it:
        await it.see("squeue is not on this host's PATH")
        await it.see("3/8")


async def test_slurm_says_why_a_job_waits(project: Path, opened: Open, slurm: Slurm) -> None:
    built = SweepBuilder(project, "train-bb3fg", start=time.time() - 60)
    built.write(built.launch_journal(), built.launch(8))
    slurm(f"echo '9000|PENDING|{time.time() - 57:.0f}|{time.time() + 3600:.0f}|1:00:00|1|Resources'")
    async with opened() as it:
        await it.see("PENDING", "Resources")


async def test_slurm_hangs_and_quitting_does_not_wait_for_it(
    live: SweepBuilder, opened: Open, slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "TIMEOUT_S", 600.0)
    slurm(f"echo $$ >{tmp_path}/asked; exec /bin/sleep 600")
    async with opened() as it:
        await it.fact(lambda: (tmp_path / "asked").exists() and bool((tmp_path / "asked").read_text()))
        await it.press("4")
        await it.see("R RUNNING")  # the screen does not wait
        await it.pilot.press("q")
    assert not it.app.is_running
    it.app.feed.join(30)
    assert not it.app.feed.is_alive()
    os.kill(int((tmp_path / "asked").read_text()), signal.SIGTERM)  # it still hung


async def test_a_bug_or_another_users_folder_is_a_notice(live: SweepBuilder, opened: Open) -> None:
    live.ledger.parent.chmod(0o700)
    folder = LedgerPaths(live.ledger).replica_folder
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    async with opened(wait=False) as it:
        await it.see("can be written by other users")
        folder.chmod(0o700)
        await it.see("train-bb3fg", "3/8")


async def test_read_only_offers_nothing_that_changes(project: Path, opened: Open) -> None:
    make_live(project)
    async with opened(read_only=True) as it:
        text = await it.see("3/8")
        assert "Requeue" not in text and "Cancel" not in text
        await it.press("4")
        await it.see("R RUNNING")
        await it.press("c", "r")
        await it.press("question_mark")
        await it.see("All runs of the sweep")  # no dialog is in its way
