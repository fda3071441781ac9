"""A sweep with a real agent on a file system that fails when it is told to, and a reader that folds what it reports."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from faulty_fs import FaultyFileSystem
from journals_builder import kept_counts, recount, tables

from clusterduck import events
from clusterduck.events import AttemptEnded, AttemptStarted, Event
from clusterduck.journal import JournalWriter, read_all
from clusterduck.ledger import fold, schema
from clusterduck.ledger.publish import publish
from clusterduck.ledger.replica import Replica
from clusterduck.paths import LedgerPaths, SweepPaths

HERE = Path(__file__).parent

#: Each run writes down what it does in a file of its own, outside of what fails.
APP = """
import os, time
from pathlib import Path
import hydra

@hydra.main(version_base=None)
def main(cfg):
    run, attempt = os.environ["CLUSTERDUCK_RUN"], os.environ["CLUSTERDUCK_ATTEMPT"]
    with open(f"did-{run}", "a") as file:
        print(f"begun {attempt}", file=file)
    while cfg.how == "waits" and not Path("go").exists():
        time.sleep(0.01)
    if cfg.how == "fails_once" and attempt == "1":
        raise ValueError("the first time")
    return int(run)

if __name__ == "__main__":
    main()
"""

T = TypeVar("T")


@dataclass
class FaultySweep:
    """One sweep of runs that do as they are told, in two slots of one agent.

    Attributes:
        folder: where it was launched; faults are below it.
        faults: what fails in the agent and its runs.
        environ: of the agent, beside that.
        replica: a reader's, on a sound file system; it catches up whenever something is waited for.
    """

    folder: Path
    faults: FaultyFileSystem
    prepare: Callable[[Path, list[list[str]]], None]
    hows: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    agent: subprocess.Popen[bytes] | None = None
    replica: Replica | None = field(default=None, init=False)

    @property
    def sweep(self) -> SweepPaths:
        return SweepPaths.of(self.folder / "out", "app-abcde")

    @property
    def ledger(self) -> Path:
        return self.folder / "elsewhere" / ".clusterduck" / "ledger.db"

    @property
    def job_log(self) -> Path:
        return self.folder / "job.log"

    # --- the launch

    def plan(self, *hows: str) -> None:
        """Prepare the sweep and put it on record, as a launch does."""
        self.hows = hows
        (self.folder / "app.py").write_text(APP)
        overrides = [[f"+how={how}"] for how in hows]
        self.prepare(self.folder, overrides)
        LedgerPaths(self.ledger).create()
        (LedgerPaths(self.ledger).sweeps / self.sweep.sweep).write_text(f"{self.sweep.root}\n")
        journal = JournalWriter(self.sweep.launch(0), self.sweep.sweep, "launch 0")
        journal.append(self._launch_events(overrides))
        journal.close()
        self.replica = Replica.open(self.ledger)

    def _launch_events(self, overrides: list[list[str]]) -> list[Event]:
        runs = len(overrides)
        return [
            events.LaunchStarted(
                launch=0,
                sweep_dir=str(self.sweep.sweep_dir),
                job_name="app",
                user="ada",
                host="login1",
                pid=os.getpid(),
                cwd=str(self.folder),
                command=["app.py", "--multirun"],
                launcher="local",
                settings={},
                python=sys.executable,
                versions={},
            ),
            events.RunsPlanned(launch=0, runs=list(enumerate(overrides))),
            events.BatchPlanned(batch="0-0", launch=0, first=0, stop=runs, nodes=1, slots_per_node=2, share_runs=False),
            events.BatchSubmitted(batch="0-0", cluster="local", job_id="1", host="login1", log_dir=str(self.folder)),
            events.LaunchEnded(launch=0),
        ]

    def start(self, **settings: Any) -> None:
        """Start the agent."""
        values = {
            "sweep_root": str(self.sweep.root),
            "batch": "0-0",
            "launch": 0,
            "first_run": 0,
            "stop_run": len(self.hows),
            "plan_first": 0,
            "plan_stop": len(self.hows),
            "nodes": 1,
            "cluster": "local",
            "parallel_runs_per_node": 2,
            "ledger": str(self.ledger),
            "publish_interval_s": 1000,
            "cwd": str(self.folder),
            **settings,
        }
        with self.job_log.open("ab") as log:
            self.agent = subprocess.Popen(
                [sys.executable, str(HERE / "watched_agent.py"), json.dumps(values), str(self._watched)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **self.faults.environ, **self.environ},
            )

    @property
    def _watched(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.watched")

    def close(self) -> None:
        """End what still runs."""
        self.faults.mend()
        self.go()
        if self.agent is not None and self.agent.poll() is None:
            self.agent.terminate()
            self.agent.wait(300)
        if self.replica is not None:
            self.replica.close()

    # --- what is waited for

    def until(self, condition: Callable[[], T], what: str, seconds: float = 180.0) -> T:
        """Wait for a fact, and fold what is reported meanwhile."""
        assert self.replica is not None
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"never happened: {what}; the job's log:\n{self.job_log.read_text()}"
            assert self.replica.catch_up().problems == ()
            time.sleep(0.02)
        return found

    def go(self) -> None:
        """Let the runs return that wait."""
        (self.folder / "go").touch()

    def has_begun(self, run: int, attempt: int = 1) -> bool:
        """Whether the user's function was called in an attempt."""
        did = self.folder / f"did-{run}"
        return did.exists() and f"begun {attempt}\n" in did.read_text()

    def until_begun(self, *runs: int) -> None:
        for run in runs:
            self.until(lambda run=run: self.has_begun(run), f"run {run} begins")  # type: ignore[misc]

    def until_held_ready(self, claims: int) -> None:
        """Wait until so many attempts are claimed and the agent has nothing to write."""
        self.until(lambda: len(os.listdir(self.sweep.claims)) >= claims, f"{claims} attempts are claimed")

    def until_hit(self, *calls: str) -> None:
        """Wait until the fault has struck, in each of these calls."""
        for call in calls:
            self.until(lambda call=call: any(call == hit for hit, _ in self.faults.hits()), f"{call} fails")  # type: ignore[misc]

    def until_over(self) -> int:
        """Wait for the agent's end. Returns its exit code."""
        agent = self.agent
        assert agent is not None
        self.until(lambda: agent.poll() is not None, "the agent ends")
        return agent.returncode

    # --- what is checked

    def events(self, kind: type[T]) -> list[T]:
        found: list[Event] = []
        for path in self.sweep.journals():
            found += read_all(path)
        return [event for event in found if isinstance(event, kind)]

    def states(self) -> dict[tuple[int, int], str]:
        """How each attempt ended, as the agent reported it; twice the same thing is the same thing."""
        return {(end.run, end.attempt): end.state for end in self.events(AttemptEnded)}

    def check_runs(self, *again: int) -> None:
        """Every run was executed once, and completed; of those named, the second attempt did."""
        expected = {(run, 1): "FAILED" if run in again else "COMPLETED" for run in range(len(self.hows))}
        expected |= {(run, 2): "COMPLETED" for run in again}
        assert self.states() == expected
        assert {(start.run, start.attempt) for start in self.events(AttemptStarted)} == set(expected)
        begun = Counter((run, line) for run in range(len(self.hows)) for line in self._did(run))
        assert begun == Counter((run, f"begun {attempt}") for run, attempt in expected)

    def _did(self, run: int) -> list[str]:
        return (self.folder / f"did-{run}").read_text().splitlines()

    def check_loop(self) -> None:
        """The agent's wait loop was never late by more than 50 ms."""
        watched = json.loads(self._watched.read_text())
        assert watched["ticks"] > 0
        assert watched["latest"] < 0.05, watched

    def check_ledger(self) -> None:
        """The replica that was folded all along equals a fold anew, and so does the ledger published from it."""
        assert self.replica is not None
        self.replica.catch_up()
        publish(self.replica, self.ledger)  # if the agent has not done so at its end
        anew = folded_anew(self.ledger)
        assert tables(self.replica.connection) == anew
        with sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True) as reader:
            assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert tables(reader) == anew
            assert kept_counts(reader, self.sweep.sweep) == recount(reader, self.sweep.sweep)
        reader.close()

    def row(self, run: int) -> tuple[Any, ...]:
        """State, reason and return value of a run in the ledger."""
        assert self.replica is not None
        query = "SELECT state, reason, return_value FROM run WHERE number = ?"
        found: tuple[Any, ...] = self.replica.connection.execute(query, (run,)).fetchone()
        return found


@contextmanager
def preparing() -> Iterator[Callable[[Path, list[list[str]]], None]]:
    """A warm process that prepares sweeps in folders where an ``app.py`` is."""
    command = [sys.executable, str(HERE / "prepare_sweeps.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as preparer:
        assert preparer.stdin is not None
        assert preparer.stdout is not None
        asked, answers = preparer.stdin, preparer.stdout

        def prepare(folder: Path, overrides: list[list[str]]) -> None:
            asked.write(json.dumps({"folder": str(folder), "overrides": overrides}) + "\n")
            asked.flush()
            assert answers.readline() == "0\n"

        yield prepare
        asked.close()


def folded_anew(ledger: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All tables of a ledger into which one process folds everything, undisturbed."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        schema.migrate(connection, "a fold anew")
        for sweep, root in LedgerPaths(ledger).sweep_roots().items():
            paths = sorted(root.rglob("*.jsonl"))
            done = fold.fold_journals(connection, sweep, root, paths, clock=lambda: 0.0, is_time_up=lambda: False)
            assert not done.problems, done.problems
        return tables(connection)
    finally:
        connection.close()
