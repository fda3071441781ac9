"""What the dashboard's tests share: a project made of journals, a Slurm that says what the test wants, and waiting."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from dashboards import Open, Opened, Slurm, make_live, until
from journals_builder import SweepBuilder

from clusterduck_tui.app import Dashboard


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that are coroutines, and let the threads end that they leave: one may hold a lock of SQLite's, which
    nobody would let go in a process that another test forks."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    others = set(threading.enumerate())
    try:
        asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    finally:
        for thread in set(threading.enumerate()) - others:
            thread.join(60)
    return True


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Decide what squeue does, as the body of a shell script; there is no accounting and nothing else of Slurm."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def say(script: str) -> None:
        file = folder / "squeue"
        beside = folder / "squeue.new"
        beside.write_text(f"#!/bin/sh\n{script}\n")
        beside.chmod(0o755)
        beside.rename(file)

    say("exit 0")
    return say


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Slurm) -> Path:
    """An empty folder to launch from, whose replica is its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def finished(project: Path) -> SweepBuilder:
    """A sweep of 24 runs in two jobs that is over; every seventh run failed; each wrote a log."""
    built = SweepBuilder(project, "train-aa2de")
    built.write_all()
    for run in range(24):
        folder = built.paths.sweep_dir / str(run)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "attempt-1.log").write_text(f"this is run {run}\nloss 0.5\n")
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(f"seed: {run}\n")
    return built


@pytest.fixture
def live(project: Path) -> SweepBuilder:
    """A sweep of eight runs on one node of four slots: two completed, one failed, three run, one slot is empty."""
    return make_live(project)


@pytest.fixture
def opened(project: Path) -> Open:
    """Open the dashboard in the project."""

    @asynccontextmanager
    async def open_(
        sweep: str | None = None, size: tuple[int, int] = (80, 24), *, wait: bool = True, read_only: bool = False
    ) -> AsyncIterator[Opened]:
        app = Dashboard(sweep, folder=project, refresh_s=0.1, read_only=read_only)
        async with app.run_test(size=size, notifications=True) as pilot:
            shown = Opened(app, pilot)
            if wait:
                await until(lambda: app.known.is_caught_up and app.known.chosen is not None, pilot)
            yield shown

    return open_
