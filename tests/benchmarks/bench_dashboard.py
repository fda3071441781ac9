"""How fast and how large the dashboard is with many runs, beside a bare Textual app in the same session.

    python tests/benchmarks/bench_dashboard.py [--runs 100000] [--sweeps 10] [--nodes 64] [--rounds 5] [--keys 60]

A ledger is made in a folder of its own, with sweeps of which the newest has jobs that run on that many nodes of four
slots; their agents write heartbeats and the ends of runs all along. The dashboard runs in a pseudo-terminal of 200x50.
Measured in wall-clock time, and in processor time of the whole process, which other work on the machine does not
change: from its start to the first picture with the sweeps in it (several starts), from a key to the picture that
follows (in each view, also the key that brings it to the front), its memory, from ``q`` to its end, and what it uses
while the agents work and once nothing happens any more.

``--runs 1000000 --limit 2`` is the same with a million runs; ``--keep FOLDER`` keeps the ledger there for another time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ledger"))

from journals_builder import SweepBuilder
from terminal import Terminal

from clusterduck.ledger.replica import Replica
from clusterduck.paths import SweepPaths

HERE = Path(__file__).resolve().parent
SIZE = (200, 50)

#: The keys that are pressed in turn in each view; each changes the picture.
MOVES = {
    "1 overview": "jk",
    "2 nodes": "ljhk",
    "3 timeline": "+hl-",
    "4 runs": ["j", "\x04", "G", "k", "g"],
    "5 run": "JK",
    "6 activity": "jk",
}

#: The figures to stay under.
KEY_MS, MEMORY_MB, IDLE_PERCENT, QUIT_S = 60.0, 150.0, 2.0, 1.0

#: Seconds between two heartbeats of an agent, and how long a run takes.
BEAT_S, RUN_S = 10.0, 60.0


def build(base: Path, runs: int, sweeps: int, nodes: int) -> None:
    """Sweeps beside each other in ``base``; the newest one is at work on ``nodes`` nodes."""
    now = time.time()
    each = runs // sweeps
    for index in range(sweeps):
        is_live = index == sweeps - 1
        built = SweepBuilder(base, name_of(index), start=now - (3600 if is_live else 90_000 - index))
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


def name_of(index: int) -> str:
    """The id of a sweep."""
    return f"bench-{index:05d}"


class Existing(SweepBuilder):
    """More of a sweep that is there."""

    def __init__(self, base: Path, sweep: str) -> None:
        self.sweep, self.start = sweep, time.time()
        self.paths = SweepPaths.of(base / "multirun" / sweep, sweep)


class Agents(threading.Thread):
    """What the agents of the newest sweep go on to write: heartbeats, and now and then the end of a run."""

    def __init__(self, base: Path, runs: int, sweeps: int, nodes: int) -> None:
        super().__init__(daemon=True)
        self._sweep = Existing(base, name_of(sweeps - 1))
        self._each, self._nodes = runs // sweeps, nodes
        self._is_over = threading.Event()

    def stop(self) -> None:
        """Write no more."""
        self._is_over.set()
        self.join()

    def run(self) -> None:
        """Each agent in its turn."""
        built, turn = self._sweep, 0
        ended: dict[int, int] = {}
        while not self._is_over.wait(BEAT_S / self._nodes):
            node = turn % self._nodes
            low = self._each * node // self._nodes
            run = low + (self._each * (node + 1) // self._nodes - low) // 2 + ended.get(node, 0)
            now = time.time()
            new = [built.beat(now, 4)]
            if turn // self._nodes % max(1, round(RUN_S / BEAT_S / 4)) == 0:
                slot = ended.get(node, 0) % 4
                ended[node] = ended.get(node, 0) + 1
                new += [built.ended(now, run), built.started(now, run + 4, slot=slot), built.located(now, run + 4)]
            built.write(built.agent_journal(f"0-{node}"), new, close=False)
            turn += 1


class Figures:
    """Prints one figure after the other, and counts those that are missed."""

    def __init__(self) -> None:
        self.missed = 0

    def tell(self, name: str, text: str, value: float | None = None, limit: float | None = None) -> None:
        """Print a figure; with a limit, say whether it is kept."""
        verdict = ""
        if limit is not None and value is not None:
            verdict = f"   (under {limit:g}: {'yes' if value < limit else 'MISSED'})"
            self.missed += value >= limit
        print(f"{name:<46}{text}{verdict}", flush=True)


def spread(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """Smallest, median and 95th percentile."""
    ordered = sorted(values)
    low, middle, high = ordered[0], statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return f"min {low:.{digits}f}  median {middle:.{digits}f}  p95 {high:.{digits}f} {unit}"


def first_paints(command: Sequence[str], text: str, base: Path, environ: dict[str, str]) -> tuple[float, float, float]:
    """Start it once: seconds to a picture that holds ``text``, processor seconds until then, seconds to quit."""
    terminal = Terminal(command, base, environ, SIZE)
    took = terminal.wait_for(text)
    cpu = terminal.cpu_s
    terminal.rest(0.7)
    return took, cpu, terminal.quit()


def press_all(terminal: Terminal, keys: Sequence[str], times: int) -> tuple[list[float], list[float]]:
    """Press keys in turn, as fast as a person: milliseconds to the picture, wall-clock and processor."""
    walls, cpus = [], []
    for index in range(times):
        cpu = terminal.cpu_s
        took = terminal.press(keys[index % len(keys)])
        if took is not None:
            walls.append(took * 1000)
            cpus.append((terminal.cpu_s - cpu) * 1000)
        terminal.rest(0.06)
    return walls, cpus


def measure(base: Path, options: argparse.Namespace, environ: dict[str, str], figures: Figures) -> None:
    """Open the dashboard, press keys, and print what comes of it."""
    bare = [sys.executable, str(HERE / "bare_app.py")]
    dashboard = [sys.executable, "-m", "clusterduck_tui", "--read-only"]
    agents = Agents(base, options.runs, options.sweeps, options.nodes)
    agents.start()

    walls: dict[str, list[float]] = {"bare": [], "dashboard": []}
    cpus: dict[str, list[float]] = {"bare": [], "dashboard": []}
    quits = []
    for _ in range(options.rounds):
        for name, command, text in (("bare", bare, "bare"), ("dashboard", dashboard, name_of(options.sweeps - 1))):
            took, cpu, ended = first_paints(command, text, base, environ)
            walls[name].append(took)
            cpus[name].append(cpu)
            if name == "dashboard":
                quits.append(ended)
    ratio = statistics.median(walls["dashboard"]) / statistics.median(walls["bare"])
    figures.tell("bare app: start to first paint", spread(walls["bare"], "s", 2))
    figures.tell("   processor time", spread(cpus["bare"], "s", 2))
    figures.tell(
        "dashboard: start to first paint with data",
        f"{spread(walls['dashboard'], 's', 2)}, {ratio:.1f} x bare",
        statistics.median(walls["dashboard"]),
        options.limit,
    )
    figures.tell("   processor time", spread(cpus["dashboard"], "s", 2))
    figures.tell("q to its end", spread(quits, "s", 2), max(quits), QUIT_S)

    terminal = Terminal(bare, base, environ, SIZE)
    terminal.wait_for("bare")
    terminal.rest(1.0)
    floor, floor_cpu = press_all(terminal, "j", options.keys)
    terminal.quit()
    figures.tell("bare app: key to paint", spread(floor, "ms", 1))
    figures.tell("   processor time", spread(floor_cpu, "ms", 1))

    terminal = Terminal(dashboard, base, environ, SIZE)
    terminal.wait_for(name_of(options.sweeps - 1))
    terminal.rest(2.0)
    for name, keys in MOVES.items():
        fronts = []
        for _ in range(3):
            terminal.press("6" if name[0] == "1" else "1")
            terminal.rest(0.5)
            fronts.append((terminal.press(name[0]) or 0.0) * 1000)
            terminal.rest(0.7)
        found, found_cpu = press_all(terminal, keys, options.keys)
        p95 = sorted(found)[int(len(found) * 0.95)]
        by = statistics.median(found) / statistics.median(floor)
        figures.tell(f"{name}: key to paint", f"{spread(found, 'ms', 1)}, {by:.1f} x bare", p95, KEY_MS)
        figures.tell("   processor time", spread(found_cpu, "ms", 1))
        figures.tell("   bringing it to the front", spread(fronts, "ms", 1), statistics.median(fronts), KEY_MS)
        if len(found) < options.keys:
            figures.tell("   keys without a picture", str(options.keys - len(found)))

    for name, is_idle in (("while the agents work", False), ("idle", True)):
        if is_idle:
            agents.stop()
        for view in ("1", "2"):
            terminal.press(view)
            terminal.rest(5.0)
            before = terminal.cpu_s
            terminal.rest(options.idle)
            share = 100 * (terminal.cpu_s - before) / options.idle
            limit = IDLE_PERCENT if is_idle else None
            figures.tell(f"{name}, view {view}", f"{share:.2f} % of a core", share, limit)
    memory = terminal.memory_mb
    figures.tell("memory at most", f"{memory:.0f} MB", memory, MEMORY_MB)
    figures.tell("q to its end", f"{terminal.quit():.2f} s")


def main() -> int:
    """Build, measure, print; 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each app")
    parser.add_argument("--keys", type=int, default=60, help="keys pressed in each view")
    parser.add_argument("--idle", type=float, default=20.0, metavar="S", help="how long to look on in each state")
    parser.add_argument("--limit", type=float, default=1.0, metavar="S", help="the first paint is to stay under")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the ledger there, or use the one that is")
    options = parser.parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory() as name:
        base = options.keep or Path(name)
        (base / "tmp").mkdir(parents=True, exist_ok=True)
        environ = {**os.environ, "TMPDIR": str(base / "tmp")}
        os.environ["TMPDIR"], tempfile.tempdir = environ["TMPDIR"], None
        environ.pop("CLUSTERDUCK_LEDGER", None)
        at = time.time()
        if not (base / "multirun").exists():
            build(base, options.runs, options.sweeps, options.nodes)
        print(f"{options.runs} runs in {options.sweeps} sweeps, {options.nodes} nodes of 4 slots live; ", end="")
        print(f"made and folded in {time.time() - at:.0f} s; load of the machine {os.getloadavg()[0]:.1f}")
        measure(base, options, environ, figures)
    return 1 if figures.missed else 0


if __name__ == "__main__":
    sys.exit(main())
