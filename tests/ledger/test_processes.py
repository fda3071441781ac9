"""Many processes at once, and processes killed at any instant, on real files."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from crowd import FORK, finish, folded_afresh, on_host, start
from journals_builder import SweepBuilder, kept_counts, recount, tables

from clusterduck.ledger import fold, schema
from clusterduck.ledger.publish import publish
from clusterduck.ledger.replica import Replica


def migrate(path: Path, ready: Barrier) -> None:
    ready.wait(60)
    connection = sqlite3.connect(path, timeout=180, isolation_level=None)
    schema.migrate(connection, path)
    assert schema.version(connection) == len(schema.STEPS)
    assert connection.execute("SELECT count(*) FROM run").fetchone() == (0,)


def test_twenty_processes_make_the_tables_at_once(tmp_path: Path) -> None:
    ready = FORK.Barrier(20)
    finish([start(migrate, tmp_path / "new.db", ready) for _ in range(20)])


def open_and_catch_up(ledger: Path, ready: Barrier, stretch: int, folded: Any) -> None:
    fold.STRETCH_BYTES = stretch
    ready.wait(60)
    with Replica.open(ledger) as replica:
        report = replica.catch_up()
        assert not report.problems and not report.more
        folded.put(report.events)


def test_several_processes_fold_the_same_journals_at_once(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path)
    sweep.write_all(runs=240, batches=3)
    other = SweepBuilder(tmp_path, "other-a2b3c")
    other.write_all(runs=40, batches=2)
    ready = FORK.Barrier(5)
    folded = FORK.SimpleQueue()
    finish([start(open_and_catch_up, sweep.ledger, ready, 3000, folded) for _ in range(5)])
    lines = sum(path.read_bytes().count(b"\n") for one in (sweep, other) for path in one.paths.journals())
    assert sum(folded.get() for _ in range(5)) == lines, "an event was folded twice, or not at all"
    with Replica.open(sweep.ledger) as replica:
        assert tables(replica.connection) == folded_afresh(sweep.ledger)
        for one in (sweep, other):
            assert kept_counts(replica.connection, one.sweep) == recount(replica.connection, one.sweep)


def fold_when_watched(ledger: Path, begun: Any) -> None:
    fold.STRETCH_BYTES = 500  # a transaction every few events
    with Replica.open(ledger) as replica:
        begun.set()
        replica.catch_up()


def test_killed_at_any_instant_and_caught_up(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path)
    sweep.write_all(runs=1000, batches=3)
    total = sum(path.stat().st_size for path in sweep.paths.journals())
    dice = random.Random(4)
    offsets = [0]
    patience = 0.01  # seconds; more where the machine is so busy that nothing happens in that time
    while offsets[-1] < total and len(offsets) < 100:
        begun = FORK.Event()
        process = start(fold_when_watched, sweep.ledger, begun)
        assert begun.wait(60)
        process.join(dice.uniform(0, patience))
        process.kill()
        process.join(60)
        with Replica.open(sweep.ledger) as replica:
            connection = replica.connection
            offsets.append(connection.execute('SELECT coalesce(sum("offset"), 0) FROM journal').fetchone()[0])
            if offsets[-1]:
                assert kept_counts(connection, sweep.sweep) == recount(connection, sweep.sweep)
        if offsets[-1] == offsets[-2]:
            patience *= 1.2
    assert offsets == sorted(offsets)
    assert len({offset for offset in offsets if 0 < offset < total}) >= 3, "it was never killed half-way"
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        assert tables(replica.connection) == folded_afresh(sweep.ledger)


def write_on(sweep: SweepBuilder) -> None:
    """An agent that goes on reporting, a few events at a time, whenever the ledger has been replaced."""

    def published() -> tuple[int, int]:
        status = os.stat(sweep.ledger)
        return status.st_ino, status.st_mtime_ns

    new = sweep.agent(range(400), "node0")
    deadline = time.monotonic() + 180
    for begin in range(0, len(new), 40):
        before = published()
        sweep.write(sweep.agent_journal(), new[begin : begin + 40], close=False)
        while published() == before:
            assert time.monotonic() < deadline, "the ledger was hardly ever replaced"
            os.sched_yield()


def publish_on(ledger: Path, host: Path, writing: Any) -> None:
    on_host(host)
    with Replica.open(ledger) as replica:
        while True:
            is_last = not writing.is_set()
            replica.catch_up()
            publish(replica, ledger)
            if is_last:
                break


def test_racing_publishers_of_several_hosts(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path)
    sweep.write(sweep.launch_journal(), sweep.launch(400))
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        assert publish(replica, sweep.ledger)
    writing = FORK.Event()
    writing.set()
    publishers = [start(publish_on, sweep.ledger, tmp_path / f"host{index}", writing) for index in range(3)]
    writer = start(write_on, sweep)
    generations = []
    while any(process.is_alive() for process in publishers):
        if not writer.is_alive():
            writing.clear()
        with sqlite3.connect(f"file:{sweep.ledger}?mode=ro", uri=True) as reader:
            assert reader.execute("PRAGMA journal_mode").fetchone() == ("delete",)
            assert reader.execute("PRAGMA quick_check").fetchone() == ("ok",)
            assert kept_counts(reader, sweep.sweep) == recount(reader, sweep.sweep)
            generations.append(int(schema.get_meta(reader, "generation") or -1))
        reader.close()
    finish([writer, *publishers])
    assert generations == sorted(generations)
    assert len(set(generations)) > 1, "no reader saw it replaced"
    with sqlite3.connect(sweep.ledger) as reader:
        assert tables(reader) == folded_afresh(sweep.ledger)
    reader.close()
    left = {path.name for path in sweep.ledger.parent.iterdir()}
    assert left == {".gitignore", "ledger.db", "ledger.db.id", "sweeps"}
