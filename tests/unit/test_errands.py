"""What the agent has others do, and does not wait for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from clusterduck.agent.errands import Errands


def test_an_errand_is_started_without_looking_through_the_folders_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may lie on a file server that does not answer; here one of them has a program that should not be found."""
    (tmp_path / "nice").write_text("#!/bin/sh\necho found on the path\n")
    (tmp_path / "nice").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    printed: list[bytes] = []
    said: list[str] = []
    errands = Errands(said.append)
    errands.send([sys.executable, "-c", "import os; print(os.nice(0))"], printed.append)
    (pid,) = errands.pids
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert errands.ended(pid)
    assert not errands.ended(pid)
    assert (printed, said) == ([b"19\n"], [])
