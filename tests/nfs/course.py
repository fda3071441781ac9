"""How a sweep goes on the virtual machines: launched on one, followed by readers on others, judged in the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from evidence import REPLICA_S, Amiss, Effect, differences, effects, judge, lag, lines, readings, rows
from machines import Lab, wait_until

#: How soon a request is to be delivered, in seconds.
REQUEST_S = 5.0

#: How long the slowest sweep may take, with its faults, in seconds.
SWEEP_S = 240.0

#: How long the published ledger may take to have the end: the lock of a publisher whose host lost power holds for 60 s.
PUBLISHED_S = 100.0


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


class Course:
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

    # --- launching, waiting, judging

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
