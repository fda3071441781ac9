"""Hydra's own suites for launchers, against ``clusterduck_local``: every plugin is expected to pass them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

WAIT = "hydra.launcher.wait_for_completion=true"
TWO_AT_A_TIME = "hydra.launcher.parallel_runs_per_node=2"

Plugins.instance()  # before the suites' fixture restores Hydra's state, so that it restores one that knows the plugins


@pytest.fixture(autouse=True)
def own_ledger(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    ledger = tmp_path_factory.mktemp("ledger") / "ledger.db"
    monkeypatch.setenv("CLUSTERDUCK_LEDGER", str(ledger))
    return ledger


@pytest.mark.parametrize("name", ["ClusterduckLocalLauncher", "ClusterduckSlurmLauncher"])
def test_hydra_discovers_the_launchers(name: str) -> None:
    assert name in [launcher.__name__ for launcher in Plugins.instance().discover(Launcher)]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("clusterduck_local", [WAIT, TWO_AT_A_TIME])])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("clusterduck_local", [WAIT, TWO_AT_A_TIME, "hydra.sweeper.max_batch_size=2"])]
)
class TestBatchedSweeper(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=clusterduck_local", WAIT])])
class TestIntegration(IntegrationTestSuite):
    pass
