"""How long a sweep of runs that do nothing takes, beside Hydra's own launcher and its joblib launcher, in one session.

    pip install hydra-joblib-launcher
    python tests/benchmarks/bench_throughput.py [--runs 100] [--rounds 3]

Prints the median wall-clock seconds per run of each, start-up taken off (measured with two runs), and ratios; then the
CPU seconds of a run's process beside Hydra's own compose and run_job in a fork, and those of the agent and fork server.
The rounds are interleaved, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from bench_slot_gap import floor

from clusterduck.events import AgentStarted, AttemptEnded, Event
from clusterduck.journal import read
from clusterduck.paths import SweepPaths

APP = Path(__file__).with_name("noop_app.py")

CLUSTERDUCK = [
    "hydra/launcher=clusterduck_local",
    "hydra/sweeper=clusterduck",
    "hydra.launcher.parallel_runs_per_node=2",
    "hydra.launcher.wait_for_completion=true",
]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def sweep(folder: Path, runs: int, launcher: list[str]) -> float:
    """Seconds that one sweep takes, the launcher's own composing of every run included."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = [sys.executable, str(APP), "--multirun", f"+x=range({runs})", f"hydra.sweep.dir={folder}/out", *launcher]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    return took


def by_hand(folder: Path, runs: int) -> float:
    """Hydra's own launcher twice at the same time, each with half of the runs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
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
    return time.perf_counter() - began


def clusterduck(folder: Path, runs: int, cpu: Cpu) -> float:
    """As :func:`sweep`, and notes CPU seconds: of each run's process, and of the agent and fork server per run."""
    agent: list[int] = []
    overhead: dict[int, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for pid in agent:
                with contextlib.suppress(psutil.Error):
                    for process in (psutil.Process(pid), *psutil.Process(pid).children()):
                        overhead[process.pid] = sum(process.cpu_times()[:2])
            if not agent:
                agent.extend(event.pid for event in events(folder) if isinstance(event, AgentStarted))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    took = sweep(folder, runs, CLUSTERDUCK)
    done.set()
    watcher.join()
    ends = [event for event in events(folder) if isinstance(event, AttemptEnded)]
    cpu.runs += [event.cpu_time_s for event in ends if event.cpu_time_s is not None]
    cpu.agent[runs] = sum(overhead.values())
    return took


def events(folder: Path) -> list[Event]:
    """All that the sweep's journals hold."""
    found: list[Event] = []
    for root in (folder / "out" / ".clusterduck").glob("*/"):
        for journal in SweepPaths(root).journals():
            found += read(journal, limit=1 << 28).events
    return found


@dataclass
class Cpu:
    """CPU seconds: of runs' processes, and of the agent and fork server of sweeps by their number of runs."""

    runs: list[float] = field(default_factory=list)
    agent: dict[int, float] = field(default_factory=dict)


def cpu_of_floor(folder: Path, runs: int) -> float:
    """CPU seconds of Hydra's own compose and run_job in a fork."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    floor(folder, runs)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / runs


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cpu = Cpu()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "sweep"
        ways = {
            "clusterduck, 2 slots": lambda runs: clusterduck(folder, runs, cpu),
            "Hydra's own, one after another": lambda runs: sweep(folder, runs, []),
            "Hydra's own, twice by hand": lambda runs: by_hand(folder, runs),
        }
        if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"):
            ways["joblib launcher, 2 jobs"] = lambda runs: sweep(folder, runs, JOBLIB)
        floors = []
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                start = way(2)
                times[name].append((way(options.runs + 2) - start) / options.runs)
            floors.append(cpu_of_floor(Path(scratch), 20))
    ours = statistics.median(times["clusterduck, 2 slots"])
    print(f"{options.runs} runs, {options.rounds} rounds, median per run, composing on the login node included")
    for name, measured in times.items():
        middle = statistics.median(measured)
        print(f"{name:32} {middle * 1e3:7.1f} ms   {middle / ours:5.2f} x clusterduck's")
    run, least = statistics.median(cpu.runs), statistics.median(floors)
    agent = (cpu.agent[options.runs + 2] - cpu.agent[2]) / options.runs
    print("CPU time per run:")
    print(f"Hydra's own compose and run_job in a fork {least * 1e3:6.1f} ms")
    print(f"the run's process                         {run * 1e3:6.1f} ms   {run / least:5.2f}")
    print(f"agent and fork server                     {agent * 1e3:6.1f} ms   {agent / least:5.2f}")
    if run + agent > 1.15 * least:
        raise SystemExit("aimed at: 1.15 times Hydra's own")


if __name__ == "__main__":
    main()
