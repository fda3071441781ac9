"""Many agents that report, and many readers that fold, on real files and in processes of their own.

By hand: ``python tests/ledger/crowd.py`` has 64 agents report as busy ones do for a minute of real time, while 8
readers on 5 hosts fold; then 1,000 agents an hour in compressed time. It prints how long a reader's look took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from journals_builder import SweepBuilder, kept_counts, recount, tables

from clusterduck import events
from clusterduck.events import Event
from clusterduck.journal import JournalWriter
from clusterduck.ledger import fold, schema
from clusterduck.ledger.replica import Replica
from clusterduck.model import AgentId
from clusterduck.paths import LedgerPaths

FORK = multiprocessing.get_context("fork")

#: On so many hosts are readers: the first has more than one.
HOSTS = 5


def start(work: Callable[..., None], *arguments: Any) -> Any:
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def finish(processes: list[Any], patience_s: float = 120.0) -> None:
    for process in processes:
        process.join(patience_s)
    ends = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # one that hangs must not keep others waiting that end with it
    assert ends == [0] * len(processes)


def on_host(folder: Path) -> None:
    """Make this process one of another host: with a temporary folder, and so a replica, of its own."""
    folder.mkdir(exist_ok=True)
    tempfile.tempdir = str(folder)


def folded_afresh(ledger: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What a replica holds into which one process folds everything, undisturbed."""
    replica = sqlite3.connect(":memory:", isolation_level=None)
    try:
        schema.migrate(replica, "a fold afresh")
        for sweep, root in LedgerPaths(ledger).sweep_roots().items():
            for path in sorted(root.rglob("*.jsonl")):  # one by one
                done = fold.fold_journals(replica, sweep, root, [path], clock=lambda: 0.0, is_time_up=lambda: False)
                assert not done.problems, done.problems
        return tables(replica)
    finally:
        replica.close()


class SimulatedAgent:
    """The journal of one agent, written as an agent writes it: state changes fsynced, heartbeats only flushed."""

    def __init__(self, sweep: SweepBuilder, index: int, runs: range, at: float, slots: int = 4) -> None:
        self._sweep = sweep
        self._slots = slots
        self._waiting = list(reversed(runs))
        self._in_slots: dict[int, tuple[int, float]] = {}
        agent = AgentId(f"0-{index}", 0, 0)
        sweep.paths.agent(agent).mkdir(parents=True, exist_ok=True)
        self._journal = JournalWriter(sweep.paths.agent(agent), sweep.sweep, f"agent {agent}")
        self._record([sweep.agent_started(at, f"node{index}", slots, job_id=str(9000 + index))], sync=False)

    @property
    def is_done(self) -> bool:
        return not self._waiting and not self._in_slots

    def turn_over(self, slot: int, at: float, sync: bool = True) -> None:
        """End what runs in a slot, and start the next."""
        new: list[Event] = []
        if slot in self._in_slots:
            run, since = self._in_slots.pop(slot)
            new.append(self._sweep.ended(at, run, state="FAILED" if run % 7 == 6 else "COMPLETED", started_at=since))
        if self._waiting:
            run = self._waiting.pop()
            self._in_slots[slot] = (run, at)
            new += [self._sweep.started(at, run, slot=slot), self._sweep.located(at, run)]
        self._record(new, sync)

    def beat(self, at: float) -> None:
        """Show that it is alive."""
        self._record([self._sweep.beat(at, len(self._in_slots), self._slots)], sync=False)

    def end(self, at: float) -> None:
        """Close."""
        self._journal.append([events.AgentEnded(time=at, reason="every run is done", exit_code=0)])
        self._journal.close()

    def _record(self, new: list[Event], sync: bool) -> None:
        self._journal.append(new)
        self._journal.flush(sync)


def planned(base: Path, agents: int, runs: int) -> SweepBuilder:
    """A sweep with so many jobs, whose journal of the launch is there."""
    sweep = SweepBuilder(base)
    sweep.write(sweep.launch_journal(), sweep.launch(runs, agents))
    return sweep


