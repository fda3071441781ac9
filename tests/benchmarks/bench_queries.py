"""How long every question takes that the dashboard and the command line ask of a large ledger: run it as a script.

    python tests/benchmarks/bench_queries.py [--runs 1000000] [--sweeps 10] [--nodes 64] [--rounds 7] [--keep FOLDER]

A ledger is made as for ``bench_dashboard.py``, and the questions are about its newest sweep. Every one of them is to
stay under 20 ms of the processor (the smallest of several rounds). Beside those that put all runs of a sweep in order
or search through all of them stands the floor, which is SQLite's own reading of the numbers of as many runs.

The picture of the timeline in a file is no such question. All attempts are in it, and it is read, drawn and written
once: it is told by how much that takes longer than SQLite's own reading of these attempts.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench_dashboard import Existing, build, name_of

from clusterduck import asking, standing, timeline
from clusterduck.events import RUNS_PER_LINE
from clusterduck.ledger import columns, history, listing, queries, times
from clusterduck.ledger.queries import Filter
from clusterduck.ledger.replica import Replica
from clusterduck.paths import HIDDEN, LEDGER_NAME
from clusterduck.reconcile import is_anything_open
from clusterduck_tui.feed import HISTORY_S
from clusterduck_tui.widgets.chart import AROUND, NAME

#: What a question may take, in milliseconds.
LIMIT_MS = 20.0

#: Rows and columns of the timeline on a screen of 200x50, and columns that it asks for when it looks closer.
SCREEN = 46
COLUMNS = 200 - NAME
AROUND_COLUMNS = COLUMNS * 7 // 4

#: All attempts of a sweep, as a picture of them needs them.
ATTEMPTS = "SELECT run, number, state, started_at, ended_at FROM attempt INDEXED BY attempt_by_slot WHERE sweep = ?"

#: The sweep that :func:`write_different` makes up.
DIFFERENT = "different"

Question = Callable[[], object]


def pages(connection: sqlite3.Connection, sweep: queries.Sweep) -> dict[str, Question]:
    """Questions whose answers are small."""
    now = time.time()
    heard = max(
        (
            times.to_seconds(agent.heartbeat_at)
            for agent in queries.agents(connection, alive=True)
            if agent.heartbeat_at
        ),
        default=now,
    )
    pending, running = sweep.counts["PENDING"], sweep.counts["RUNNING"]
    rows = (0, (SCREEN // AROUND + 2) * AROUND)

    def seen(start: float | None = None, end: float | None = None, columns: int = COLUMNS) -> object:
        return history.lanes(connection, sweep.id, start, end, rows=rows, columns=columns)

    asked: dict[str, Question] = {
        "sweeps": lambda: queries.sweeps(connection),
        "which sweep a word means": lambda: queries.resolve_sweep(connection, sweep.id),
        "jobs alive": lambda: queries.batches(connection, alive=True),
        "jobs of the sweep": lambda: queries.batches(connection, sweep.id),
        "agents alive": lambda: queries.agents(connection, alive=True),
        "slots alive": lambda: queries.slots(connection, alive=True),
        "load of every slot": lambda: history.load_history(connection, heard - HISTORY_S),
        "pace": lambda: history.pace(connection, sweep.id, pending, running, now),
        "occupancy": lambda: history.occupancy(connection, now),
        "keys that vary": lambda: queries.varying_keys(connection, sweep.id),
        "timeline, last quarter of an hour": lambda: seen(now - 900, now, AROUND_COLUMNS),
        "timeline, all of the time": seen,
        "acts": lambda: history.acts(connection),
        "what happened": lambda: history.happenings(connection, sweep.id),
        "a run": lambda: queries.run(connection, sweep.id, sweep.runs // 2),
        "its attempts": lambda: queries.attempts(connection, sweep.id, sweep.runs // 2),
        "350 runs by number": lambda: queries.runs_numbered(connection, sweep.id, range(1000, 1350)),
        "whether a job may live": lambda: is_anything_open(connection),
        "runs whose jobs were cancelled": lambda: standing.interrupted(connection, sweep.id),
        "jobs that were drained": lambda: standing.drained(connection, sweep.id),
        "agents to be asked": lambda: asking.Agents(connection, sweep.id),
        "order by number": lambda: listing.order(connection, listing.Listing(sweep.id)),
        "page of failed": lambda: queries.runs(connection, sweep.id, Filter(states=["FAILED"]), limit=100),
    }
    for sort in queries.SORTS:
        for way in (False, True):
            asked[f"page by {sort}{', descending' if way else ''}"] = lambda sort=sort, way=way: queries.runs(  # type: ignore[misc]
                connection, sweep.id, sort=sort, descending=way, limit=100
            )
    return asked


def write_different(connection: sqlite3.Connection, runs: int) -> None:
    """The overrides of a sweep whose runs each have a number and a name of their own, while it is connected."""
    cached = connection.execute("PRAGMA main.cache_size").fetchone()[0]
    connection.execute(f"PRAGMA temp.cache_size = {cached}")  # else it is read from its file each time
    connection.execute("CREATE TEMP TABLE override_key AS SELECT * FROM main.override_key WHERE 0")
    connection.execute("CREATE UNIQUE INDEX temp.different_key ON override_key(sweep, key)")
    connection.execute("CREATE TEMP TABLE override_part AS SELECT * FROM main.override_part WHERE 0")
    connection.execute("CREATE UNIQUE INDEX temp.different_part ON override_part(sweep, key, first_run)")
    draw = random.Random(1)
    plan = [(number, [f"x={draw.random()}", f"name=run_{draw.random()}"]) for number in range(runs)]
    columns.write(connection, DIFFERENT, (plan[at : at + RUNS_PER_LINE] for at in range(0, runs, RUNS_PER_LINE)))


def with_ended_jobs(replica: Replica, sweep: str) -> sqlite3.Connection:
    """A connection of its own that takes all jobs of a sweep for ended, so that no job will take what waits there."""
    connection = sqlite3.connect(f"{replica.path.as_uri()}?mode=ro", uri=True)
    connection.execute("CREATE TEMP TABLE batch AS SELECT * FROM main.batch")
    connection.execute("CREATE INDEX temp.batch_key ON batch(sweep, id)")
    connection.execute("UPDATE temp.batch SET state = 'TIMEOUT', cluster = 'local' WHERE sweep = ?", [sweep])
    connection.commit()
    return connection


def wholes(connection: sqlite3.Connection, sweep: queries.Sweep, ended: sqlite3.Connection) -> dict[str, Question]:
    """Questions that need all runs of the sweep; for some of them, all of its jobs have ended."""
    few = queries.sweeps(connection)[-1].id  # on 4 nodes
    slot = history.lanes(connection, few, rows=(0, 0))[0]
    middle = (slot.start + (slot.end or time.time())) / 2
    asked: dict[str, Question] = {
        "timeline of 16 slots, all of the time": lambda: history.lanes(connection, few, rows=(0, 16), columns=COLUMNS),
        "timeline of 16 slots, half of it": lambda: history.lanes(
            connection, few, slot.start, middle, rows=(0, 16), columns=AROUND_COLUMNS
        ),
        "which job takes each run that waits": lambda: standing.of_sweep(connection, sweep.id, {}),
        "the same, no job is left": lambda: standing.of_sweep(ended, sweep.id, {}),
        "runs that no job will take": lambda: standing.neglected(ended, [sweep.id], {}),
    }
    for sort in ("state", "attempt", "return_value", "duration_s", "host", "reason", "=lr"):
        asked[f"order by {sort}"] = lambda sort=sort: listing.order(connection, listing.Listing(sweep.id, sort=sort))  # type: ignore[misc]
    for words in ("state:failed", "node:node3", "batch:0-1", "lr=1e-3", "nan"):
        terms = listing.parse_filter(words)
        asked[f"filter {words}"] = lambda terms=terms: listing.order(connection, listing.Listing(sweep.id, terms))  # type: ignore[misc]
    write_different(connection, sweep.runs)
    asked["order by an override, all different"] = lambda: looked_at(columns.in_order(connection, DIFFERENT, "x"))
    asked["the same, all of them text"] = lambda: looked_at(columns.in_order(connection, DIFFERENT, "name"))
    return asked


def looked_at(order: Sequence[int]) -> object:
    """What a screen needs of an order: a stretch in the middle of it, and where the run under the cursor stands."""
    middle = len(order) // 2
    return order[middle : middle + 350], order.index(middle)


def measure(asked: dict[str, Question], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of each question: wall-clock, and of the processor."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, question in asked.items():
        question()
        for _ in range(rounds):
            at, cpu = time.perf_counter(), time.thread_time()
            question()
            took = (time.perf_counter() - at) * 1000, (time.thread_time() - cpu) * 1000
            found.setdefault(name, []).append(took)
    return found


def floor_of(connection: sqlite3.Connection, sql: str, sweep: str, rounds: int) -> float:
    """Milliseconds of the processor for rows that are only read."""
    return min(cpu for _, cpu in measure({sql: lambda: connection.execute(sql, [sweep]).fetchall()}, rounds)[sql])


def main() -> int:
    """Build, ask, print; 1 if a question takes too long."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the ledger there, or use the one that is")
    options = parser.parse_args()
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        base = options.keep or Path(name)
        (base / "tmp").mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"], tempfile.tempdir = str(base / "tmp"), None
        if not (base / "multirun").exists():
            build(base, options.runs, options.sweeps, options.nodes)
        with Replica.open(base / HIDDEN / LEDGER_NAME) as replica:
            connection = replica.connection
            sweep = queries.sweep(connection, Existing(base, name_of(options.sweeps - 1)).sweep)
            runs = sum(one.runs for one in queries.sweeps(connection))
            print(f"{runs} runs, {sweep.runs} of them in {sweep.id}; load of the machine {os.getloadavg()[0]:.1f}")
            floor_sql = "SELECT number FROM run WHERE sweep = ? ORDER BY number"
            floor = floor_of(connection, floor_sql, sweep.id, options.rounds)
            whole = f"all runs of the sweep (SQLite's own reading of their numbers: {floor:.1f} ms)"
            ended = with_ended_jobs(replica, sweep.id)
            few, many = pages(connection, sweep), wholes(connection, sweep, ended)
            least = floor_of(connection, ATTEMPTS, sweep.id, options.rounds)
            a_file = f"a file, written once (SQLite's own reading of the attempts that are in it: {least:.1f} ms)"
            drawn: Question = lambda: timeline.export(connection, sweep.id, Path(name) / "timeline.html")  # noqa: E731
            groups = (
                ("pages and figures", few, None, LIMIT_MS),
                (whole, many, floor, LIMIT_MS),
                (a_file, {"picture of the timeline": drawn}, least, math.inf),
            )
            for title, asked, its_floor, limit in groups:
                print(title)
                for name_, found in measure(asked, options.rounds).items():
                    walls = [wall for wall, _ in found]
                    best, median, cpu = min(walls), statistics.median(walls), min(cpu for _, cpu in found)
                    verdict = "" if its_floor is None else f", {cpu / its_floor:.1f} x the floor"
                    if cpu >= limit:
                        verdict += f"   (under {limit:g}: MISSED)"
                        missed.append(name_)
                    print(f"  {name_:<38}min {best:8.2f}  median {median:8.2f}  processor {cpu:8.2f} ms{verdict}")
    print(f"under {LIMIT_MS:g} ms: {'all' if not missed else f'{len(missed)} MISSED: ' + '; '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
