"""How fast journals are folded, beside SQLite's own bulk insert of as many rows in the same session.

    python tests/benchmarks/bench_folding.py [--runs 100000] [--agents 64] [--night 1000] [--rounds 3]

First the bulk: the journals of one sweep of that many runs on ``--agents`` agents, folded by one process on one core
into a replica that is made anew, until it has taken its place: what ``clusterduck rebuild`` does.
Then the night: as many runs on ``--night`` agents that have also sent a heartbeat every ten minutes for ten hours,
caught up with in the replica of the evening before, which knows the plan: what the first command, or the dashboard,
does in the morning. Each fold also has the floor beside it: what ``executemany`` takes to put
as many rows of the width of an attempt's into a table with one index, in one transaction.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ledger"))

from journals_builder import SweepBuilder

from clusterduck.ledger.replica import Replica
from clusterduck.paths import LedgerPaths

#: What is to be reached: events a second in bulk, seconds for a night.
EVENTS_PER_S, NIGHT_S = 50_000, 10.0

NIGHT = 10 * 3600.0


def build(base: Path, runs: int, agents: int) -> SweepBuilder:
    """A sweep that is over: its launch, and the journals of its agents."""
    built = SweepBuilder(base, "bench-00000")
    built.write(built.launch_journal(), built.launch(runs, batches=agents))
    for batch in range(agents):
        mine = range(runs * batch // agents, runs * (batch + 1) // agents)
        built.write(built.agent_journal(f"0-{batch}"), built.agent(mine, f"node{batch}"))
    return built


def build_night(base: Path, runs: int, agents: int) -> SweepBuilder:
    """A sweep of which the plan is folded, and then a night goes by."""
    built = SweepBuilder(base, "bench-00000")
    built.write(built.launch_journal(), built.launch(runs, batches=agents))
    with Replica.open(built.ledger) as replica:
        replica.catch_up()
    for batch in range(agents):
        mine = range(runs * batch // agents, runs * (batch + 1) // agents)
        events = built.agent(mine, f"node{batch}")
        start, share = events[0].time, NIGHT / (events[-1].time - events[0].time)
        for event in events:
            event.__dict__["time"] = start + (event.time - start) * share
        beats = [built.beat(start + 600.0 * beat, 4) for beat in range(1, round(NIGHT / 600))]
        built.write(built.agent_journal(f"0-{batch}"), sorted([*events, *beats], key=lambda event: event.time))
    return built


def fold(built: SweepBuilder, known: Path | None = None) -> tuple[int, float, float, int]:
    """Fold what is not known yet, or all anew: events, seconds, processor seconds, bytes of the replica."""
    folder = LedgerPaths(built.ledger).replica_folder
    shutil.rmtree(folder, ignore_errors=True)
    if known is not None:
        shutil.copytree(known, folder)
    with Replica.anew(built.ledger) if known is None else Replica.open(built.ledger) as replica:
        at, cpu = time.perf_counter(), time.process_time()
        report = replica.catch_up()
        if known is None:
            replica.take_its_place()
        took, used = time.perf_counter() - at, time.process_time() - cpu
        assert not report.problems, report.problems
        pages = replica.connection.execute("PRAGMA page_count").fetchone()[0]
        return report.events, took, used, pages * replica.connection.execute("PRAGMA page_size").fetchone()[0]


def insert(path: Path, rows: int) -> float:
    """Seconds of SQLite's own bulk insert."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    columns = [f"c{number}" for number in range(32)]
    connection.execute(f"CREATE TABLE t (sweep, number, {', '.join(columns)}, PRIMARY KEY (sweep, number))")
    row = ["2025-10-09T08:53:20.000Z", 4711, None, 0.5] * 8
    at = time.perf_counter()
    connection.execute("BEGIN")
    connection.executemany(
        f"INSERT INTO t VALUES (?, ?{', ?' * 32})",  # only marks
        (("bench-00000", number, *row) for number in range(rows)),
    )
    connection.execute("COMMIT")
    took = time.perf_counter() - at
    connection.close()
    return took


def main() -> int:
    """Build, fold, print; 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--agents", type=int, default=64, help="agents of the bulk")
    parser.add_argument("--night", type=int, default=1000, metavar="AGENTS", help="agents of the night")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        for part in ("tmp", "bulk", "night"):
            (base / part).mkdir()
        os.environ["TMPDIR"], tempfile.tempdir = str(base / "tmp"), None
        bulk = build(base / "bulk", options.runs, options.agents)
        night = build_night(base / "night", options.runs, options.night)
        shutil.copytree(LedgerPaths(night.ledger).replica_folder, base / "known")
        print(f"{options.runs} runs, best and median of {options.rounds} rounds; load {os.getloadavg()[0]:.1f}")
        bulks, nights, floors = [], [], []
        for _ in range(options.rounds):
            floors.append(insert(base / "floor.db", options.runs))
            bulks.append(fold(bulk))
            nights.append(fold(night, base / "known"))
    floor = statistics.median(floors)
    print(f"SQLite's own insert of {options.runs} rows           median {floor:.2f} s")
    missed = 0
    for label, found in (
        (f"bulk into a new replica, {options.agents} agents", bulks),
        (f"a night into yesterday's replica, {options.night} agents", nights),
    ):
        events, size = found[0][0], found[0][3]
        best, median = min(one[1] for one in found), statistics.median(one[1] for one in found)
        cpu = min(one[2] for one in found)
        print(
            f"{label}: {events} events in {best:.2f} s (median {median:.2f} s, processor {cpu:.2f} s): "
            f"{events / best:.0f} events/s, {events / cpu:.0f} per processor second; "
            f"{best / min(floors):.1f} x the insert; {size / options.runs:.0f} bytes a run"
        )
    rate, whole = bulks[0][0] / min(one[2] for one in bulks), min(one[1] for one in nights)
    for name_, is_kept in (
        (f"{EVENTS_PER_S} events/s in bulk", rate >= EVENTS_PER_S),
        (f"night under {NIGHT_S:g} s", whole < NIGHT_S),
    ):
        print(f"{name_}: {'yes' if is_kept else 'MISSED'}")
        missed += not is_kept
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
