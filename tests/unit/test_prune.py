"""Pruning: old sweeps leave the ledger on every host and stay out; folders go only if asked for, and never others'."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from journals_builder import SweepBuilder

from clusterduck import prune
from clusterduck.cli.main import main
from clusterduck.errors import ConfigError
from clusterduck.ledger import queries
from clusterduck.ledger.forget import TABLES
from clusterduck.ledger.publish import publish
from clusterduck.ledger.replica import Replica
from clusterduck.model import Attempt
from clusterduck.paths import LedgerPaths
from clusterduck.prune import Wish
from clusterduck.rebuild import rebuild

DAY_S = 86400.0
Move = Callable[[str], None]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Move:
    """Moves to a host, by its temporary folder."""

    def move(name: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))

    monkeypatch.chdir(tmp_path)
    move("login1")
    return move


def over(base: Path, sweep: str, days: float) -> SweepBuilder:
    """A sweep that went well so many days ago, with folders of its runs on disk."""
    builder = SweepBuilder(base, sweep, start=time.time() - days * DAY_S)
    builder.write_all(8, 2)
    for run in range(8):
        folder = builder.paths.sweep_dir / str(run)
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"weights")
        builder.paths.result(Attempt(run, 1)).write_bytes(b"result")
    (builder.paths.sweep_dir / "multirun.yaml").write_text("hydra: {}\n")
    (builder.paths.root.parent / "owner.0").symlink_to(f"{sweep}/login1/1/1.00/x")
    return builder


@pytest.fixture
def old(tmp_path: Path, host: Move) -> SweepBuilder:
    return over(tmp_path, "train-aa2de", 100)


@pytest.fixture
def young(tmp_path: Path, old: SweepBuilder) -> SweepBuilder:
    return over(tmp_path, "train-bb3fg", 20)


@pytest.fixture
def live(tmp_path: Path, young: SweepBuilder) -> SweepBuilder:
    """An old sweep whose job is running, as far as anybody knows."""
    builder = SweepBuilder(tmp_path, "train-cc4hj", start=time.time() - 200 * DAY_S)
    builder.write(builder.launch_journal(), builder.launch(4))
    builder.write(builder.agent_journal(), builder.agent(range(4), "node1")[:-1], close=False)
    return builder


def pruned(ledger: Path, wish: Wish) -> tuple[list[str], dict[str, str], prune.PruneReport]:
    with Replica.open(ledger) as replica:
        replica.catch_up()
        plan = prune.plan(replica.connection, wish, {})
        report = prune.carry_out(replica, plan)
        publish(replica, ledger)
    return report.sweeps, plan.kept, report


def in_ledger(ledger: Path) -> dict[str, set[str]]:
    """Which sweeps each table of the published ledger names."""
    connection = sqlite3.connect(f"{ledger.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        return {
            table: {row[0] for row in connection.execute(f"SELECT DISTINCT {column} FROM {table}")}
            for table, column in TABLES.items()
        }
    finally:
        connection.close()


def test_every_table_that_names_a_sweep_is_known(old: SweepBuilder) -> None:
    with Replica.open(old.ledger) as replica:
        named = replica.connection.execute(
            "SELECT DISTINCT m.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c "
            "WHERE m.type = 'table' AND c.name = 'sweep'"
        ).fetchall()
    assert {row[0] for row in named} | {"sweep"} == set(TABLES)


@pytest.mark.parametrize(
    ("wish", "removed"),
    [
        (Wish(older_than_s=50 * DAY_S), ["train-aa2de"]),
        (Wish(older_than_s=10 * DAY_S), ["train-bb3fg", "train-aa2de"]),
        (Wish(older_than_s=10 * DAY_S, keep=1), ["train-aa2de"]),
        (Wish(keep=0), ["train-bb3fg", "train-aa2de"]),
        (Wish(sweeps=["train-bb3fg"]), ["train-bb3fg"]),
        (Wish(sweeps=["train-bb3fg"], older_than_s=50 * DAY_S), []),
    ],
)
def test_which_are_removed(live: SweepBuilder, wish: Wish, removed: list[str]) -> None:
    sweeps, _, report = pruned(live.ledger, wish)
    assert sweeps == removed and not report.trouble
    left = {"train-aa2de", "train-bb3fg", "train-cc4hj"} - set(removed)
    assert in_ledger(live.ledger)["sweep"] == left
    assert all(sweeps <= left for sweeps in in_ledger(live.ledger).values())
    assert set(LedgerPaths(live.ledger).sweep_ids()) == left


def test_one_must_say_which(old: SweepBuilder) -> None:
    with pytest.raises(ConfigError, match="Say which"):
        pruned(old.ledger, Wish())


def test_a_live_sweep_is_refused(live: SweepBuilder) -> None:
    sweeps, kept, _ = pruned(live.ledger, Wish(sweeps=["train-cc4hj"], delete_folders=True, delete_runs=True))
    assert sweeps == [] and "is RUNNING" in kept["train-cc4hj"]
    assert live.paths.root.is_dir()


def test_a_sweep_whose_launcher_runs_is_refused(old: SweepBuilder) -> None:
    mark = old.paths.root.parent / "owner.1"
    mark.symlink_to(f"{old.sweep}/{os.uname().nodename}/{os.getppid()}/{time.time():.2f}/x")
    assert "is running" in pruned(old.ledger, Wish(sweeps=[old.sweep]))[1][old.sweep]


def test_folders_stay(old: SweepBuilder) -> None:
    before = sorted(old.paths.sweep_dir.rglob("*"))
    pruned(old.ledger, Wish(sweeps=[old.sweep]))
    assert sorted(old.paths.sweep_dir.rglob("*")) == before


def test_delete_folders_takes_ours_and_leaves_the_runs(old: SweepBuilder) -> None:
    neighbour = old.paths.root.parent / "train-zz9zz"
    neighbour.mkdir()
    pruned(old.ledger, Wish(sweeps=[old.sweep], delete_folders=True))
    assert sorted(old.paths.root.parent.iterdir()) == [neighbour]
    assert (old.paths.sweep_dir / "3" / "model.bin").read_bytes() == b"weights"


def test_delete_runs_takes_the_runs_and_leaves_ours(old: SweepBuilder) -> None:
    pruned(old.ledger, Wish(sweeps=[old.sweep], delete_runs=True))
    assert not (old.paths.sweep_dir / "3").exists() and old.paths.result(Attempt(3, 1)).exists()


def test_both_take_the_whole_folder(old: SweepBuilder) -> None:
    pruned(old.ledger, Wish(sweeps=[old.sweep], delete_folders=True, delete_runs=True))
    assert pruned and not old.paths.root.exists() and not (old.paths.sweep_dir / "3").exists()
    assert not any(path.is_file() for path in old.paths.sweep_dir.rglob("*") if path.name != "multirun.yaml")


def test_what_is_not_the_sweep_s_own_stays(old: SweepBuilder, young: SweepBuilder, tmp_path: Path) -> None:
    """A run's folder that is a link, lies elsewhere, or belongs to another sweep's run as well."""
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").write_text("gold")
    with Replica.open(old.ledger) as replica:
        replica.catch_up()
        change = "UPDATE attempt SET folder = ? WHERE sweep = ? AND run = ?"
        for run, folder in (
            (0, treasure),
            (1, old.paths.sweep_dir),
            (2, old.paths.sweep_dir / ".." / ".." / "treasure"),
            (3, old.paths.root),
            (4, young.paths.sweep_dir / "4"),
        ):
            replica.connection.execute(change, (str(folder), old.sweep, run))
        replica.connection.execute(change, (str(old.paths.sweep_dir / "5" / "deep"), young.sweep, 5))
        (old.paths.sweep_dir / "6" / "model.bin").unlink()
        (old.paths.sweep_dir / "6").rmdir()
        (old.paths.sweep_dir / "6").symlink_to(treasure)
        plan = prune.plan(replica.connection, Wish(sweeps=[old.sweep], delete_runs=True), {})
        report = prune.carry_out(replica, plan)
    assert report.deleted == [old.paths.sweep_dir / "7"]
    assert "6 folders of train-aa2de stay" in report.trouble[0]
    assert (treasure / "gold").exists() and (old.paths.sweep_dir / "5" / "model.bin").exists()
    assert old.paths.root.is_dir() and (young.paths.sweep_dir / "4" / "model.bin").exists()


def test_other_hosts_forget_it_too_and_do_not_publish_it_again(live: SweepBuilder, host: Move) -> None:
    host("login2")
    with Replica.open(live.ledger) as other:
        other.catch_up()
        publish(other, live.ledger)
        host("login1")
        pruned(live.ledger, Wish(sweeps=["train-aa2de"]))
        live.write(live.agent_journal(), [live.beat(time.time(), 4)], close=False)
        other.catch_up()
        assert [sweep.id for sweep in queries.sweeps(other.connection)] == ["train-bb3fg", "train-cc4hj"]
        assert publish(other, live.ledger)
    assert in_ledger(live.ledger)["journal"] == {"train-bb3fg", "train-cc4hj"}
    host("login3")
    with Replica.open(live.ledger) as third:
        third.catch_up()
        assert len(queries.sweeps(third.connection)) == 2


def test_a_published_ledger_that_still_has_it_is_replaced_though_nothing_else_is_new(
    young: SweepBuilder, host: Move
) -> None:
    with Replica.open(young.ledger) as replica:
        replica.catch_up()
        publish(replica, young.ledger)
        prune.carry_out(replica, prune.plan(replica.connection, Wish(sweeps=["train-aa2de"]), {}))
        assert publish(replica, young.ledger)
        assert not publish(replica, young.ledger)
    assert in_ledger(young.ledger)["run"] == {"train-bb3fg"}


def test_rebuild_leaves_it_out_unless_its_folder_is_named(old: SweepBuilder, young: SweepBuilder) -> None:
    pruned(old.ledger, Wish(sweeps=[old.sweep]))
    rebuild(old.ledger)
    assert in_ledger(old.ledger)["sweep"] == {young.sweep}
    assert set(rebuild(old.ledger, [old.paths.sweep_dir]).entered) == {old.sweep}
    assert in_ledger(old.ledger)["sweep"] == {young.sweep, old.sweep}


def test_marks_of_pruned_sweeps_do_not_stay_for_ever(old: SweepBuilder, young: SweepBuilder) -> None:
    paths = LedgerPaths(old.ledger)
    pruned(old.ledger, Wish(sweeps=[old.sweep]))
    assert paths.listed() == ([young.sweep], [old.sweep])
    os.utime(paths.pruned(old.sweep), (0, 0))
    pruned(old.ledger, Wish(sweeps=[young.sweep]))
    assert paths.listed() == ([], [young.sweep])


def test_the_command(live: SweepBuilder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no Slurm: the live sweep's job is unknown
    assert main(["prune"]) == 2
    assert "Say which sweeps" in capsys.readouterr().err
    assert main(["prune", "--older-than", "10", "--dry-run"]) == 0
    assert "Remove 2 sweeps with 16 runs from the ledger; their folders stay." in capsys.readouterr().out
    assert main(["prune", "--older-than", "10"]) == 2
    assert "say --yes" in capsys.readouterr().err and len(LedgerPaths(live.ledger).sweep_ids()) == 3
    assert main(["prune", "cc4", "--yes", "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["sweep"], row["removed"]) == (live.sweep, False) and row["kept"]
    assert main(["prune", "aa2", "--yes", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["sweep"], row["removed"], row["kept"]) == ("train-aa2de", True, None)
    assert in_ledger(live.ledger)["sweep"] == {"train-bb3fg", "train-cc4hj"}
    assert main(["prune", "aa2", "--yes"]) == 3
