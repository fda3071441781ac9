"""A project made of journals, on which commands are called as people and programs call them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from journals_builder import SweepBuilder

from clusterduck.cli.exit_codes import ExitCode
from clusterduck.events import Event, RunsPlanned

HOSTILE = ["x=\x1b]0;owned\x07\x1b[31mred\n[/oops]\u202e", "lr=漢字"]


@dataclass
class Project:
    """A folder in which a sweep went well yesterday (``train-aa2de``) and another is running (``train-bb3fg``)."""

    folder: Path
    old: SweepBuilder
    live: SweepBuilder
    environment: dict[str, str]

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command; its output is collected."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment, **options}
        command = [sys.executable, "-m", "clusterduck.cli.main", *arguments]
        return subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, **options)

    def run(self, *arguments: str, code: ExitCode = ExitCode.OK) -> tuple[str, str]:
        """Stdout and stderr of a command that ends with ``code``."""
        process = self.start(*arguments)
        output, errors = (stream.decode() for stream in process.communicate(timeout=180))
        assert (process.returncode, "Traceback" in errors) == (code, False), errors
        return output, errors

    def on_terminal(self, *arguments: str, **environment: str) -> bytes:
        """What a command that ends well sends to a terminal."""
        leader, follower = os.openpty()
        process = self.start(*arguments, stdout=follower, env={**self.environment, **environment})
        os.close(follower)
        shown = shown_on(leader)
        assert process.wait(180) == 0
        return shown

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command prints with ``--json``."""
        rows = json.loads(self.run(*arguments, "--json")[0], parse_constant=_refuse)
        assert isinstance(rows, list)
        return rows


def shown_on(terminal: int) -> bytes:
    """All that a terminal was sent until the last program closed its end; it comes piece by piece. Closes it."""
    shown = b""
    try:
        while data := os.read(terminal, 65536):
            shown += data
    except OSError as error:
        assert error.errno == errno.EIO  # nobody has the other end open
    finally:
        os.close(terminal)
    return shown


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def make(base: Path) -> Project:
    """Its temporary folder is its own, so its replica is too; and its squeue knows two jobs."""
    now = time.time()
    old, live = SweepBuilder(base, "train-aa2de", start=now - 86400), SweepBuilder(base, "train-bb3fg", start=now - 600)
    old.write_all(24, 2)
    hostile = RunsPlanned(time=now - 599, launch=0, runs=[(12, HOSTILE)])
    live.write(live.launch_journal(), [*live.launch(12, 2), hostile], close=False)
    at = now - 300
    life: list[Event] = [live.agent_started(at, "node1")]
    life += [live.started(at + 1, run, slot=run) for run in range(4)]
    life += [live.ended(at + 50, 0, state="FAILED", started_at=at + 1), live.started(at + 51, 4, slot=0)]
    live.write(live.agent_journal(), [*life, live.beat(now - 1, 4)], close=False)
    (base / "tmp").mkdir()
    (base / "bin").mkdir()
    squeue = base / "bin" / "squeue"
    submitted = int(live.start) + 3
    squeue.write_text(
        "#!/bin/sh\n"
        f"echo '9000|RUNNING|{submitted}|{submitted}|1:02:03|1|None'\n"
        f"echo '9001|PENDING|{submitted}|{int(now) + 7200}|4:00:00|1|Priority'\n"
    )
    squeue.chmod(0o755)
    environment = {**os.environ, "PATH": f"{base / 'bin'}:/usr/bin:/bin", "TMPDIR": str(base / "tmp")}
    environment |= {"COLUMNS": "200", "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    return Project(base, old, live, environment)
