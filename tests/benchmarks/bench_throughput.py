"""How long a sweep of runs that do nothing takes, beside Hydra's own launcher and its joblib launcher, in one session.

    pip install hydra-joblib-launcher
    python tests/benchmarks/bench_throughput.py [--runs 1000] [--rounds 1]

All of them with Hydra's own sweeper, two runs at a time; and once more with ours, which composes less before it
launches. Prints the seconds from Enter to the end, and from when the sweeper has composed the runs to the end: what is
aimed at is about these, since before them no launcher is asked (Hydra's sweeper composes all runs in one process, by
hand in two). Then the CPU seconds of a run's process, and of the agent and fork server for each run, beside Hydra's
own compose and run_job in a fork. The rounds are interleaved, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from bench_slot_gap import FLOOR, floor

from clusterduck.events import AgentStarted, AttemptEnded, AttemptStarted, Event
from clusterduck.journal import read
from clusterduck.paths import SweepPaths

APP = Path(__file__).with_name("noop_app.py")

CLUSTERDUCK = [
    "hydra/launcher=clusterduck_local",
    "hydra.launcher.parallel_runs_per_node=2",
    "hydra.launcher.wait_for_completion=true",
]
OURS, WITH_OUR_SWEEPER = "clusterduck, 2 slots", "clusterduck, 2 slots, hydra/sweeper=clusterduck"
JOBLIB, BY_HAND = "joblib launcher, 2 jobs", "Hydra's own launcher, twice by hand"

#: What is aimed at: so many times our own time from the launch on.
AIMS = {JOBLIB: 2.0, BY_HAND: 1.3}

#: So much CPU time of a run is aimed at, of Hydra's own compose and run_job in a fork.
MOST_CPU = 1.15


@dataclass
class Times:
    """Seconds of each round: from Enter to the end, and from when the sweeper had composed the runs."""

    whole: list[float] = field(default_factory=list)
    launched: list[float] = field(default_factory=list)


@dataclass
class Cpu:
    """CPU seconds: of runs' processes, of the agent and fork server for each run, and of their start."""

    runs: list[float] = field(default_factory=list)
    agent: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)


def sweep(folder: Path, runs: int, options: list[str], beside: int = 1) -> tuple[float, float]:
    """Seconds that a sweep takes in all, and after its sweeper has composed the runs.

    Args:
        folder: emptied, for what it writes.
        runs: how many.
        options: the launcher's.
        beside: so many sweeps at the same time share the runs; the last to have composed them counts.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    began = time.time()
    parts = [
        subprocess.Popen(
            [
                *[
                    sys.executable,
                    str(APP),
                    "--multirun",
                    f"+x=range({runs * part // beside},{runs * (part + 1) // beside})",
                ],
                *[f"hydra.sweep.dir={folder}/out{part}", *options],
            ],
            cwd=folder,
            env={**os.environ, "CLUSTERDUCK_BENCHMARK_LAUNCHED": str(folder / f"launched{part}")},
            stdout=subprocess.DEVNULL,
        )
        for part in range(beside)
    ]
    codes = [each.wait() for each in parts]
    if any(codes):
        raise SystemExit(f"a sweep with {options or ['basic']} failed")
    ended = time.time()
    composed = max(float((folder / f"launched{part}").read_text()) for part in range(beside))
    return ended - began, ended - composed


def measured(folder: Path, runs: int, cpu: Cpu) -> tuple[float, float]:
    """As :func:`sweep` with clusterduck, and notes CPU seconds."""
    agent: list[int] = []
    overhead: dict[int, float] = {}
    start: list[tuple[float, int]] = []  # when runs were first seen: CPU seconds until then, how many runs
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            if not agent:
                agent.extend(event.pid for event in events(folder) if isinstance(event, AgentStarted))
            for pid in agent:
                with contextlib.suppress(psutil.Error):
                    for process in (psutil.Process(pid), *psutil.Process(pid).children()):
                        overhead[process.pid] = sum(process.cpu_times()[:2])
            begun = [] if start else [event for event in events(folder) if isinstance(event, AttemptStarted)]
            if begun:
                start.append((sum(overhead.values()), len(begun)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    took = sweep(folder, runs, CLUSTERDUCK)
    done.set()
    watcher.join()
    ends = [event for event in events(folder) if isinstance(event, AttemptEnded)]
    cpu.runs += [event.cpu_time_s for event in ends if event.cpu_time_s is not None]
    ((until_then, begun),) = start
    cpu.agent.append((sum(overhead.values()) - until_then) / (runs - begun))
    cpu.start.append(until_then)
    return took


def events(folder: Path) -> list[Event]:
    """All that the sweep's journals hold."""
    found: list[Event] = []
    for root in (folder / "out0" / ".clusterduck").glob("*/"):
        for journal in SweepPaths(root).journals():
            found += read(journal, limit=1 << 28).events
    return found


def cpu_of_floor(folder: Path, runs: int) -> float:
    """CPU seconds of Hydra's own compose and run_job in a fork."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    floor(folder, runs)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / runs


def show(name: str, times: Times, ours: Times) -> bool:
    """Print a line; returns whether what is aimed at was reached."""
    whole, launched = statistics.median(times.whole), statistics.median(times.launched)
    ratios = (whole / statistics.median(ours.whole), launched / statistics.median(ours.launched))
    aim = AIMS.get(name)
    print(
        f"{name:48} {whole:7.1f} s {ratios[0]:5.2f} x   {launched:7.1f} s {ratios[1]:5.2f} x"
        + (f"   aimed at: {aim:g} x" if aim else "")
    )
    return aim is None or ratios[1] >= aim


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    cpu, floors = Cpu(), []
    times: dict[str, Times] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "sweep"
        ways: dict[str, Callable[[], tuple[float, float]]] = {
            OURS: lambda: measured(folder, options.runs, cpu),
            WITH_OUR_SWEEPER: lambda: sweep(folder, options.runs, [*CLUSTERDUCK, "hydra/sweeper=clusterduck"]),
            BY_HAND: lambda: sweep(folder, options.runs, [], beside=2),
        }
        if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"):
            ways[JOBLIB] = lambda: sweep(folder, options.runs, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
        for _ in range(options.rounds):
            floors.append(cpu_of_floor(Path(scratch), 20))
            for name, way in ways.items():
                whole, launched = way()
                times.setdefault(name, Times()).whole.append(whole)
                times[name].launched.append(launched)
    print(
        f"{options.runs} runs, {options.rounds} rounds, medians: from Enter to the end; after the sweeper has composed"
    )
    reached = [show(name, times[name], times[OURS]) for name in ways]
    least, run, agent = map(statistics.median, (floors, cpu.runs, cpu.agent))
    print("CPU time of each run:")
    for name, took in {
        FLOOR: least,
        "the run's process": run,
        "agent and fork server": agent,
    }.items():
        print(f"{name:48} {took * 1e3:7.1f} ms {took / least:5.2f} x")
    print(
        f"{'together':48} {(run + agent) * 1e3:7.1f} ms {(run + agent) / least:5.2f} x   aimed at: {MOST_CPU} x at most"
    )
    print(f"{'agent and fork server, their start, once':48} {statistics.median(cpu.start) * 1e3:7.0f} ms")
    if not all(reached) or run + agent > MOST_CPU * least:
        raise SystemExit("not all that is aimed at was reached")


if __name__ == "__main__":
    main()
