"""How fast and how large the dashboard is with many runs: run it as a script.

    python tests/benchmarks/bench_dashboard.py [--runs 100000] [--sweeps 10] [--nodes 64] [--keys 40]

A replica is made in a folder of its own, with sweeps of which one has jobs that run on that many nodes of four slots.
Measured in a process of its own: from the start of the interpreter to the first paint with data, from a key to the
paint that follows it in each view (median and 95 %), and the process's memory. ``--idle S`` also measures the processor
time that it takes while nobody does anything and nothing happens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from textual import events
from textual.app import App

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ledger"))

#: The keys that are pressed in turn in each view.
MOVES = {
    "1": ["j", "k"],
    "2": ["l", "j", "h", "k"],
    "3": ["plus", "h", "l", "minus"],
    "4": ["j", "ctrl+d", "G", "g"],
    "5": ["J", "t", "K"],
    "6": ["j", "ctrl+d", "k"],
}

#: The figures to stay under.
LIMITS = {"first paint, s": 1.0, "key to paint p95, ms": 60.0, "memory, MB": 150.0}


def build(base: Path, runs: int, sweeps: int, nodes: int) -> None:
    """Sweeps beside each other in ``base``; the newest one is at work on ``nodes`` nodes."""
    from journals_builder import SweepBuilder

    from clusterduck.ledger.replica import Replica

    now = time.time()
    each = runs // sweeps
    for index in range(sweeps):
        is_live = index == sweeps - 1
        built = SweepBuilder(base, f"bench-{index:05d}", start=now - (3600 if is_live else 90_000 - index))
        count = nodes if is_live else 4
        built.write(built.launch_journal(), built.launch(each, batches=count))
        for batch in range(count):
            low, high = each * batch // count, each * (batch + 1) // count
            if not is_live:
                built.write(built.agent_journal(f"0-{batch}"), built.agent(range(low, high), f"node{batch}"))
                continue
            done = range(low, low + (high - low) // 2)
            events = [e for e in built.agent(done, f"node{batch}") if e.name != "agent_ended"]
            events += [built.started(now - 60, done.stop + slot, slot=slot) for slot in range(4)]
            events += [built.beat(now - 590 + 10 * beat, 4) for beat in range(58)]
            built.write(built.agent_journal(f"0-{batch}"), events, close=False)
    with Replica.open(built.ledger) as replica:
        while replica.catch_up(5.0).more:
            pass


async def measure(base: Path, keys: int, idle_s: float) -> dict[str, object]:
    """Open the dashboard and press keys."""
    import psutil

    from clusterduck_tui.app import Dashboard

    begun = psutil.Process().create_time()
    app = Dashboard(folder=base, read_only=True)
    found: dict[str, object] = {}
    async with app.run_test(size=(200, 50)) as pilot:
        while not (app.known.sweeps and app.known.chosen):
            await pilot.pause(0.001)
        await pilot.pause()
        found["first paint, s"] = round(time.time() - begun, 3)
        slowest = 0.0
        for key, moves in (
            ("1", "jk"),
            ("2", "lh"),
            ("3", "lh"),
            ("4", ["j", "ctrl+d", "G", "g"]),
            ("5", "Jt"),
            ("6", "jk"),
        ):
            await pilot.press(key)
            await pilot.pause(0.8)
            times = []
            for index in range(keys):
                at = time.perf_counter()
                await app_press(app, moves[index % len(moves)])
                times.append((time.perf_counter() - at) * 1000)
                await asyncio.sleep(0.02)
            times.sort()
            p95 = times[int(len(times) * 0.95)]
            slowest = max(slowest, p95)
            found[f"view {key}: key to paint median / p95, ms"] = (round(statistics.median(times), 1), round(p95, 1))
        found["key to paint p95, ms"] = round(slowest, 1)
        if idle_s:
            await pilot.press("1")
            await pilot.pause(3)
            before = time.process_time()
            await asyncio.sleep(idle_s)
            found["idle, % of a core"] = round(100 * (time.process_time() - before) / idle_s, 2)
        found["memory, MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


async def app_press(app: App[None], key: str) -> None:
    """Press a key as the terminal's driver would, and wait until what it did has been painted.

    The key goes from the app to the widget that has the focus; so does the question whether it is done.
    """
    done = asyncio.Event()

    def at_widget() -> None:
        app.screen.call_after_refresh(done.set)

    def at_app() -> None:
        (app.focused or app.screen).call_later(at_widget)

    app.post_message(events.Key(key, key if len(key) == 1 else None))
    app.call_later(at_app)
    await done.wait()


def main() -> int:
    """Build, measure, print; 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--keys", type=int, default=40)
    parser.add_argument("--idle", type=float, default=0.0, metavar="S")
    parser.add_argument("--in", dest="base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.base:
        print(json.dumps(asyncio.run(measure(Path(options.base), options.keys, options.idle))))
        return 0
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        environment = {**os.environ, "TMPDIR": str(base / "tmp")}
        (base / "tmp").mkdir()
        os.environ["TMPDIR"], tempfile.tempdir = environment["TMPDIR"], None
        at = time.time()
        build(base, options.runs, options.sweeps, options.nodes)
        took = f"folded in {time.time() - at:.0f} s"
        print(f"{options.runs} runs in {options.sweeps} sweeps, {options.nodes} nodes live; {took}")
        command = [sys.executable, __file__, "--in", name, "--keys", str(options.keys), "--idle", str(options.idle)]
        begun = time.time()
        process = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found = json.loads(process.stdout)
        print(f"the whole took {time.time() - begun:.1f} s")
    missed = 0
    for name, value in found.items():
        limit = LIMITS.get(name)
        is_missed = limit is not None and value > limit
        missed += is_missed
        print(
            f"{name:<45} {value}" + (f"   (to stay under {limit:g}{': missed' if is_missed else ''})" if limit else "")
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
