"""The published ledger: a whole file that nobody modifies, never replaced by an older one."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from journals_builder import SweepBuilder, tables

from clusterduck import events
from clusterduck.errors import LedgerError
from clusterduck.ledger import lock, schema
from clusterduck.ledger.publish import LOST_S, main, publish
from clusterduck.ledger.publish_if_old import is_older_than
from clusterduck.ledger.replica import Replica
from clusterduck.paths import LedgerPaths


class Host:
    """One of several hosts: with a temporary folder, and so a replica, of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self._folder = folder
        self._patch = monkeypatch

    def open(self, ledger: Path) -> Replica:
        self._patch.setattr("tempfile.tempdir", str(self._folder))
        return Replica.open(ledger)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Host]:
    return [Host(tmp_path / name, monkeypatch) for name in ("here", "there")]


@pytest.fixture
def sweep(tmp_path: Path) -> SweepBuilder:
    builder = SweepBuilder(tmp_path / "project")
    builder.write_all(runs=8, batches=1)
    return builder


def meta(ledger: Path, key: str) -> str | None:
    with sqlite3.connect(ledger) as connection:
        value = schema.get_meta(connection, key)
    connection.close()
    return value


def published(ledger: Path) -> dict[str, list[tuple[Any, ...]]]:
    with sqlite3.connect(ledger) as connection:
        found = tables(connection)
    connection.close()
    return found


def write_act(sweep: SweepBuilder, name: str) -> None:
    at = sweep.start + 900
    closed = events.RunsClosed(time=at, ranges=[(100, 101)], state="CANCELLED", reason=name)
    sweep.write(sweep.act_journal(name), [closed])


def test_it_is_the_replica_in_an_ordinary_private_file(sweep: SweepBuilder) -> None:
    before = os.umask(0)
    try:
        with Replica.open(sweep.ledger) as replica:
            replica.catch_up()
            assert publish(replica, sweep.ledger)
            assert published(sweep.ledger) == tables(replica.connection)
    finally:
        os.umask(before)
    assert stat.S_IMODE(sweep.ledger.stat().st_mode) == 0o600
    with sqlite3.connect(sweep.ledger) as reader:
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    reader.close()
    total = sum(path.stat().st_size for path in sweep.paths.journals())
    assert meta(sweep.ledger, "generation") == str(total)
    assert {path.name for path in sweep.ledger.parent.iterdir()} == {
        ".gitignore",
        "ledger.db",
        "ledger.db.id",
        "sweeps",
    }
    assert {path.name for path in replica.path.parent.iterdir()} == {"replica.db", "lock"}


def test_nothing_new_is_not_published_again(sweep: SweepBuilder) -> None:
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        assert publish(replica, sweep.ledger)
        inode = sweep.ledger.stat().st_ino
        assert not publish(replica, sweep.ledger)
        assert sweep.ledger.stat().st_ino == inode
        write_act(sweep, "cancel-1")
        replica.catch_up(look_at=[sweep.sweep])
        assert publish(replica, sweep.ledger)


def test_an_older_one_never_replaces_a_newer(sweep: SweepBuilder, hosts: list[Host]) -> None:
    with hosts[0].open(sweep.ledger) as old, hosts[1].open(sweep.ledger) as new:
        old.catch_up()
        write_act(sweep, "cancel-1")
        new.catch_up()
        assert publish(new, sweep.ledger)
        held = sweep.ledger.read_bytes()
        assert not publish(old, sweep.ledger)
        assert sweep.ledger.read_bytes() == held
        old.catch_up(look_at=[sweep.sweep])
        assert not publish(old, sweep.ledger)
        write_act(sweep, "cancel-2")
        old.catch_up(look_at=[sweep.sweep])
        assert publish(old, sweep.ledger)


def test_one_that_knows_more_here_and_less_there_does_not_replace(sweep: SweepBuilder, hosts: list[Host]) -> None:
    with hosts[0].open(sweep.ledger) as first, hosts[1].open(sweep.ledger) as second:
        second.catch_up()
        write_act(sweep, "cancel-1")
        first.catch_up()
        assert publish(first, sweep.ledger)
        path = sweep.act_journal("cancel-1")
        os.rename(path, path.with_name("kept"))  # as a host sees it that was not told yet
        write_act(sweep, "a-much-longer-name-of-an-act-so-that-the-sum-is-larger")
        second.catch_up(look_at=[sweep.sweep])
        os.rename(path.with_name("kept"), path)
        assert not publish(second, sweep.ledger)


def test_what_a_publishing_host_took_with_it_when_it_lost_power_stops_nobody_for_long(
    sweep: SweepBuilder, hosts: list[Host]
) -> None:
    """It had read the lines of its own agent before the file server had them."""
    journal = sweep.agent_journal()
    whole = journal.read_bytes()
    with hosts[0].open(sweep.ledger) as lost, hosts[1].open(sweep.ledger) as other:
        lost.catch_up()
        assert publish(lost, sweep.ledger)
        journal.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
        write_act(sweep, "cancel-1")
        other.catch_up(look_at=[sweep.sweep])
        assert not publish(other, sweep.ledger), "the lines may still be on their way"
        os.utime(sweep.ledger, (time.time() - LOST_S - 1,) * 2)
        assert publish(other, sweep.ledger)
        assert published(sweep.ledger) == tables(other.connection)


