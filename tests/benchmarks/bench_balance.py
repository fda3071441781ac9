"""How evenly runs of different lengths fill four jobs of four slots, and what happens if one of the nodes dies.

    python tests/benchmarks/bench_balance.py [--runs 480] [--unit 1] [--seed 1] [--ways fixed shared known dying]

Real processes, by ``clusterduck_local``: runs that sleep 1 to 20 units of time (log-normal, drawn from the seed). With
the default unit a way takes two and a half minutes; with a much shorter one, what is measured is how two cores cope
with the 0.1 s of processor time that Hydra needs for every run. From the first run's begin to the last one's end,
beside the lower bound (the longest run, or all runs' sleep divided by the slots; what a run needs beside sleeping
counts against us), and how much processor time a run took:

fixed   each job executes its own runs
shared  with ``share_runs: true``
known   the same once more: how long the runs take is known from the sweep before, so the longest begin first
dying   as ``known``, and half-way one of the four agents is killed with all that it runs. ``max_retries: 1`` has others
        do the work again. The bound counts the work that was lost as work, and every slot for as long as it was
        there: those of the dead agent until its death, those of the job that replaces it from its first run's begin.

Also shown: what the best dispatcher without knowledge would reach, with no time lost between runs.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import launching
import psutil

JOBS = SLOTS = 4

#: The share of the lower bound to be reached.
RATIO = 1.1

WAYS = {
    "fixed": [],
    "shared": ["hydra.launcher.share_runs=true"],
    "known": ["hydra.launcher.share_runs=true"],
    "dying": ["hydra.launcher.share_runs=true", "hydra.launcher.max_retries=1"],
}


def durations(seed: int, count: int) -> list[float]:
    """How long each run takes, in units: 1 to 20, the median 3.3."""
    numbers = random.Random(seed)
    return [round(min(20.0, max(1.0, numbers.lognormvariate(1.2, 0.8))), 2) for _ in range(count)]


def dispatched(took: Sequence[float]) -> float:
    """When all are done if whoever is free takes the next."""
    slots = [0.0] * (JOBS * SLOTS)
    for each in took:
        heapq.heapreplace(slots, slots[0] + each)
    return max(slots)


def sweep(folder: Path, way: str, took: list[float]) -> None:
    """Launch them all, and wait until they are over."""
    os.chdir(folder)
    launcher = launching.launcher(
        folder,
        "local",
        launching.sleep,
        f"hydra.sweep.dir={folder}/{way}",
        f"hydra.launcher.parallel_runs_per_node={SLOTS}",
        f"hydra.launcher.total_runs_per_node={-(-len(took) // JOBS)}",
        "hydra.launcher.wait_for_completion=true",
        *WAYS[way],
    )
    launcher.launch([[f"took={each:.3f}"] for each in took], initial_job_idx=0)


def attempts(ledger: Path, way: str) -> list[tuple[float, float, int, str, str, float]]:
    """Begin and end (seconds since the epoch), run, state, batch and processor time of all that this way has
    executed."""
    connection = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    rows = connection.execute(
        "SELECT started_at, ended_at, run, attempt.state, batch, coalesce(cpu_time_s, 0) FROM attempt "
        "JOIN sweep ON sweep.id = attempt.sweep WHERE sweep.folder LIKE ? AND started_at IS NOT NULL "
        "ORDER BY started_at",
        (f"%/{way}",),
    ).fetchall()
    connection.close()
    return [(_seconds(began), _seconds(ended or began), *others) for began, ended, *others in rows]


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def kill_an_agent(folder: Path) -> float:
    """Kill one of the agents, and all that it runs, as a power failure would; returns when."""
    agents = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        if "submitit.core._submit" in command and process.info["cwd"] == str(folder):
            agents.append(process)
    doomed = agents[-1]
    family = [*doomed.children(recursive=True), doomed]
    for process in family:
        process.send_signal(signal.SIGSTOP)  # so that none can report another's end
    for process in {*doomed.children(recursive=True), *family}:
        process.kill()
    return time.time()


def measure(folder: Path, way: str, took: list[float]) -> tuple[float, float, float]:
    """Seconds from the first begin to the last end, the lower bound, and processor seconds of a run, itself."""
    ledger = folder / ".clusterduck" / "ledger.db"
    command = [sys.executable, __file__, "--in", str(folder), "--ways", way, "--took", json.dumps(took)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    died_at = 0.0
    if way == "dying":
        time.sleep(sum(took) / (JOBS * SLOTS) / 2)
        died_at = kill_an_agent(folder)
    _, said = process.communicate()
    done = attempts(ledger, way)
    if {run for _, _, run, state, *_ in done if state == "COMPLETED"} != set(range(len(took))):
        raise SystemExit(f"not all runs completed:\n{said}")
    began, ended = done[0][0], max(end for _, end, *_ in done)
    work, bound = sum(took), max(*took, sum(took) / (JOBS * SLOTS))
    if way == "dying":
        work += sum(died_at - at for at, _, _, state, *_ in done if state != "COMPLETED")
        replacing = {
            batch: at - began for at, *_, batch, _ in reversed(done) if batch.startswith("r")
        }  # each one's first
        until = died_at - began
        bound = (work + SLOTS * (sum(replacing.values()) - until)) / (SLOTS * (JOBS - 1 + len(replacing)))
    return ended - began, bound, sum(cpu for *_, cpu in done) / len(done)


def main() -> int:
    """Measure, print; 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=480)
    parser.add_argument("--unit", type=float, default=1.0, help="in seconds (default: 1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--in", dest="folder", help=argparse.SUPPRESS)
    parser.add_argument("--took", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        sweep(Path(options.folder), options.ways[0], options.took)
        return 0
    took = [each * options.unit for each in durations(options.seed, options.runs)]
    bound = max(*took, sum(took) / (JOBS * SLOTS))
    print(
        f"{options.runs} runs of {min(took):.2f} to {max(took):.2f} s (seed {options.seed}), {sum(took):.0f} s in all, "
        f"on {JOBS} x {SLOTS} slots; without knowledge, nobody could be sure of less than "
        f"{dispatched(took) / bound:.3f} of the bound"
    )
    rows = [["", "took, s", "bound, s", "ratio", "CPU by run, ms"]]
    missed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.environ.pop("CLUSTERDUCK_LEDGER", None)
        launching.app(folder)
        (folder / ".clusterduck").mkdir(0o700)
        for way in options.ways:
            makespan, limit, cpu = measure(folder, way, took)
            missed |= way != "fixed" and makespan > RATIO * limit
            rows.append([way, f"{makespan:.1f}", f"{limit:.1f}", f"{makespan / limit:.3f}", f"{cpu * 1e3:.0f}"])
    launching.table(rows)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
