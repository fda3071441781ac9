"""In a real terminal, with a real sweep: see it run, one run fail, send it again, quit, and find the terminal sane."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = """
import pathlib, time
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    here = pathlib.Path(__file__).parent
    while config.x == 1 and not (here / "go").exists():
        time.sleep(0.05)
    if config.x == 2 and not (here / "mended").exists():
        raise ValueError("x is two")
    print("all is well with", config.x)

main()
"""


class Terminal:
    """A tmux server of its own with one shell in it."""

    def __init__(self, tmux: str, folder: Path, width: int, height: int) -> None:
        self._tmux = [tmux, "-S", str(folder / "tmux.sock"), "-f", "/dev/null"]
        shell = ["new-session", "-d", "-x", str(width), "-y", str(height), "-c", str(folder), "sh"]
        subprocess.run([*self._tmux, *shell], check=True, env={**os.environ, "ENV": "", "PS1": "$ ", "TERM": "screen"})

    def keys(self, *keys: str) -> None:
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    @property
    def text(self) -> str:
        done = subprocess.run([*self._tmux, "capture-pane", "-p"], check=True, capture_output=True)
        return done.stdout.decode()

    def see(self, *words: str, seconds: float = 40.0) -> str:
        deadline = time.monotonic() + seconds
        while not all(word in (text := self.text) for word in words):
            assert time.monotonic() < deadline, f"{words} did not come:\n{text}"
        return text

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False)


@pytest.fixture
def terminal(project: Path, monkeypatch: pytest.MonkeyPatch, tmux: str) -> Iterator[Terminal]:
    monkeypatch.setenv("PATH", os.defpath)
    opened = Terminal(tmux, project, 80, 24)
    yield opened
    opened.close()


def dashboard(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "clusterduck_tui", *arguments])


def test_a_sweep_from_its_first_run_to_its_last(project: Path, terminal: Terminal) -> None:
    (project / "app.py").write_text(APP)
    command = [sys.executable, "app.py", "--multirun", "hydra/launcher=clusterduck_local", "+x=1,2,3"]
    command.append("hydra.launcher.parallel_runs_per_node=2")
    terminal.keys(f"{dashboard()}; echo over-$?", "Enter")
    terminal.see("No ledger here")
    subprocess.run(command, check=True, cwd=project, capture_output=True, timeout=60)
    terminal.see("app-", "RUNNING")
    terminal.keys("2")
    terminal.see("slots busy", "run 0")
    terminal.keys("4")
    terminal.see("R RUNNING", "F FAILED", "C COMPLETED")
    (project / "mended").touch()
    terminal.keys("j", "Space", "r")
    terminal.see("1 failed run")
    terminal.keys("Enter")
    terminal.see("C 2", "R 1")
    (project / "go").touch()
    terminal.see("C 3")
    terminal.keys("q")
    terminal.see("over-0")
    terminal.keys("stty -a | tr ';' '\\n' | grep -c -w -- '-echo'", "Enter")
    terminal.see("\n0\n")  # the terminal shows again what is typed


def test_a_killed_dashboard_leaves_a_sane_terminal(project: Path, terminal: Terminal) -> None:
    terminal.keys(f"{dashboard()} & echo $! > pid; fg; echo over-$?", "Enter")
    terminal.see("No ledger here")
    os.kill(int((project / "pid").read_text()), signal.SIGTERM)
    text = terminal.see("over-143")
    assert "Overview" not in text and "Traceback" not in text
    terminal.keys("echo sa''ne", "Enter")
    terminal.see("sane")


def test_what_is_no_terminal_is_told_so(project: Path) -> None:
    command = [sys.executable, "-m", "clusterduck_tui"]
    done = subprocess.run(command, check=False, cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs a terminal" in done.stderr and "Traceback" not in done.stderr
