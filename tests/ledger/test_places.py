"""Where an attempt's files lie: in the sweep's folder wherever that is moved, and aside once a later attempt began
afresh."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from journals_builder import SweepBuilder, tables

from clusterduck import events
from clusterduck.ledger import fold, queries
from clusterduck.ledger.replica import Replica
from clusterduck.model import Attempt
from clusterduck.paths import LedgerPaths, SweepPaths
from clusterduck.queue import Queue, following
from clusterduck.rebuild import rebuild


@pytest.fixture(autouse=True)
def own_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def test_what_lies_in_the_sweep_is_kept_relative_to_it(tmp_path: Path) -> None:
    paths = SweepPaths.of(tmp_path / "out", "s")
    for path in (tmp_path / "out/3", tmp_path / "out/.clusterduck/s/logs/1.1.log", tmp_path / "out", Path("/else/3")):
        assert paths.place(paths.kept(str(path))) == str(path)
    assert paths.kept(f"{tmp_path}/out/3") == "3"
    assert paths.kept(f"{tmp_path}/outer/3") == f"{tmp_path}/outer/3"
    assert SweepPaths.of(Path("/new"), "s").place("3/attempt-1.log") == "/new/3/attempt-1.log"


def test_earlier_attempts_follow_a_folder_that_was_set_aside_in_every_order(
    tmp_path: Path, empty: Callable[[], sqlite3.Connection]
) -> None:
    sweep = SweepBuilder(tmp_path)
    at = sweep.start + 100

    def attempt(number: int, set_aside: bool) -> list[events.Event]:
        aside = events.FolderSetAside(
            time=at + number, run=0, attempt=number, run_dir="0", new_dir=f"0.attempt-{number - 1}"
        )
        begun = [sweep.agent_started(at, "node0"), sweep.started(at + number, 0, number)]
        located = events.AttemptLocated(
            time=at + number, run=0, attempt=number, run_dir="0", log=f"0/attempt-{number}.log"
        )
        return [*begun, *([aside] if set_aside else []), located, sweep.ended(at + number + 0.5, 0, number, "FAILED")]

    launch = sweep.write(sweep.launch_journal(), sweep.launch(1))
    paths = []
    for number, set_aside in enumerate([False, False, True, True], start=1):
        paths.append(sweep.write(sweep.agent_journal(f"0-{number}"), attempt(number, set_aside)))
    found = []
    for order in itertools.permutations(paths):
        connection = empty()
        for path in (launch, *order):
            fold.fold_journals(
                connection, sweep.sweep, sweep.paths.root, [path], clock=time.time, is_time_up=lambda: False
            )
        found.append(tables(connection))
        attempts = queries.attempts(connection, sweep.sweep, 0)
    assert all(each == found[0] for each in found)
    folder = sweep.paths.sweep_dir
    assert [one.log for one in attempts] == [
        f"{folder}/0.attempt-2/attempt-1.log",
        f"{folder}/0.attempt-2/attempt-2.log",
        f"{folder}/0.attempt-3/attempt-3.log",
        f"{folder}/0/attempt-4.log",
    ]
    assert queries.run(connection, sweep.sweep, 0).folder == f"{folder}/0"


def test_a_project_made_anew_at_the_same_path_has_nothing_of_the_one_before(tmp_path: Path) -> None:
    old = SweepBuilder(tmp_path / "project", "train-old11")
    old.write_all()
    with Replica.open(old.ledger) as replica:
        replica.catch_up()
        assert [sweep.id for sweep in queries.sweeps(replica.connection)] == ["train-old11"]
        shutil.rmtree(tmp_path / "project")
    new = SweepBuilder(tmp_path / "project", "train-new22")
    new.write_all()
    assert rebuild(new.ledger, []).kept == ()
    with Replica.open(new.ledger) as replica:
        replica.catch_up()
        assert [sweep.id for sweep in queries.sweeps(replica.connection)] == ["train-new22"]
        assert replica.mended is None


def test_a_replica_opened_first_notices_too(tmp_path: Path) -> None:
    for name in ("train-old11", "train-new22"):
        sweep = SweepBuilder(tmp_path / "project", name)
        sweep.write_all()
        with Replica.open(sweep.ledger) as replica:
            replica.catch_up()
            assert [sweep.id for sweep in queries.sweeps(replica.connection)] == [name]
            assert replica.mended is None
        shutil.rmtree(tmp_path / "project")


def test_a_sweep_that_was_moved_has_its_files_in_the_new_place(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path)
    at = sweep.start + 100
    outside = events.AttemptLocated(time=at + 2, run=1, attempt=1, run_dir="/else/1", log="/else/1/attempt-1.log")
    located = events.AttemptLocated(time=at + 2, run=0, attempt=1, run_dir="0", log="0/attempt-1.log")
    told = [sweep.agent_started(at, "node0"), sweep.started(at, 0), located, sweep.ended(at + 3, 0)]
    told += [sweep.started(at, 1), outside, sweep.started(at, 2)]
    sweep.write(sweep.launch_journal(), sweep.launch(3))
    sweep.write(sweep.agent_journal(), told, close=False)
    entry = following(
        Attempt(0, 1), None, launch=0, kind="person", reason="", by="", folder=f"{sweep.paths.sweep_dir}/0"
    )
    Queue(sweep.paths.queue).put(entry)
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        old = sweep.paths.sweep_dir
        assert queries.run(replica.connection, sweep.sweep, 0).log == f"{old}/0/attempt-1.log"

        new = tmp_path / "elsewhere" / "it is"
        new.parent.mkdir()
        old.rename(new)
        moved = SweepPaths.of(new, sweep.sweep)
        (LedgerPaths(sweep.ledger).sweeps / sweep.sweep).write_text(f"{moved.root}\n")
        replica.catch_up(look_at=[sweep.sweep])
        runs = queries.runs(replica.connection, sweep.sweep)
        (attempt,) = queries.attempts(replica.connection, sweep.sweep, 0)
        (batch,) = queries.batches(replica.connection, sweep.sweep)
    assert [run.folder for run in runs] == [f"{new}/0", "/else/1", None]
    assert [run.log for run in runs] == [
        f"{new}/0/attempt-1.log",
        "/else/1/attempt-1.log",
        str(moved.logs / "2.1.log"),
    ]
    assert (attempt.folder, attempt.result) == (f"{new}/0", str(moved.result(Attempt(0, 1))))
    assert batch.log_folder == f"{new}/.submitit/0"
    assert Queue(moved.queue).read(entry.attempt).folder == f"{new}/0"
