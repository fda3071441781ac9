"""What many runs and many slots cost the node: one agent with 128 slots, or one sweep over 16 agents.

    python tests/benchmarks/bench_scale.py agent [--runs 5000] [--slots 128] [--took 1]
    python tests/benchmarks/bench_scale.py sweep [--runs 10000] [--agents 16] [--slots 8] [--took 1]

Real processes, by ``clusterduck_local``, runs that sleep one second. Each run needs some 0.1 s of processor time for
Hydra's own part, which a machine of few cores cannot give to so many at once; so the time that all took is shown beside
its lower bound: sleep divided by the slots, or the runs' own processor time divided by the cores. Shown besides: the
processor time of the agents and of their fork servers, as a share of one core and by the run; their memory at the
highest (proportional set size: what they share with their runs counts in part); threads and processes that are neither
agent, fork server nor run; how much of the slots' time runs were in them; and what is on record in the end.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import datetime
from pathlib import Path

import launching
import psutil

#: From one look at the processes to the next, in seconds.
LOOK_EVERY_S = 1.0


def sweep(folder: Path, options: argparse.Namespace) -> None:
    """Launch them all, and wait until they are over."""
    os.chdir(folder)
    launcher = launching.launcher(
        folder,
        "local",
        launching.sleep,
        f"hydra.sweep.dir={folder}/out",
        f"hydra.launcher.parallel_runs_per_node={options.slots}",
        f"hydra.launcher.total_runs_per_node={-(-options.runs // options.agents)}",
        f"hydra.launcher.share_runs={'true' if options.agents > 1 else 'false'}",
        "hydra.launcher.wait_for_completion=true",
    )
    runs = [[f"took={options.took}", f"+x={run}"] for run in range(options.runs)]
    launcher.launch(runs, initial_job_idx=0)


class Watcher:
    """What the agents' and fork servers' processes used, as seen from time to time.

    Args:
        folder: the sweep was launched in.
        agents: how many there will be.
    """

    def __init__(self, folder: Path, agents: int) -> None:
        self._count = agents
        self._folder = str(folder)
        self._agents: dict[int, psutil.Process] = {}
        self._servers: dict[int, psutil.Process] = {}
        self.cpu: dict[tuple[str, int], float] = defaultdict(float)
        self.memory_mb: dict[tuple[str, int], float] = defaultdict(float)
        self.threads = 0
        self.others: Counter[str] = Counter()

    def look(self) -> None:
        """Look once."""
        if len(self._agents) < self._count:
            self._find()
        for pid, agent in self._agents.items():
            try:
                for child in agent.children():
                    line = child.cmdline()
                    if "clusterduck.agent.forkserver" in line:
                        self._servers[child.pid] = child
                    elif line:
                        self.others[" ".join(line[1:4])[:40]] += 1
                self._note("agent", pid, agent)
                self.threads = max(self.threads, agent.num_threads())
            except psutil.Error:
                continue  # it has ended
        for pid, server in self._servers.items():
            try:
                self._note("fork server", pid, server)
            except psutil.Error:
                continue

    def _find(self) -> None:
        for process in psutil.process_iter(["cmdline", "cwd"]):
            command = process.info["cmdline"] or []
            if "submitit.core._submit" in command and process.info["cwd"] == self._folder:
                self._agents[process.pid] = process

    def _note(self, what: str, pid: int, process: psutil.Process) -> None:
        used = process.cpu_times()
        self.cpu[what, pid] = used.user + used.system
        self.memory_mb[what, pid] = max(self.memory_mb[what, pid], process.memory_full_info().pss / 2**20)

    def total(self, what: str) -> tuple[float, float]:
        """Processor seconds of all of a kind together, and the highest memory of one, in MB."""
        cpu = sum(used for (kind, _), used in self.cpu.items() if kind == what)
        return cpu, max((used for (kind, _), used in self.memory_mb.items() if kind == what), default=0.0)


def recorded(ledger: Path) -> tuple[Counter[str], float, float, float]:
    """States, seconds from the first begin to the last end, seconds in slots, processor seconds, of all attempts."""
    connection = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    rows = connection.execute(
        "SELECT state, started_at, ended_at, coalesce(duration_s, 0), coalesce(cpu_time_s, 0) FROM attempt"
    ).fetchall()
    connection.close()
    first = min(datetime.fromisoformat(row[1][:-1]) for row in rows if row[1])
    last = max(datetime.fromisoformat(row[2][:-1]) for row in rows if row[2])
    return (
        Counter(row[0] for row in rows),
        (last - first).total_seconds(),
        sum(row[3] for row in rows),
        sum(row[4] for row in rows),
    )


def main() -> int:
    """Measure, print; 1 if not all is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("agent", "sweep"))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--agents", type=int)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--took", type=float, default=1.0)
    parser.add_argument("--in", dest="folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    is_agent = options.what == "agent"
    options.runs = options.runs or (5000 if is_agent else 10_000)
    options.agents = options.agents or (1 if is_agent else 16)
    options.slots = options.slots or (128 if is_agent else 8)
    if options.folder:
        sweep(Path(options.folder), options)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.environ.pop("CLUSTERDUCK_LEDGER", None)
        launching.app(folder)
        (folder / ".clusterduck").mkdir(0o700)
        watcher = Watcher(folder, options.agents)
        began = time.time()
        command = [sys.executable, __file__, *sys.argv[1:], "--in", str(folder)]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        looking = 0.0
        while process.poll() is None:
            before = time.process_time()
            watcher.look()
            looking += time.process_time() - before
            time.sleep(LOOK_EVERY_S)
        whole = time.time() - began
        states, makespan, in_slots, runs_cpu = recorded(folder / ".clusterduck" / "ledger.db")
        if states != {"COMPLETED": options.runs}:
            print(f"not all runs completed: {dict(states)}\n{process.stderr.read()}")
            return 1
    slots = options.slots * options.agents
    bound = max(options.runs * options.took / slots, runs_cpu / (os.cpu_count() or 1))
    rows = [["", "", "by the run", "of a core", "memory of one, MB"]]
    for what in ("agent", "fork server"):
        cpu, memory = watcher.total(what)
        name = f"{options.agents} {what}{'s' if options.agents > 1 else ''}"
        rows.append(
            [name, f"{cpu:.1f} s CPU", f"{cpu / options.runs * 1e3:.2f} ms", f"{cpu / makespan:.1%}", f"{memory:.0f}"]
        )
    cpu = launching.cpu_s() - looking
    of_core = f"{cpu / whole:.1%}"
    rows.append(["the waiting launcher", f"{cpu:.1f} s CPU", f"{cpu / options.runs * 1e3:.2f} ms", of_core, ""])
    rows.append(["the runs", f"{runs_cpu:.1f} s CPU", f"{runs_cpu / options.runs * 1e3:.2f} ms", "", ""])
    print(
        f"{options.runs} runs of {options.took:g} s in {options.agents} x {options.slots} slots, {os.cpu_count()} cores"
    )
    print(f"from the first begin to the last end {makespan:.1f} s, lower bound {bound:.1f} s: {makespan / bound:.2f}")
    print(f"with launching and gathering what the runs returned {whole:.1f} s")
    print(f"runs were in the slots for {in_slots / (slots * makespan):.1%} of the time")
    print(f"an agent has {watcher.threads} threads; seen beside the runs: {dict(watcher.others) or 'nothing'}")
    launching.table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