def report_for_a_while(sweep: SweepBuilder, mine: range, runs_each: int, seconds: float) -> None:
    """Be some of the agents: a heartbeat every ten seconds, and each slot turned over as often as its share of the runs
    asks, spread evenly over ``seconds`` of real time; 0: as fast as it can."""
    slots = 4
    agents = {
        index: SimulatedAgent(sweep, index, range(index * runs_each, (index + 1) * runs_each), time.time())
        for index in mine
    }
    steps = slots * (-(-runs_each // slots) + 1)
    begin = time.monotonic()
    beat_at = begin
    for number in range(steps):
        due = begin + seconds * number / steps
        for share, agent in enumerate(agents.values()):
            pause = due + seconds / steps * share / len(agents) - time.monotonic()
            if pause > 0:
                time.sleep(pause)  # the pace is what is asked for; nothing is waited for
            agent.turn_over(number % slots, time.time())
        if time.monotonic() >= beat_at:
            beat_at += 10.0
            for agent in agents.values():
                agent.beat(time.time())
    for agent in agents.values():
        assert agent.is_done
        agent.end(time.time())


def read_on(ledger: Path, host: Path, writing: Any, told: Path, pause_s: float, has_looked: Any) -> None:
    """Fold as long as somebody writes, with such pauses, and once more; note how long each look took.

    ``has_looked`` is released after the first look.
    """
    on_host(host)
    took: list[float] = []
    folded = 0
    with Replica.open(ledger) as replica:
        while True:
            is_last = not writing.is_set()
            report = replica.catch_up()
            assert report.problems == () and not report.more
            folded += report.events
            took.append(report.seconds)
            if len(took) == 1:
                has_looked.release()
            for (sweep,) in replica.connection.execute("SELECT id FROM sweep").fetchall():
                replica.connection.execute("BEGIN")
                assert kept_counts(replica.connection, sweep) == recount(replica.connection, sweep)
                replica.connection.execute("COMMIT")
            if is_last:
                break
            time.sleep(pause_s)  # a reader's own pace
    told.write_text(json.dumps({"events": folded, "took": took}))


def crowd(
    base: Path, *, agents: int, runs_each: int, seconds: float, readers: int = 8, writers: int = 4, pause_s: float = 0.0
) -> dict[str, Any]:
    """Let agents report while readers fold, and prove that every reader has it all.

    Returns what they did, for people.
    """
    sweep = planned(base / "project", agents, agents * runs_each)
    writing = FORK.Event()
    writing.set()
    hosts = [base / f"host{max(0, index - (readers - HOSTS))}" for index in range(readers)]
    told = [base / f"reader{index}.json" for index in range(readers)]
    has_looked = FORK.Semaphore(0)
    folding = [
        start(read_on, sweep.ledger, host, writing, file, pause_s, has_looked)
        for host, file in zip(hosts, told, strict=True)
    ]
    for _ in folding:
        assert has_looked.acquire(timeout=120), "a reader never looked"
    shares = [range(agents * part // writers, agents * (part + 1) // writers) for part in range(writers)]
    finish([start(report_for_a_while, sweep, share, runs_each, seconds) for share in shares], seconds + 120)
    writing.clear()
    finish(folding)
    afresh = folded_afresh(sweep.ledger)
    lines = sum(path.read_bytes().count(b"\n") for path in sweep.paths.journals())
    spoken = [json.loads(file.read_text()) for file in told]
    for host in set(hosts):
        on_host(host)
        with Replica.open(sweep.ledger) as replica:
            assert tables(replica.connection) == afresh, f"{host.name} has something else than the journals say"
        here = sum(one["events"] for one, where in zip(spoken, hosts, strict=True) if where == host)
        assert here == lines, f"{host.name} folded {here} events of {lines}"
    return {"events": lines, "took": [seconds for one in spoken for seconds in one["took"]]}


def night(base: Path, *, agents: int, beats: int, look_every: int) -> dict[str, Any]:
    """A thousand agents that are alive, each with four runs, in compressed time: between two looks of the one reader
    lie so many heartbeats of each.

    Returns what it took, for people.
    """
    sweep = planned(base / "project", agents, 4 * agents)
    at = sweep.start + 100
    crew = []
    looks: list[float] = []
    now = at

    def clock() -> float:
        return now

    on_host(base / "host")
    with _many_files(), Replica.open(sweep.ledger, clock) as replica:
        for index in range(agents):
            crew.append(SimulatedAgent(sweep, index, range(4 * index, 4 * index + 4), at))
            for slot in range(4):
                crew[-1].turn_over(slot, at + 1, sync=False)
        for beat in range(beats):
            now = at + 10 * (beat + 1)
            for agent in crew:
                agent.beat(now)
            if (beat + 1) % look_every == 0:
                report = replica.catch_up()
                assert report.problems == () and not report.more
                looks.append(report.seconds)
                living = replica.connection.execute(
                    "SELECT count(*), min(heartbeat_at) = max(heartbeat_at), sum(busy) FROM agent "
                    "WHERE state = 'RUNNING'"
                ).fetchone()
                assert living == (agents, 1, 4 * agents)
        for agent in crew:
            for slot in range(4):
                agent.turn_over(slot, now + 1, sync=False)
            agent.end(now + 2)
        now += 60
        replica.catch_up(look_at=[sweep.sweep])
        counts = kept_counts(replica.connection, sweep.sweep)
        assert counts == recount(replica.connection, sweep.sweep)
        assert sum(counts.values()) == 4 * agents and set(counts) == {"COMPLETED", "FAILED"}
        assert tables(replica.connection) == folded_afresh(sweep.ledger)
    return {"looks": looks, "bytes": sum(path.stat().st_size for path in sweep.paths.journals())}


@contextlib.contextmanager
def _many_files() -> Iterator[None]:
    """A thousand agents are a thousand processes; here one process has all their files open."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--beats", type=int, default=360, help="heartbeats of each of the thousand agents")
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="duck-crowd-"))
    try:
        (base / "crowd").mkdir()
        done = crowd(
            base / "crowd",
            agents=options.agents,
            readers=options.readers,
            runs_each=max(8, round(options.seconds / 10 * 4)),
            seconds=options.seconds,
            pause_s=1.0,
        )
        took = sorted(done["took"])
        print(
            f"{options.agents} agents, {done['events']} events in {options.seconds:.0f} s; {options.readers} readers "
            f"looked {len(took)} times, every second; a look took {1000 * statistics.median(took):.0f} ms (median), "
            f"{1000 * took[-1]:.0f} ms (longest); every replica equals a fold afresh"
        )
        (base / "night").mkdir()
        done = night(base / "night", agents=1000, beats=options.beats, look_every=1)
        looks = sorted(done["looks"])
        print(
            f"1000 agents, {options.beats} heartbeats each, {done['bytes'] / 1e6:.0f} MB; a look at one heartbeat of "
            f"all took {1000 * statistics.median(looks):.0f} ms (median), {1000 * looks[-1]:.0f} ms (longest)"
        )
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    os.environ.pop("CLUSTERDUCK_LEDGER", None)
    main()
