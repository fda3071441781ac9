"""Sweeps on this machine while processes of every kind are killed at random instants, and a reader watches the ledger.

One sweep is requeued until each of its runs has completed; others are launched to have their launchers killed.
Meanwhile the published ledger is read again and again: no read may fail, be inconsistent, or take back what an earlier
one said. In the end every run has completed exactly once by its own account and by the ledger's, and the replica, the
published ledger and a fold anew agree to the last row.

By hand: ``python tests/faults/kill_soak.py --kills 300 [--seed N]``; prints its seed, the kills, and what was proven.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import pty
import random
import select
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent / "ledger")]

from faulty_sweep import folded_anew  # noqa: E402 - for the script, found only now
from journals_builder import kept_counts, recount, tables  # noqa: E402

from clusterduck.ledger import schema  # noqa: E402
from clusterduck.ledger.publish import publish  # noqa: E402
from clusterduck.ledger.replica import Replica  # noqa: E402

#: How many of each kind are to be killed, beside the others.
VICTIMS = {
    "run": 5,
    "fork server": 2,
    "agent": 3,  # its writer is a thread of it
    "controller": 2,  # submitit's, which starts the agents of a launch on this machine
    "publisher": 2,
    "command": 3,
    "launcher": 2,
    "dashboard": 2,
}

#: For how long to look for one of a kind, in seconds, before another kind has its turn.
SEEK_S = 1.0

#: Every process of ours has this variable, which names the folder.
MARK = "KILL_SOAK"


@dataclass
class Reader:
    """Reads the published ledger as anybody would, and notes what it must never see."""

    ledger: Path
    complaints: list[str] = field(default_factory=list)
    reads: int = 0
    _completed: set[tuple[object, ...]] = field(default_factory=set)
    _generation: int = -1

    def look(self) -> None:
        """Read it once."""
        if not self.ledger.exists():
            return
        self.reads += 1
        try:
            connection = sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)
            try:
                self._check(connection)
            finally:
                connection.close()
        except sqlite3.Error as error:
            self.complaints.append(f"read {self.reads}: {type(error).__name__}: {error}")

    def _check(self, connection: sqlite3.Connection) -> None:
        answer = connection.execute("PRAGMA integrity_check").fetchall()
        if answer != [("ok",)]:
            self.complaints.append(f"read {self.reads}: {answer}")
        for (sweep,) in connection.execute("SELECT id FROM sweep").fetchall():
            if kept_counts(connection, sweep) != recount(connection, sweep):
                self.complaints.append(f"read {self.reads}: the counts of {sweep} are not those of its runs")
        query = "SELECT sweep, run, number FROM attempt WHERE state = 'COMPLETED'"
        completed = set(connection.execute(query).fetchall())
        if self._completed - completed:
            self.complaints.append(f"read {self.reads}: no longer completed: {self._completed - completed}")
        self._completed |= completed
        generation = int(schema.get_meta(connection, "generation") or -1)
        if generation < self._generation:
            self.complaints.append(f"read {self.reads}: generation {generation} after {self._generation}")
        self._generation = generation


@dataclass
class KillSoak:
    """The sweeps of one folder under fire.

    Attributes:
        kills: how many of which kind were killed.
    """

    folder: Path
    runs: int
    seed: int
    pause_s: float
    mean_s: float
    kills: Counter[str] = field(default_factory=Counter)
    requeues: int = 0
    _peace: threading.Event = field(default_factory=threading.Event)
    _trouble: list[str] = field(default_factory=list)

    @property
    def ledger(self) -> Path:
        return self.folder / ".clusterduck" / "ledger.db"

    @property
    def _environ(self) -> dict[str, str]:
        return {**os.environ, MARK: str(self.folder), "TMPDIR": str(self.folder / "tmp")}

    def run(self, kills: int, patience_s: float) -> Reader:
        """Launch, kill so many processes, requeue until every run has completed, and prove it."""
        for name in ("effects", "tmp"):
            (self.folder / name).mkdir()
        shutil.copy(HERE / "kill_app.py", self.folder / "app.py")
        assert self._launch("out", self.runs) == 0
        reader = Reader(self.ledger)
        threads = [
            threading.Thread(target=self._keep_reading, args=(reader,), name="reader", daemon=True),
            threading.Thread(target=self._keep_busy, name="bystanders", daemon=True),
            threading.Thread(target=self._keep_watching, name="spectator", daemon=True),
            threading.Thread(target=self._wreak, args=(kills,), name="havoc", daemon=True),
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + patience_s
        while not (self._peace.is_set() and self._is_done()):
            assert time.monotonic() < deadline, f"not done in {patience_s:.0f} s, killed {dict(self.kills)}"
            assert not self._trouble, self._trouble
            self._requeue()
        for thread in threads[1:]:
            thread.join(180)
        self._wait_for_quiet(time.monotonic() + patience_s)
        self._publish_all()
        threads[0].join(60)
        reader.look()
        assert not reader.complaints, reader.complaints[:5]
        assert not self._trouble, self._trouble
        self._prove()
        return reader

    # --- what goes on

    def _launch(self, folder: str, runs: int) -> int:
        return self._python(
            "app.py",
            "--multirun",
            f"+number=range({runs})",
            f"+mean_s={self.mean_s}",
            "hydra/launcher=clusterduck_local",
            "hydra.launcher.parallel_runs_per_node=2",
            f"hydra.launcher.total_runs_per_node={-(-runs // 2)}",
            "hydra.launcher.share_runs=true",
            "hydra.launcher.publish_interval_s=1",
            f"hydra.sweep.dir={folder}",
        ).returncode

    def _requeue(self) -> None:
        done = self._clusterduck(
            "requeue", "--failed", "--unfinished", "--sweep", self._main, "--as-submitted", "--yes"
        )
        self.requeues += done.returncode == 0

    @property
    def _main(self) -> str:
        (root,) = (self.folder / "out" / ".clusterduck").glob("app-?????")
        return root.name

    def _is_done(self) -> bool:
        done = self._clusterduck("runs", "--sweep", self._main, "--json")
        if done.returncode != 0:
            return False
        return Counter(row["state"] for row in json.loads(done.stdout)) == {"COMPLETED": self.runs}

    def _keep_busy(self) -> None:
        """People who look and publish, and launch sweeps of their own, as long as there is havoc."""
        for extra in itertools.count():
            if self._peace.is_set():
                return
            self._python("-m", "clusterduck.ledger.publish", str(self.ledger))
            self._clusterduck("status")
            if extra % 3 == 0:
                self._launch(f"extra-{extra}", 2)

    def _keep_watching(self) -> None:
        """Somebody with a dashboard, who opens another when that was killed."""
        while not self._peace.is_set():
            terminal, end = pty.openpty()
            fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
            with subprocess.Popen(
                [sys.executable, "-m", "clusterduck_tui"],
                cwd=self.folder,
                env={**self._environ, "TERM": "xterm-256color"},
                stdin=end,
                stdout=end,
                stderr=end,
            ) as dashboard:
                os.close(end)
                painted = self._watch(terminal, dashboard)
            os.close(terminal)
            if b"Traceback" in painted:
                self._trouble.append(f"dashboard: {painted[-2000:]!r}")

    def _watch(self, terminal: int, dashboard: subprocess.Popen[bytes]) -> bytes:
        """Take what it paints until its end, which comes when all is quiet; returns the last of it."""
        painted = b""
        while dashboard.poll() is None:
            if self._peace.is_set():
                dashboard.terminate()
            with contextlib.suppress(OSError):  # its end
                if select.select([terminal], [], [], 0.2)[0]:
                    painted = (painted + os.read(terminal, 65536))[-100_000:]
        return painted

    def _keep_reading(self, reader: Reader) -> None:
        while not (self._peace.is_set() and self._is_quiet()):
            reader.look()
            self._peace.wait(0.05)

    def _wreak(self, kills: int) -> None:
        chance = random.Random(self.seed)
        try:
            while self.kills.total() < kills:
                weights = [share / (1 + self.kills[kind]) for kind, share in VICTIMS.items()]
                kind = chance.choices(list(VICTIMS), weights)[0]
                instant = chance.uniform(0, 2 * self.pause_s)
                until = time.monotonic() + SEEK_S
                while not (found := self._processes().get(kind)) and time.monotonic() < until:
                    time.sleep(0.02)
                if found:
                    victim = chance.choice(found)
                    time.sleep(instant)  # it is the instant in its life that is random
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if victim.status() != psutil.STATUS_ZOMBIE:
                            victim.kill()
                            self.kills[kind] += 1
        finally:
            self._peace.set()

    def _processes(self) -> dict[str, list[psutil.Process]]:
        found: dict[str, list[psutil.Process]] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                kind = self._kind(process)
                if kind is not None:
                    found.setdefault(kind, []).append(process)
        return found

    def _kind(self, process: psutil.Process) -> str | None:
        line = process.cmdline()
        if not line or process.status() == psutil.STATUS_ZOMBIE or process.environ().get(MARK) != str(self.folder):
            return None
        text = " ".join(line)
        if "clusterduck.agent.forkserver" in text:
            parent = process.parent()
            above = "" if parent is None else " ".join(parent.cmdline())
            return "run" if "clusterduck.agent.forkserver" in above else "fork server"
        marks = {
            "submitit.core._submit": "agent",
            "submitit.local._local": "controller",
            "clusterduck_tui": "dashboard",
            "clusterduck.ledger.publish": "publisher",
            "clusterduck.cli.main": "command",
            "app.py --multirun": "launcher",
        }
        return next((kind for mark, kind in marks.items() if mark in text), "other")

    def _is_quiet(self) -> bool:
        return not self._processes()

    # --- proof

    def _wait_for_quiet(self, deadline: float) -> None:
        while not self._is_quiet():
            assert time.monotonic() < deadline, f"still there: {self._processes()}"
            time.sleep(0.05)

    def _publish_all(self) -> None:
        done = self._python("-m", "clusterduck.ledger.publish", str(self.ledger))
        assert done.returncode == 0, done.stderr

    def _prove(self) -> None:
        anew = folded_anew(self.ledger)
        with sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True) as published:
            assert tables(published) == anew, "the published ledger is not what the journals say"
            query = "SELECT run, number, state FROM attempt WHERE sweep = ? ORDER BY run, number"
            attempts = published.execute(query, (self._main,)).fetchall()
        published.close()
        with Replica.open(self.ledger) as replica:  # another host's, so to say: from nothing
            replica.catch_up()
            assert tables(replica.connection) == anew, "a replica is not what the journals say"
            assert not publish(replica, self.ledger), "there was more to publish"
        (kept,) = (self.folder / "tmp").glob("clusterduck-*/*/replica.db")
        with sqlite3.connect(kept) as survivor:  # the one that so many of its users were killed over
            assert survivor.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert tables(survivor) == anew, "the replica is not what the journals say"
        survivor.close()
        self._prove_effects(attempts)

    def _prove_effects(self, attempts: list[tuple[int, int, str]]) -> None:
        completed = Counter(run for run, _, state in attempts if state == "COMPLETED")
        assert completed == Counter(range(self.runs)), f"not completed exactly once: {completed}"
        last = {run: number for run, number, state in attempts if state == "COMPLETED"}
        for run in range(self.runs):
            lines = (self.folder / "effects" / self._main / str(run)).read_text().splitlines()
            begun = [line for line in lines if line.startswith("begun")]
            assert len(begun) == len(set(begun)), f"an attempt of run {run} was executed twice: {lines}"
            assert f"completed {last[run]}" in lines, f"the ledger says that run {run} completed: {lines}"
            assert max(int(line.split()[1]) for line in begun) == last[run], f"run {run} was begun again: {lines}"

    # --- processes

    def _clusterduck(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._python("-m", "clusterduck.cli.main", *arguments)

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if "Traceback" in done.stderr:
            self._trouble.append(f"{arguments}: {done.stderr[-2000:]}")
        return done


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--runs", type=int, help="as many as keep everybody busy")
    parser.add_argument("--patience", type=float, default=3600.0, help="how many seconds the whole may take")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="duck-kills-"))
    soak = KillSoak(folder, options.runs or 4 * options.kills, options.seed, pause_s=0.3, mean_s=1.0)
    began = time.monotonic()
    try:
        reader = soak.run(options.kills, options.patience)
    except BaseException:
        print(f"failed; what it left is in {folder}; killed {dict(soak.kills)}")
        raise
    print(
        f"{soak.runs} runs completed exactly once in {time.monotonic() - began:.0f} s, requeued {soak.requeues} times;"
    )
    print(f"killed {dict(soak.kills)}; {reader.reads} reads without error; replicas, ledger and a fold anew agree")
    shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ.pop("CLUSTERDUCK_LEDGER", None)
    main()
