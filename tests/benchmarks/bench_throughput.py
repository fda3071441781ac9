"""How long a sweep of runs that do nothing takes, beside Hydra's own launcher and its joblib launcher, in one session.

    pip install hydra-joblib-launcher
    python tests/benchmarks/bench_throughput.py [--runs 100] [--rounds 3]

Prints the median wall-clock and CPU seconds per run of each, start-up taken off (measured with one run), and ratios.
The rounds are interleaved, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

APP = Path(__file__).with_name("noop_app.py")

CLUSTERDUCK = [
    "hydra/launcher=clusterduck_local",
    "hydra.launcher.parallel_runs_per_node=2",
    "hydra.launcher.wait_for_completion=true",
]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def sweep(folder: Path, runs: int, launcher: list[str]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one sweep, the launcher's own composing of every run included."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = [sys.executable, str(APP), "--multirun", f"+x=range({runs})", f"hydra.sweep.dir={folder}/out", *launcher]
    cpu_before = _cpu_of_children()
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    return took, _cpu_of_children() - cpu_before


def by_hand(folder: Path, runs: int) -> tuple[float, float]:
    """Hydra's own launcher twice at the same time, each with half of the runs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    cpu_before = _cpu_of_children()
    began = time.perf_counter()
    both = [
        subprocess.Popen(
            [sys.executable, str(APP), "--multirun", f"+x=range({part})", f"hydra.sweep.dir={folder}/out{number}"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number, part in enumerate((runs // 2, runs - runs // 2))
    ]
    codes = [each.wait() for each in both]
    if any(codes):
        raise SystemExit("Hydra's own launcher failed")
    return time.perf_counter() - began, _cpu_of_children() - cpu_before


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "sweep"
        ways = {
            "clusterduck, 2 slots": lambda runs: sweep(folder, runs, CLUSTERDUCK),
            "Hydra's own, one after another": lambda runs: sweep(folder, runs, []),
            "Hydra's own, twice by hand": lambda runs: by_hand(folder, runs),
        }
        if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"):
            ways["joblib launcher, 2 jobs"] = lambda runs: sweep(folder, runs, JOBLIB)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                start, _ = way(2)
                took, _ = way(options.runs + 2)
                times[name].append((took - start) / options.runs)
    ours = statistics.median(times["clusterduck, 2 slots"])
    print(f"{options.runs} runs, {options.rounds} rounds, median per run, composing on the login node included")
    for name, measured in times.items():
        middle = statistics.median(measured)
        print(f"{name:32} {middle * 1e3:7.1f} ms   {middle / ours:5.2f} x clusterduck's")


if __name__ == "__main__":
    main()
