"""Soak: a sweep on a Slurm cluster while runs, agents, fork servers and whole nodes are killed at random.

It is requeued until all is done. Then the runs' own side effects must agree with the ledger: every run completed
exactly once, no attempt was executed twice, nothing was begun again after it had completed; and the ledger must equal
one folded anew from the journals.

By hand, as root: ``python tests/slurm/soak.py --runs 300 --chaos 600 [--seed N]``; prints its seed, kills and proof.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from cluster import SlurmCluster, obstacle, wait_until

APP = Path(__file__).with_name("soak_app.py")

#: How often each victim is chosen, out of the sum.
VICTIMS = {"run": 6, "fork server": 2, "agent": 2, "node": 1}

#: What is compared between the ledger and one folded anew.
TABLES = {
    "run": "sweep, number, state, attempt, reason, return_value",
    "attempt": "sweep, run, number, batch, restart, node, slot, state, reason, exit_code, signal, return_value",
    "batch": "sweep, id, job_id, state, reason",
}


@dataclass
class Soak:
    """One sweep under fire.

    Attributes:
        kills: how many of which victim were killed.
        requeues: how many times the sweep had to be requeued by hand.
    """

    cluster: SlurmCluster
    folder: Path
    runs: int
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    requeues: int = 0
    _peace: threading.Event = field(default_factory=threading.Event)

    def run(self, chaos_s: float, patience_s: float) -> None:
        """Launch, wreak havoc for a while, requeue until every run has completed, and prove it."""
        (self.folder / "effects").mkdir()
        shutil.copy(APP, self.folder)
        self._launch()
        with ThreadPoolExecutor(1) as pool:
            chaos = pool.submit(self._wreak)
            try:
                self._see_through(chaos_s, patience_s)
            finally:
                self._peace.set()
        chaos.result()
        self._prove()

    def _see_through(self, chaos_s: float, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        peace_at = time.monotonic() + chaos_s
        while (states := self._states())["COMPLETED"] < self.runs:
            if time.monotonic() > deadline:
                raise AssertionError(f"not done in {patience_s:.0f} s: {dict(states)}, kills {dict(self.kills)}")
            if time.monotonic() > peace_at:
                self._peace.set()
            self._requeue()
            time.sleep(1.0)  # the sweep is to go on in between

    def _launch(self) -> None:
        self._python(
            "soak_app.py",
            "--multirun",
            f"+number=range({self.runs})",
            "hydra/launcher=clusterduck_slurm",
            "hydra.launcher.parallel_runs_per_node=4",
            f"hydra.launcher.total_runs_per_node={-(-self.runs // 3)}",
            "hydra.launcher.share_runs=true",
            "hydra.launcher.max_retries=2",
            "hydra.launcher.retry_on=[FAILED]",
            "hydra.sweep.dir=out",
        )

    def _requeue(self) -> None:
        done = self._clusterduck("requeue", "--failed", "--unfinished", "--sweep", "@last", "--as-submitted", "--yes")
        self.requeues += done.returncode == 0 and "new job" in done.stdout + done.stderr

    def _states(self) -> Counter[str]:
        done = self._clusterduck("runs", "--sweep", "@last", "--json")
        assert done.returncode == 0, done.stderr
        return Counter(row["state"] for row in json.loads(done.stdout))

    # --- havoc

    def _wreak(self) -> None:
        chance = random.Random(self.seed)
        while not self._peace.wait(chance.uniform(0.3, 2.0)):
            victim = chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
            if victim == "node":
                name = chance.choice(self.cluster.nodes)
                self.cluster.kill_node(name)
                self.kills[victim] += 1
                self._peace.wait(chance.uniform(0.5, 3.0))
                self.cluster.start_node(name)
                continue
            found = [process for process in psutil.process_iter() if self._is(process, victim)]
            if found:
                try:
                    chance.choice(found).kill()
                except psutil.NoSuchProcess:
                    continue
                self.kills[victim] += 1

    def _is(self, process: psutil.Process, victim: str) -> bool:
        try:
            line = " ".join(process.cmdline())
            if process.environ().get("SLURM_CONF") != self.cluster.environ["SLURM_CONF"]:
                return False
            parent = process.parent()
            above = " ".join(parent.cmdline()) if parent is not None else ""
        except psutil.Error:
            return False
        server = "clusterduck.agent.forkserver"
        if victim == "agent":
            return "submitit.core._submit" in line and server not in line
        return server in line and (server in above) == (victim == "run")

    # --- proof

    def _prove(self) -> None:
        self.cluster.wait_for_no_jobs(180)
        assert self._states() == {"COMPLETED": self.runs}
        published = self.folder / ".clusterduck" / "ledger.db"
        attempts: list[tuple[int, int, str]] = []

        def is_all_there() -> bool:
            self._publish(published)
            with sqlite3.connect(f"file:{published}?mode=ro", uri=True) as ledger:
                attempts[:] = ledger.execute("SELECT run, number, state FROM attempt ORDER BY run, number").fetchall()
            ledger.close()
            return sum(state == "COMPLETED" for *_, state in attempts) >= self.runs

        wait_until(is_all_there, "the published ledger has all of it, though a killed publisher held the lock", 120)
        completed = {run: number for run, number, state in attempts if state == "COMPLETED"}
        assert len(completed) == len([1 for *_, state in attempts if state == "COMPLETED"]) == self.runs
        for run in range(self.runs):
            lines = (self.folder / "effects" / str(run)).read_text().split("\n")[:-1]
            begun = [line for line in lines if line.startswith("begun")]
            assert len(begun) == len(set(begun)), f"an attempt of run {run} was executed twice: {lines}"
            assert f"completed {completed[run]}" in lines, f"the ledger says that run {run} completed: {lines}"
            last = max(int(line.split()[1]) for line in begun)
            assert last == completed[run], f"run {run} was begun again after it had completed: {lines}"
        self._compare_with_a_fresh_fold()

    def _compare_with_a_fresh_fold(self) -> None:
        ledger = self.folder / ".clusterduck" / "ledger.db"
        before = _rows(ledger)
        ledger.unlink()
        with tempfile.TemporaryDirectory(dir="/tmp") as elsewhere:  # no replica there
            self._publish(ledger, TMPDIR=elsewhere)
        assert _rows(ledger) == before, "the ledger is not what its journals say"

    # --- processes

    def _publish(self, ledger: Path, **environ: str) -> None:
        done = self._run([sys.executable, "-m", "clusterduck.ledger.publish", str(ledger)], **environ)
        assert done.returncode == 0, done.stderr

    def _clusterduck(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run([str(Path(sys.executable).with_name("clusterduck")), *arguments])

    def _python(self, *arguments: str) -> None:
        done = self._run([sys.executable, *arguments])
        assert done.returncode == 0, done.stderr

    def _run(self, command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.cluster.environ | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )


def _rows(ledger: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        return {
            table: sorted(connection.execute(f"SELECT {columns} FROM {table}").fetchall(), key=repr)
            for table, columns in TABLES.items()
        }
    finally:
        connection.close()


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--chaos", type=float, default=600.0, help="for how many seconds to go on killing")
    parser.add_argument("--patience", type=float, default=1800.0, help="how many seconds the whole may take")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    reason = obstacle()
    if reason:
        sys.exit(f"no Slurm cluster here: {reason}")
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="duck-soak-"))
    with SlurmCluster() as cluster:
        soak = Soak(cluster, folder, options.runs, options.seed)
        began = time.monotonic()
        try:
            soak.run(options.chaos, options.patience)
        except BaseException:
            print(f"failed; what it left is in {folder}; killed {dict(soak.kills)}")
            raise
        took = time.monotonic() - began
    print(f"{options.runs} runs completed exactly once in {took:.0f} s, requeued {soak.requeues} times by hand;")
    print(f"killed {dict(soak.kills)}; the ledger equals one folded anew")
    shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ.pop("CLUSTERDUCK_LEDGER", None)
    main()
