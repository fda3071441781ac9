"""A sweep folder whose runs do what they are told, and agents that work on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from clusterduck.events import AttemptEnded, AttemptStarted, Event
from clusterduck.journal import read
from clusterduck.paths import SweepPaths

HERE = Path(__file__).parent

#: Each run does what its ``how`` says, and tells of itself in files named after it.
APP = """
import os, signal, sys, time
from pathlib import Path
import hydra

def wait_for(name):
    while not Path(name).exists():
        time.sleep(0.02)

@hydra.main(version_base=None)
def main(cfg):
    run, attempt = os.environ["CLUSTERDUCK_RUN"], os.environ["CLUSTERDUCK_ATTEMPT"]
    with open(f"done-{run}", "a") as file:
        file.write(f"begun {attempt}\\n")
    if cfg.how == "waits":
        wait_for("go")
    elif cfg.how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(f"deaf-{run}").touch()
        wait_for("go")
    elif cfg.how == "saves":
        signal.signal(signal.SIGUSR2, lambda *_: Path(f"saved-{run}").touch())
        Path(f"listening-{run}").touch()
        wait_for("go")
    elif cfg.how == "leaves":
        import subprocess
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        Path(f"child-{run}").write_text(str(child.pid))
        wait_for("go")
    elif cfg.how == "saves_and_exits":
        signal.signal(signal.SIGUSR2, lambda *_: sys.exit(7))
        Path(f"listening-{run}").touch()
        wait_for("go")
    elif cfg.how == "kills_agent":
        others = 3 if int(attempt) < 3 else 0
        while sum(f"begun {attempt}\\n" in path.read_text() for path in Path().glob("done-*")) <= others:
            time.sleep(0.02)
        wait_for(f"known-{attempt}")
        status = Path(f"/proc/{os.getppid()}/stat").read_text()
        os.kill(int(status.rpartition(")")[2].split()[1]), signal.SIGKILL)
        wait_for("never")
    elif cfg.how == "waits_and_fails_once":
        wait_for("go")
        if attempt == "1":
            raise ValueError("the first time")
    elif cfg.how == "fails":
        raise ValueError("as told")
    elif cfg.how == "fails_once" and attempt == "1":
        raise ValueError("the first time")
    return VALUE
VALUE = 1

if __name__ == "__main__":
    main()
"""

T = TypeVar("T")

#: An agent has ended after so many seconds, or never will: at its end it publishes, at low priority, for a minute.
PATIENCE_S = 300.0


def until(condition: Callable[[], T], what: str, seconds: float = 60.0) -> T:
    """Wait for a fact."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.01)


@dataclass
class Bench:
    """A sweep folder, and agents that work on it."""

    folder: Path
    agents: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def sweep(self) -> SweepPaths:
        return SweepPaths.of(self.folder / "out", "app-abcde")

    def plan(self, *hows: str) -> None:
        self.plan_overrides([[f"+how={how}"] for how in hows])

    def plan_overrides(self, runs: list[list[str]]) -> None:
        overrides = json.dumps(runs)
        command = [sys.executable, str(HERE / "prepare_sweep.py"), str(self.folder / "out"), overrides]
        subprocess.run(command, cwd=self.folder, check=True, timeout=180)
        self.runs = len(runs)

    def start(self, slots: int, environ: dict[str, str] | None = None, **settings: Any) -> subprocess.Popen[str]:
        values = {
            "sweep_root": str(self.sweep.root),
            "batch": "0-0",
            "launch": 0,
            "first_run": 0,
            "stop_run": self.runs,
            "plan_first": 0,
            "plan_stop": self.runs,
            "nodes": 1,
            "cluster": "local",
            "parallel_runs_per_node": slots,
            "ledger": str(self.folder / "ledger" / "ledger.db"),
            "publish_interval_s": 1000,
            "cwd": str(self.folder),
            **settings,
        }
        with (self.folder / "agent.log").open("a") as log:
            agent = subprocess.Popen(
                [sys.executable, str(HERE / "run_agent.py"), json.dumps(values)],
                stdout=log,
                stderr=log,
                text=True,
                cwd=self.folder,
                env={**os.environ, **(environ or {})},
            )
        self.agents.append(agent)
        return agent

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def events(self, kind: type[T]) -> list[T]:
        found: list[Event] = []
        for path in self.sweep.journals():
            found += read(path, limit=1 << 24).events
        return [event for event in found if isinstance(event, kind)]

    def running(self, run: int, attempt: int = 1) -> int:
        """The process id of an attempt, once the user's function has begun."""
        begun = self.folder / f"done-{run}"
        until(lambda: begun.exists() and f"begun {attempt}\n" in begun.read_text(), f"run {run}.{attempt} begins")

        def find() -> list[int]:
            return [e.pid for e in self.events(AttemptStarted) if (e.run, e.attempt) == (run, attempt)]

        return until(find, f"run {run}.{attempt} is in the journal")[0]

    def ended(self, run: int, attempt: int = 1) -> AttemptEnded:
        def find() -> list[AttemptEnded]:
            return [e for e in self.events(AttemptEnded) if (e.run, e.attempt) == (run, attempt)]

        return until(find, f"run {run}.{attempt} ends")[0]

    def go(self) -> None:
        (self.folder / "go").touch()

    def wait(self, agent: subprocess.Popen[str]) -> int:
        return agent.wait(PATIENCE_S)


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; empty if it has ended, as an errand does at any moment."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def fork_server_of(agent: subprocess.Popen[str]) -> psutil.Process:
    def find() -> list[psutil.Process]:
        children = psutil.Process(agent.pid).children()
        return [child for child in children if "clusterduck.agent.forkserver" in command_of(child)]

    return until(find, "there is a fork server")[0]
