"""In a real terminal, with a real sweep: see it run, one run fail, send it again, quit, and find the terminal sane."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from journals_builder import SweepBuilder
from terminals import Terminal, dashboard

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


@pytest.fixture
def terminal(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("PATH", os.defpath)
    opened = Terminal(project)
    yield opened
    opened.close()


def test_a_sweep_from_its_first_run_to_its_last(project: Path, terminal: Terminal) -> None:
    (project / "app.py").write_text(APP)
    command = [sys.executable, "app.py", "--multirun", "hydra/launcher=clusterduck_local", "+x=1,2,3"]
    command.append("hydra.launcher.parallel_runs_per_node=2")
    terminal.type(f"{dashboard()}; echo over-$?")
    terminal.see("No ledger here")
    subprocess.run(command, check=True, cwd=project, capture_output=True, timeout=180)
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
    terminal.require_sane()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_dashboard_that_is_asked_to_end_leaves_a_sane_terminal(
    project: Path, terminal: Terminal, number: signal.Signals, code: int
) -> None:
    terminal.type(f"{dashboard()} & echo $! > pid; fg; echo over-$?")
    terminal.see("No ledger here")
    os.kill(int((project / "pid").read_text()), number)
    text = terminal.see(f"over-{code}")
    assert "Overview" not in text and "Traceback" not in text
    terminal.require_sane()


@pytest.mark.parametrize("is_stuck", [False, True])
def test_a_dashboard_whose_terminal_goes_away_ends_though_nobody_tells_it(
    project: Path, terminal: Terminal, is_stuck: bool
) -> None:
    """The shell ignores the hangup, and so does what it starts; a main thread that is stuck hears no signal anyway."""
    (project / "stuck.py").write_text(
        "import time\n"
        "from clusterduck_tui.app import main\n"
        "from clusterduck_tui.feed import Feed\n"
        "Feed.look_now = lambda self: open('is-stuck', 'w').close() or time.sleep(3600)\n"
        "main()\n"
    )
    command = f"{sys.executable} stuck.py" if is_stuck else dashboard()
    terminal.type(f"trap '' HUP; {command} & echo $! > pid; fg")
    terminal.see("No ledger here")
    process = psutil.Process(int((project / "pid").read_text()))
    if is_stuck:
        terminal.keys("C-r")
        terminal.fact((project / "is-stuck").exists, "it is not stuck")
    terminal.close()
    try:
        process.wait(60)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_the_log_opens_in_other_programs_and_the_dashboard_comes_back(
    project: Path, finished: SweepBuilder, terminal: Terminal
) -> None:
    for name, body in (
        ("show it", 'printf "%s|" "$@"; cat -- "$3"; read answer'),
        ("fails", "exit 3"),
        ("interrupted", 'trap "echo caught-it" INT; echo waiting; read one; read two'),
    ):
        script = project / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    pager = f"'{project}/show it' --first 'two words'"

    def open_with(setting: str, key: str) -> None:
        terminal.type(f"clear; {setting} {dashboard()}; echo over-$?")
        terminal.see("24/24")
        terminal.keys("4")
        terminal.see("24 runs", "9.0 s")  # a run's time: only its row has it
        terminal.keys("Enter")
        terminal.see("overrides", "attempt-1.log")
        terminal.keys(key)

    def back() -> None:
        terminal.see("1 Overview", "train-aa2de/0")
        terminal.keys("4")
        terminal.see("24 runs")

    def leave() -> None:
        terminal.keys("q")
        terminal.see("over-0")
        terminal.require_sane()

    open_with(f'PAGER="{pager}"', "p")
    text = terminal.see("this is run 0")
    assert "--first|two words|" in text and "Overview" not in text
    terminal.keys("Enter")
    back()
    leave()

    open_with(f'EDITOR="{project}/fails"', "E")
    terminal.see("1 Overview", "ended with exit code 3")
    log = finished.paths.sweep_dir / "0" / "attempt-1.log"
    log.unlink()
    terminal.keys("p")
    terminal.see("is not there (any more)")
    leave()
    log.write_text("this is run 0\n")

    open_with(f'PAGER={project}/interrupted EDITOR="an \'end"', "p")
    terminal.see("waiting")
    terminal.keys("C-c")
    terminal.see("caught-it")
    terminal.keys("Enter", "Enter")
    back()
    terminal.keys("5", "E")
    terminal.see("EDITOR cannot be understood")
    leave()


def test_what_is_no_terminal_is_told_so(project: Path) -> None:
    command = [sys.executable, "-m", "clusterduck_tui"]
    done = subprocess.run(command, check=False, cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs a terminal" in done.stderr and "Traceback" not in done.stderr
