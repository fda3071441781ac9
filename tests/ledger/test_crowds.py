"""Many at once, in the short form; the long one is ``crowd.py`` by hand."""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from crowd import FORK, crowd, finish, folded_afresh, night, on_host, start
from journals_builder import SweepBuilder, tables
from sqlite_utils import Database

from clusterduck.ledger import schema
from clusterduck.ledger.replica import Replica
from clusterduck.model import Attempt
from clusterduck.queue import Claims


@pytest.fixture(autouse=True)
def _own_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())  # and back, whatever a test makes of it
    yield


def test_64_agents_report_while_8_readers_fold(tmp_path: Path) -> None:
    done = crowd(tmp_path, agents=64, runs_each=24, seconds=0.0)
    assert len(done["took"]) >= 16


def test_a_thousand_agents_heartbeats(tmp_path: Path) -> None:
    done = night(tmp_path, agents=1000, beats=3, look_every=1)
    assert len(done["looks"]) == 3


def claim_all(folder: Path, owner: int, ready: Barrier, runs: int) -> None:
    """Try for every attempt, beginning anywhere, as an agent does that shares; write down which are ours."""
    claims = Claims(folder, f"0-{owner}/0.0")
    first = random.Random(owner).randrange(runs)
    ready.wait(60)
    order = [Attempt((first + index) % runs, 1) for index in range(runs)]
    mine = [attempt.run for attempt in order if claims.claim(attempt)]
    (folder.parent / f"owner-{owner}").write_text(" ".join(map(str, mine)))


def test_32_processes_over_10_000_claims(tmp_path: Path) -> None:
    runs, owners = 10_000, 32
    folder = tmp_path / "claims"
    folder.mkdir()
    ready = FORK.Barrier(owners)
    finish([start(claim_all, folder, owner, ready, runs) for owner in range(owners)])
    claims = Claims(folder, "a reader")
    told = Counter[int]()
    for owner in range(owners):
        mine = [int(run) for run in (tmp_path / f"owner-{owner}").read_text().split()]
        told.update(mine)
        assert all(claims.owner(Attempt(run, 1)) == f"0-{owner}/0.0" for run in mine)
    assert told == Counter(range(runs)), "an attempt was claimed twice, or by nobody"
    assert claims.taken() == {Attempt(run, 1) for run in range(runs)}


# --- the first start on a host


def add_column(db: Database) -> None:
    db.execute("ALTER TABLE run ADD COLUMN of_the_next_version TEXT DEFAULT 'there'")


def open_at_once(ledger: Path, host: Path, ready: Barrier, is_next: bool, folded: Any) -> None:
    on_host(host)
    if is_next:
        schema.STEPS = (*schema.STEPS, add_column)
    ready.wait(60)
    with Replica.open(ledger) as replica:
        assert replica.mended is None
        report = replica.catch_up()
        assert report.problems == () and not report.more
        folded.put(report.events)
        if is_next:
            (there,) = replica.connection.execute("SELECT DISTINCT of_the_next_version FROM run").fetchall()
            assert there == ("there",)


@pytest.mark.parametrize("before", ["nothing", "an older replica", "an older replica that was folded half"])
def test_many_processes_start_at_once_on_a_host(tmp_path: Path, before: str) -> None:
    sweep = SweepBuilder(tmp_path / "project")
    sweep.write_all(runs=200, batches=8)
    host = tmp_path / "host"
    events = sum(path.read_bytes().count(b"\n") for path in sweep.paths.journals())
    on_host(host)
    known = 0
    if before != "nothing":
        with Replica.open(sweep.ledger) as replica:
            known = replica.catch_up(0.0 if "half" in before else None).events
            assert (known < events) == ("half" in before)
    processes = 12
    ready = FORK.Barrier(processes)
    folded = FORK.SimpleQueue()
    crew = [start(open_at_once, sweep.ledger, host, ready, before != "nothing", folded) for _ in range(processes)]
    finish(crew)
    assert known + sum(folded.get() for _ in crew) == events, "an event was folded twice, or not at all"
    (path,) = host.glob("clusterduck-*/*/replica.db")
    with sqlite3.connect(path) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = tables(reader)
    reader.close()
    if before != "nothing":
        found["run"] = [row[:-1] for row in found["run"]]
    assert found == folded_afresh(sweep.ledger)
    assert sorted(os.listdir(path.parent)) == ["lock", "replica.db"], "something was left behind"
