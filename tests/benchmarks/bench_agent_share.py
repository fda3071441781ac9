"""What the agent and its fork server take of a node while all of its slots are in use.

    python tests/benchmarks/bench_agent_share.py [--slots 128] [--seconds 60]

Prints their CPU time as a share of one core, and their memory (proportional set size, which counts a page that several
processes share in parts; and resident set size), their threads, and how many processes there are besides the runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from clusterduck.events import AgentStarted
from clusterduck.journal import read
from clusterduck.paths import SweepPaths

APP = Path(__file__).with_name("noop_app.py")

#: How long the runs may take to begin, and what is prepared ahead to be ready, in seconds.
PATIENCE_S = 300.0


def launch(folder: Path, slots: int, run_s: float) -> psutil.Process:
    """Launch a sweep that fills all slots more than twice over; returns its agent."""
    command = [sys.executable, str(APP), "--multirun", f"+x=range({slots * 3})", "hydra/launcher=clusterduck_local"]
    subprocess.run(
        [*command, f"hydra.launcher.parallel_runs_per_node={slots}", f"hydra.sweep.dir={folder}/out"],
        cwd=folder,
        env={**os.environ, "CLUSTERDUCK_BENCHMARK_SECONDS": str(run_s)},
        check=True,
        capture_output=True,
    )
    (root,) = (path for path in (folder / "out" / ".clusterduck").iterdir() if path.is_dir())
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        for journal in SweepPaths(root).journals():
            for event in read(journal, limit=1 << 20).events:
                if isinstance(event, AgentStarted):
                    return psutil.Process(event.pid)
        time.sleep(0.1)
    raise SystemExit("the agent never began")


def fork_server(agent: psutil.Process) -> psutil.Process:
    """The agent's fork server."""
    return next(child for child in agent.children() if "clusterduck.agent.forkserver" in child.cmdline())


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        agent = launch(Path(scratch), options.slots, run_s=options.seconds * 20)
        try:
            show(agent, options.slots, options.seconds)
        finally:
            agent.terminate()
            agent.wait(120)


def show(agent: psutil.Process, slots: int, seconds: float) -> None:
    """Wait until all slots are in use and all is prepared, measure for some seconds, and print."""
    until = time.monotonic() + PATIENCE_S
    server = None
    while time.monotonic() < until:
        time.sleep(1.0)
        server = server or fork_server(agent)
        children = server.children()
        quiet = [child for child in children if child.status() == psutil.STATUS_SLEEPING]
        if len(children) > slots and len(quiet) == len(children):
            break
    assert server is not None
    both = (agent, server)
    before = [sum(process.cpu_times()[:2]) for process in both]
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    children = server.children()
    print(f"{slots} slots in use, {len(children) - slots} runs prepared ahead, over {took:.0f} s:")
    for name, process, cpu in zip(("agent", "fork server"), both, before, strict=True):
        share = (sum(process.cpu_times()[:2]) - cpu) / took
        memory = process.memory_full_info()
        print(
            f"{name:12} {share:7.2%} of a core   {memory.pss / 1e6:6.1f} MB proportional, {memory.rss / 1e6:6.1f} MB "
            f"resident   {process.num_threads()} threads   {len(process.children())} children"
        )


if __name__ == "__main__":
    main()
