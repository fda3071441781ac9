"""What the tests of the launchers share: a user's project, and Hydra at the point where it calls a launcher."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode

Plugins.instance()  # before any fixture restores Hydra's state, so that it restores one that knows the plugins


@pytest.fixture(autouse=True)
def own_ledger(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test meets the ledger of the project that it tests."""
    ledger = tmp_path_factory.mktemp("ledger") / "ledger.db"
    monkeypatch.setenv("CLUSTERDUCK_LEDGER", str(ledger))
    return ledger


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project, and the working directory."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("lr: 0.1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MakeLauncher = Callable[..., Any]


@pytest.fixture
def make_launcher(project: Path, hydra_restore_singletons: None) -> Iterator[MakeLauncher]:
    """Makes launchers as Hydra does, up to and including ``setup()``."""

    def make(cluster: str, *overrides: str, function: Any = abs) -> Launcher:
        hydra = Hydra.create_main_hydra_file_or_module(str(project / "train.py"), None, "conf", "train")
        config = hydra.compose_config(
            "config", [f"hydra/launcher=clusterduck_{cluster}", "hydra.sweep.dir=out", *overrides], RunMode.MULTIRUN
        )
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        try:
            return Plugins.instance().instantiate_launcher(context, function, config)
        finally:
            GlobalHydra.instance().clear()

    yield make
    GlobalHydra.instance().clear()


@pytest.fixture
def say(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What clusterduck has told the person at the terminal."""
    caplog.set_level(logging.INFO)
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def fake_slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts scripts named like Slurm's commands into the PATH, before everything else."""

    def install(**scripts: str) -> Path:
        folder = tmp_path_factory.mktemp("slurm")
        for command in ("sbatch", "srun", "squeue", "sacct", "scontrol"):
            script = folder / command
            script.write_text("#!/bin/sh\n" + scripts.get(command, "exit 1\n"))
            script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return folder

    return install