def test_deleted_sweeps_do_not_keep_a_new_replica_from_publishing(sweep: SweepBuilder, hosts: list[Host]) -> None:
    other = SweepBuilder(sweep.ledger.parent.parent, "other-a2b3c")
    other.write_all(runs=4, batches=1)
    with hosts[0].open(sweep.ledger) as replica:
        replica.catch_up()
        assert publish(replica, sweep.ledger)
    before = int(meta(sweep.ledger, "generation") or 0)
    os.rename(other.paths.sweep_dir, other.paths.sweep_dir.with_name("deleted"))
    write_act(sweep, "cancel-1")
    with hosts[1].open(sweep.ledger) as replica:
        replica.catch_up()
        assert publish(replica, sweep.ledger)
    assert int(meta(sweep.ledger, "generation") or 0) > before


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, None])
def test_a_damaged_ledger_is_replaced(sweep: SweepBuilder, content: bytes | None) -> None:
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        publish(replica, sweep.ledger)
        expected = published(sweep.ledger)
        data = sweep.ledger.read_bytes()
        sweep.ledger.write_bytes(data[: len(data) // 3] if content is None else content)
        assert publish(replica, sweep.ledger)
    assert published(sweep.ledger) == expected


def test_somebody_elses_file_is_left_alone(sweep: SweepBuilder, tmp_path: Path) -> None:
    ledger = tmp_path / "results.db"
    (tmp_path / "sweeps").mkdir()
    with sqlite3.connect(ledger) as foreign:
        foreign.execute("CREATE TABLE measurements (x)")
    foreign.close()
    before = ledger.read_bytes()
    with Replica.open(ledger) as replica, pytest.raises(LedgerError, match="is not a clusterduck ledger"):
        publish(replica, ledger)
    assert ledger.read_bytes() == before


def test_a_newer_clusterducks_ledger_is_left_alone(sweep: SweepBuilder) -> None:
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        publish(replica, sweep.ledger)
        with sqlite3.connect(sweep.ledger) as connection:
            schema.set_meta(connection, "schema_version", 99)
        connection.close()
        before = sweep.ledger.read_bytes()
        write_act(sweep, "cancel-1")
        replica.catch_up(look_at=[sweep.sweep])
        with pytest.raises(LedgerError, match="newer clusterduck"):
            publish(replica, sweep.ledger)
    assert sweep.ledger.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_one_sentence(sweep: SweepBuilder, tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "ledger.db"
    with Replica.open(sweep.ledger) as replica, pytest.raises(LedgerError, match="could not be published"):
        replica.catch_up()
        publish(replica, gone)


def test_a_dead_publishers_lock_is_broken_at_once_and_its_leavings_go(sweep: SweepBuilder) -> None:
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1, text=True, check=True)
    path = lock.lock_path(sweep.ledger)
    path.write_text(f"{socket.gethostname()}.{int(process.stdout)}.0a1b2c3d")
    left = sweep.ledger.with_name(".ledger.db.node7.12.0a1b2c3d")
    left.write_bytes(b"half a ledger")
    os.utime(left, (time.time() - 7200,) * 2)
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        assert publish(replica, sweep.ledger, wait_s=0)
    assert not path.exists()
    assert not left.exists()


def test_another_hosts_lock_is_waited_for_until_it_is_old(sweep: SweepBuilder) -> None:
    path = lock.lock_path(sweep.ledger)
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        path.write_text("node7.example.org.1234.0a1b2c3d")
        assert not publish(replica, sweep.ledger, wait_s=0.2)
        assert path.read_text() == "node7.example.org.1234.0a1b2c3d"
        assert not sweep.ledger.exists()
        os.utime(path, (time.time() - lock.STALE_S - 1,) * 2)
        assert publish(replica, sweep.ledger, wait_s=0)
    assert not path.exists()


def test_if_older_than(sweep: SweepBuilder) -> None:
    assert is_older_than(sweep.ledger, 30)
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        assert publish(replica, sweep.ledger, if_older_than_s=30)
        write_act(sweep, "cancel-1")
        replica.catch_up(look_at=[sweep.sweep])
        assert not publish(replica, sweep.ledger, if_older_than_s=30)
        os.utime(sweep.ledger, (time.time() - 31,) * 2)
        assert publish(replica, sweep.ledger, if_older_than_s=30)


def test_a_publisher_that_is_told_to_end_lets_go_of_the_lock(sweep: SweepBuilder, tmp_path: Path) -> None:
    """Slurm sends what is meant for agents to every process of their job."""
    script = tmp_path / "holds.py"
    script.write_text(
        "import sys, time, pathlib\n"
        "from clusterduck.ledger import lock, publish\n"
        "publish.mind_signals()\n"
        "with lock.hold(pathlib.Path(sys.argv[1]), 0):\n"
        "    print('holds', flush=True)\n"
        "    while True: time.sleep(1)\n"
    )
    command = [sys.executable, str(script), str(sweep.ledger)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holds\n"
        assert lock.lock_path(sweep.ledger).exists()
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            process.send_signal(number)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not lock.lock_path(sweep.ledger).exists()


def test_the_command_folds_and_publishes(sweep: SweepBuilder, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clusterduck.ledger.publish_if_old", str(sweep.ledger), "30"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    inode = sweep.ledger.stat().st_ino
    write_act(sweep, "cancel-1")
    assert main([str(sweep.ledger), "--if-older-than", "30"]) == 0
    assert sweep.ledger.stat().st_ino == inode
    assert main([str(sweep.ledger)]) == 0
    with Replica.open(sweep.ledger) as replica:
        assert published(sweep.ledger) == tables(replica.connection)
        LedgerPaths(sweep.ledger).replica_folder.chmod(0o777)
    assert main([str(sweep.ledger)]) == 1
    assert "can be written by other users" in capsys.readouterr().err


def test_who_finds_that_somebody_just_published_has_loaded_next_to_nothing(sweep: SweepBuilder) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "clusterduck.ledger.publish_if_old", str(sweep.ledger), "30"]
    loads = ["sqlite3" in subprocess.run(command, capture_output=True, text=True, check=True).stderr for _ in range(2)]
    assert loads == [True, False]
