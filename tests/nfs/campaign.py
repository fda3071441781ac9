"""What is done to sweeps on one version of NFS: first nothing, then one fault after another, each to another sweep."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from evidence import REPLICA_S, Amiss, Effect, differences, effects, judge, lag, lateness, lines, readings, rows
from machines import LEASE_S, Lab, wait_until

#: What there is to do, in this order.
SWEEPS = ("plain", "power", "pause", "late", "publish", "restart", "full")

#: How soon a request is to be delivered, in seconds.
REQUEST_S = 5.0

#: While the file system is away, a run that does not use it may be late by so many seconds, on a busy machine, and an
#: agent's heartbeats, which come every ten, may be so far apart.
LATE_S, BEAT_S = 2.0, 14.0

#: How long the slowest sweep may take, with its faults, in seconds.
SWEEP_S = 240.0

#: How long a machine is frozen, in seconds.
PAUSE_S = 60.0

#: Slurm calls a silent node down after so many seconds, where that is wanted, and else.
SHORT_TIMEOUT_S, USUAL_TIMEOUT_S = 15, 150

#: How long a client that wakes late may take to see that its job was started again and to end all it has, in seconds.
STEP_DOWN_S = 60.0

#: How long the published ledger may take to have the end: the lock of a publisher whose host lost power holds for 60 s.
PUBLISHED_S = 100.0

#: How long a machine is without power before it is switched on again, in seconds.
DARK_S = 5.0

#: How long the export stays full after all that ran has ended, in seconds.
FULL_S = 8.0

#: After a fault has passed, how long clients may take to go on, in seconds: their leases and locks come first.
SETTLE_S = LEASE_S + 15.0


#: Fills the export to its last block, and lets nobody believe that it is full who has not tried.
FILL = (
    "fallocate -l $(($(df --output=avail -B1 /export | tail -1) * 95 / 100)) /export/filler-0;"
    " for n in 1 2 3; do dd if=/dev/zero of=/export/filler-$n bs=4k conv=fsync 2>/dev/null; done;"
    " ! dd if=/dev/zero of=/export/filler-4 bs=4k count=1 conv=fsync 2>/dev/null"
)


@dataclass
class Row:
    """One line of the table."""

    nfs: str
    what: str
    runs: int = 0
    ends: str = ""
    lag_s: float | None = None
    reads: int = 0
    again: int = 0
    requests: list[float] = field(default_factory=list)
    took_s: float = 0.0
    load: float = 0.0
    note: str = ""
    complaints: list[str] = field(default_factory=list)


@dataclass
class Sweep:
    """A sweep under way: its id, and what was done to it."""

    id: str
    runs: int
    seconds: float
    began: float
    amiss: list[Amiss] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    requests: list[float] = field(default_factory=list)
    lost_at: float = 0.0
    note: str = ""
    complaints: list[str] = field(default_factory=list)


class Campaign:
    """All sweeps on one version.

    Args:
        lab: the machines.
        version: "3" or "4.2".
        app: the folder with ``sweep_app.py`` and the readers.
        rows: gets a row for each sweep.
    """

    def __init__(self, lab: Lab, version: str, app: Path, rows: list[Row]) -> None:
        self._lab = lab
        self._version = version
        self._mount = f"/mnt/v{version[0]}"
        self._project = f"{self._mount}/duck{version[0]}"
        self._ledger = f"{self._project}/.clusterduck/ledger.db"
        self._notes = lab.shared / f"notes-{version}"
        self._notes.mkdir()
        self._inside = f"/host/notes-{version}"
        self._readers: dict[str, tuple[subprocess.Popen[bytes], float]] = {}  # and since when
        self._loads: list[float] = []  # of the real machine, when each sweep began
        self.rows = rows
        lab.run("login", f"mkdir -p {self._project}")
        for name in ("sweep_app.py", "watch.py", "poll_ledger.py", "fold_anew.py", "publish_and_hold.py"):
            shutil.copy(app / name, lab.shared)
            lab.run("login", f"cp /host/{name} {self._project}/")

    def run(self, left: list[str]) -> None:
        """Do these sweeps and take each off the list; where one is not seen to its end, these machines are done for."""
        while left:
            name = left.pop(0)
            try:
                getattr(self, f"_{name}")()
                if not left:
                    self._stop_readers()
                    self._compare()
            except Exception as error:  # whatever it was: the other sweeps are to be done
                traceback.print_exc()
                self.rows.append(Row(self._version, name, complaints=[f"not seen to its end: {error}"]))
                return

    # --- the sweeps

    def _plain(self) -> None:
        with self._sweep("nothing", runs=24, seconds=3, long=(0, 1, 12, 13)) as sweep:
            self._wait_for(sweep, lambda told: {0, 1, 12, 13} <= {effect.run for effect in told}, "long runs begin")
            for run, with_signal in ((0, True), (12, True), (1, False), (13, False)):
                self._cancel(sweep, run, with_signal)

    def _power(self) -> None:
        with self._sweep(f"a client lost power for {DARK_S:.0f} s", runs=12, seconds=6) as sweep:
            self._wait_for_the_middle(sweep)
            self._lab.kill("c1")
            sweep.lost_at = time.time()
            time.sleep(DARK_S)
            self._lab.boot("c1")
            sweep.amiss.append(Amiss(sweep.lost_at, time.time() + SETTLE_S, ("c1",)))

    def _pause(self) -> None:
        with self._sweep(f"a client was paused for {PAUSE_S:.0f} s", runs=12, seconds=5) as sweep:
            self._wait_for_the_middle(sweep)
            began = time.time()
            self._lab.pause("c1")
            time.sleep(PAUSE_S)
            self._lab.resume("c1")
            sweep.amiss.append(Amiss(began, time.time() + SETTLE_S, ("c1",)))

    def _late(self) -> None:
        """A client is paused until Slurm has started its job on the other one; and when it wakes, slurmd there does
        nothing, so that nobody ends what it still has but its own agent."""
        self._set_slurm_timeout(SHORT_TIMEOUT_S)
        with self._sweep("a client woke after its job was started elsewhere", 12, 8, more="+counted=true") as sweep:
            self._wait_for_the_middle(sweep)
            held = {(e.run, e.attempt) for e in self._told(sweep) if e.host == "c1" and not e.when("completed")}
            began = time.time()
            self._lab.run("c1", "kill -STOP $(pidof slurmd)")
            self._lab.pause("c1")
            self._wait_for(
                sweep,
                lambda told: any(e.attempt > 1 and e.host == "c2" for e in told),
                "the job of the paused client is executed elsewhere",
            )
            woken = time.time()
            self._lab.resume("c1")
            wait_until(lambda: not self._runs_on("c1"), "the client that woke ends all it has", STEP_DOWN_S)
            sweep.note = f"asleep for {woken - began:.0f} s, all ended {time.time() - woken:.1f} s after it woke"
            self._lab.run("c1", "kill -CONT $(pidof slurmd)")
            sweep.amiss.append(Amiss(began, time.time() + SETTLE_S, ("c1",)))
            self._wait_for_the_end(sweep)
            since = {(e.run, e.attempt) for e in self._told(sweep) if e.host == "c1" and e.said[0][1] > woken}
            if since:
                sweep.complaints.append(f"begun by the client that woke: {sorted(since)}")
            if not held:
                sweep.complaints.append("nothing ran on the client when it was paused")
            self._command(f"logs {sweep.id} >/dev/null || true")
        self._set_slurm_timeout(USUAL_TIMEOUT_S)

    def _runs_on(self, name: str) -> bool:
        """Whether an agent, or anything it started, is alive on a machine."""
        return bool(self._lab.run(name, "pgrep -f '[s]ubmitit|clusterduck.agent|sweep_app'", check=False).strip())

    def _set_slurm_timeout(self, seconds: int) -> None:
        change = f"sed -i s/^SlurmdTimeout=.*/SlurmdTimeout={seconds}/ /etc/slurm/slurm.conf"
        for name in ("c1", "c2", "login"):
            self._lab.run(name, change)
        self._lab.run("login", "scontrol reconfigure")

    def _publish(self) -> None:
        """The login node loses its power when it has written the new ledger and is about to rename it."""
        with self._sweep("the login node lost power while it published", runs=12, seconds=6) as sweep:
            self._wait_for_the_middle(sweep)
            began = time.time()
            hold = self._prepared(f"python3 publish_and_hold.py {self._ledger} {self._inside}/about-to-rename")
            holding = self._lab.start("login", hold, self._notes / "hold.log")
            mark = self._notes / "about-to-rename"
            wait_until(mark.exists, "the login node is about to rename the ledger", SWEEP_S)
            self._lab.kill("login")
            holding.kill()  # a connection to a machine without power says nothing by itself
            holding.wait()
            beside = self._leavings()
            time.sleep(DARK_S)
            self._lab.boot("login")
            self._start_readers()
            sweep.amiss.append(Amiss(began, time.time() + SETTLE_S))
            if not beside:
                sweep.complaints.append("the login node was not caught while it published")
            self._wait_for_the_end(sweep)
            wait_until(self._lock_is_gone, "the dead publisher's lock goes", SWEEP_S)
            for name in beside:  # nobody waits for an hour here
                self._lab.run("login", f"touch -d '2 hours ago' {self._project}/.clusterduck/{name}")
            self._command("rebuild")
            left = self._leavings() & beside
            sweep.note = f"{len(beside)} leavings, {len(left)} after they had become old"
            if left:
                sweep.complaints.append(f"never cleaned up: {left}")

    def _leavings(self) -> set[str]:
        """What publishers on the login node have beside the ledger, as the server sees it."""
        export = self._project.replace(self._mount, "/export")
        return {name for name in self._lab.run("srv", f"ls -A {export}/.clusterduck").split() if ".db.login." in name}

    def _lock_is_gone(self) -> bool:
        """Whether a lock that is there is not the dead publisher's."""
        export = self._project.replace(self._mount, "/export")
        lock = f"{export}/.clusterduck/.ledger.db.lock"
        age = self._lab.run("srv", f"echo $(( $(date +%s) - $(stat -c %Y {lock} 2>/dev/null || date +%s) ))")
        return int(age) < DARK_S

    def _restart(self) -> None:
        with self._sweep("the server restarted", runs=12, seconds=5) as sweep:
            self._wait_for_the_middle(sweep)
            began = time.time()
            self._lab.kill("srv")
            self._lab.boot("srv")
            sweep.amiss.append(Amiss(began, time.time() + SETTLE_S))
            self._wait_for_the_end(sweep)
            self._see_who_was_held_up(sweep)

    def _full(self) -> None:
        with self._sweep("the export was full", runs=10, seconds=10) as sweep:
            self._wait_for(sweep, lambda told: len(told) >= 4, "four runs begin")
            running = {(effect.run, effect.attempt) for effect in self._told(sweep)}
            began = time.time()
            self._lab.run("srv", FILL)
            self._wait_for(
                sweep,
                lambda told: running <= {(effect.run, effect.attempt) for effect in told if effect.when("completed")},
                "all that ran has completed",
            )
            time.sleep(FULL_S)
            self._lab.run("srv", "rm /export/filler-*; sync")
            sweep.amiss.append(Amiss(began, time.time() + SETTLE_S))
            self._wait_for_the_end(sweep)
            self._see_who_was_held_up(sweep)
            states = self._states(sweep)
            failed = sorted(run for run, state in states.items() if state == "FAILED")
            sweep.note += f"; {len(failed)} began while it was full and failed, and completed when requeued"
            wrong = {run: states[run] for run, _ in running if states[run] != "COMPLETED"}
            if wrong:
                sweep.complaints.append(f"of what ran when it became full, these did not complete: {wrong}")
            if not failed:
                sweep.complaints.append("it was never full")
            else:
                self._command(f"requeue --failed --sweep {sweep.id} --as-submitted --yes")

    def _see_who_was_held_up(self, sweep: Sweep) -> None:
        """By how much runs were late while the file system was away, and whether the agents' wait loops went on."""
        told = self._told(sweep)
        silent, printing = (lateness(told, sweep.seconds, is_silent) for is_silent in (True, False))
        sweep.note = f"late by: silent runs {silent:.1f} s, runs that print {printing:.1f} s"
        if silent > LATE_S:
            sweep.complaints.append(f"a run that does not use the file system was late by {silent:.1f} s")
        beats = self._lab.run("login", f'grep -o \'"e":"beat","time":[0-9.]*\' {self._root(sweep)}/batches/*/*/*.jsonl')
        by_agent: dict[str, list[float]] = {}
        for line in beats.splitlines():
            place, _, beat = line.partition(".jsonl:")
            by_agent.setdefault(place.rpartition("/")[0], []).append(float(beat.rpartition(":")[2]))
        apart = max(b - a for times in by_agent.values() for a, b in itertools.pairwise(sorted(times)))
        sweep.note += f"; heartbeats at most {apart:.1f} s apart"
        if apart > BEAT_S:
            sweep.complaints.append(f"an agent's wait loop was held up: heartbeats {apart:.1f} s apart")

    # --- how a sweep goes

    @contextlib.contextmanager
    def _sweep(
        self, what: str, runs: int, seconds: float, long: tuple[int, ...] = (), more: str = ""
    ) -> Iterator[Sweep]:
        began = time.time()
        self._loads.append(os.getloadavg()[0])
        before = set(self._sweeps())
        folder = what.replace(" ", "-")
        self._inside_project(
            f"python3 sweep_app.py --multirun '+number=range({runs})' +seconds={seconds} '+long={list(long)}' {more}"
            f" hydra/launcher=clusterduck_slurm hydra.launcher.parallel_runs_per_node=2"
            f" hydra.launcher.total_runs_per_node={-(-runs // 2)} hydra.launcher.share_runs=true"
            f" hydra.launcher.publish_interval_s=3 hydra.launcher.timeout_min=20 hydra.sweep.dir=out/{folder}"
        )
        (identity,) = set(self._sweeps()) - before
        sweep = Sweep(identity, runs, seconds, began)
        self._start_readers()
        yield sweep
        self._wait_for_the_end(sweep)
        self._enter(sweep, what)

    def _enter(self, sweep: Sweep, what: str) -> None:
        """Judge a sweep that is over."""
        ended = time.time()
        ledger = self._copied(sweep)
        verdict = judge(ledger, sweep.id, sweep.runs, self._told(sweep), sweep.cancelled, sweep.lost_at)
        behind = lag(self._notes / "seen.jsonl", ledger, sweep.id, sweep.amiss)
        read = readings(self._notes.glob("poll-*.jsonl"), sweep.began, ended)
        complaints = [*sweep.complaints, *verdict.complaints, *read.bad]
        if behind.most is not None and behind.most > REPLICA_S:
            complaints.append(f"the dashboard was {behind.most:.1f} s behind: {sorted(behind.seconds)[-5:]}")
        complaints += [f"a request took {taken:.1f} s" for taken in sweep.requests if taken > REQUEST_S]
        if read.reads == 0:
            complaints.append("the published ledger was never read")
        row = Row(
            nfs=self._version,
            what=what,
            runs=sweep.runs,
            ends=", ".join(f"{count} {state}" for state, count in verdict.states.most_common()),
            lag_s=behind.most,
            reads=read.reads,
            again=read.again,
            requests=sweep.requests,
            took_s=ended - sweep.began,
            load=max(self._loads[-1], os.getloadavg()[0]) / (os.cpu_count() or 1),
            note=sweep.note,
            complaints=complaints,
        )
        self.rows.append(row)
        print(row, flush=True)

    def _wait_for(self, sweep: Sweep, fact: Callable[[list[Effect]], object], what: str) -> None:
        wait_until(lambda: fact(self._told(sweep)), f"{sweep.id}: {what}", SWEEP_S)

    def _wait_for_the_middle(self, sweep: Sweep) -> None:
        """Wait until both hosts have completed a run and are executing others."""

        def is_reached(told: list[Effect]) -> bool:
            return all(
                any(effect.when("completed") for effect in told if effect.host == host)
                and sum(not effect.when("completed") for effect in told if effect.host == host) == 2
                for host in ("c1", "c2")
            )

        self._wait_for(sweep, is_reached, "both hosts are in the middle")

    def _wait_for_the_end(self, sweep: Sweep) -> None:
        """Wait until Slurm has no job any more, and the dashboard has shown the last end."""
        wait_until(lambda: not self._lab.run("login", "squeue -h").strip(), f"{sweep.id}: no job is left", SWEEP_S)
        wait_until(lambda: self._is_shown(sweep), f"{sweep.id}: the dashboard shows the end", 60)
        wait_until(lambda: self._is_published(sweep), f"{sweep.id}: the published ledger has the end", PUBLISHED_S)

    def _is_published(self, sweep: Sweep) -> bool:
        """Whether the published ledger has all ends, after somebody has looked; what it says is copied."""
        self._command("status")
        ledger = self._copied(sweep)
        self._lab.run("login", f"cp {self._ledger} {self._inside}/{ledger.name}")
        query = "SELECT count(*) FROM run WHERE sweep = ? AND state NOT IN ('PENDING', 'RUNNING')"
        return rows(ledger, query, sweep.id) == [(sweep.runs,)]

    def _copied(self, sweep: Sweep) -> Path:
        return self._notes / f"{sweep.id}.db"

    def _is_shown(self, sweep: Sweep) -> bool:
        states: dict[int, str] = {}
        for row in lines(self._notes / "seen.jsonl"):
            if row["attempt"][0] == sweep.id:
                states[row["attempt"][1]] = row["attempt"][3]
        return len(states) == sweep.runs and not {"RUNNING", "PENDING"} & set(states.values())

    def _cancel(self, sweep: Sweep, run: int, with_signal: bool) -> None:
        """Cancel a run, and see how long its request took; without Slurm's signal the agent finds it by itself."""
        self._command(f"cancel {sweep.id}/{run} --yes", "" if with_signal else "SLURM_CONF=/nowhere ")
        sweep.cancelled.add(run)
        asked = self._lab.run("login", f'grep -h \'"e":"asked"\' {self._root(sweep)}/acts/cancel-*.jsonl')
        at = max(float(line.split('"time":')[1].split(",")[0].rstrip("}\n ")) for line in asked.splitlines())
        told = [effect.when("told-to-end") for effect in self._told(sweep) if effect.run == run]
        sweep.requests += [float("inf") if when is None else when - at for when in told]

    # --- looking

    def _told(self, sweep: Sweep) -> list[Effect]:
        return effects(self._lab.shared / "effects" / sweep.id)

    def _sweeps(self) -> list[str]:
        return self._lab.run("login", f"ls {self._project}/.clusterduck/sweeps", check=False).split()

    def _root(self, sweep: Sweep) -> str:
        return self._lab.run("login", f"cat {self._project}/.clusterduck/sweeps/{sweep.id}").strip()

    def _states(self, sweep: Sweep) -> dict[int, str]:
        found = json.loads(self._command(f"runs --sweep {sweep.id} --json"))
        return {run["number"]: run["state"] for run in found}

    def _command(self, arguments: str, environment: str = "") -> str:
        return self._inside_project(f"{environment}python3 -m clusterduck.cli.main {arguments}")

    def _inside_project(self, command: str, name: str = "login") -> str:
        return self._lab.run(name, self._prepared(command), SWEEP_S)

    def _prepared(self, command: str) -> str:
        return f"cd {self._project} && export PYTHONPATH={self._mount}/site && {command}"

    # --- readers

    def _start_readers(self) -> None:
        """Start those that are not at work, as when their machine has lost its power."""
        watch = f"python3 watch.py {self._ledger} {self._inside}"
        poll = f"python3 poll_ledger.py {self._ledger} {self._inside} poll-"
        commands = {"watch": ("login", watch), "login": ("login", f"{poll}login"), "c2": ("c2", f"{poll}c2")}
        for name, (machine, command) in commands.items():
            if name not in self._readers or not self._lab.is_since(machine, self._readers[name][1]):
                if name in self._readers:
                    self._readers[name][0].kill()  # a connection to a machine without power says nothing by itself
                    self._readers[name][0].wait()
                reader = self._lab.start(machine, self._prepared(command), self._notes / f"{name}.log")
                self._readers[name] = (reader, time.monotonic())

    def _stop_readers(self) -> None:
        (self._notes / "stop").touch()
        for reader, _ in self._readers.values():
            if reader.wait(60):
                self.rows[-1].complaints.append(f"a reader ended with exit code {reader.returncode}, see {self._notes}")
        self._readers.clear()

    def _compare(self) -> None:
        """Hold the ledger against one folded anew from the journals, on a host that has never seen them."""
        self._command("status")
        self._inside_project(
            f"rm -rf /tmp/empty; mkdir /tmp/empty; TMPDIR=/tmp/empty python3 fold_anew.py {self._ledger} /tmp/anew.db"
            f" && cp /tmp/anew.db {self._inside}/ && cp {self._ledger} {self._inside}/last.db",
            "c1",
        )
        self.rows[-1].complaints += differences(self._notes / "last.db", self._notes / "anew.db")
