"""What all tests share: a clean environment, a temporary folder of the session's own, and no silent skips where asked.

With ``CLUSTERDUCK_NO_SKIPS=1`` in the environment, a test that skips fails instead: used where everything that the
tests need is known to be there.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.version import VersionBase
from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, not of what is tested.
settings.register_profile("clusterduck", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("clusterduck")

#: Variables of the person who runs the tests that would change what is tested, by their beginnings.
_FOREIGN = ("CLUSTERDUCK_", "HYDRA_", "SLURM_", "SUBMITIT_", "SBATCH_", "CUDA_VISIBLE_DEVICES", "OMP_", "MKL_")
_NO_SKIPS = "CLUSTERDUCK_NO_SKIPS"


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No variables of a person's own ledger, Hydra or Slurm job; temporary files in a folder of the session's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_FOREIGN) and name != _NO_SKIPS:
                patch.delenv(name)
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)  # so that the new TMPDIR is looked at
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_of_a_terminal() -> None:
    """A shell's background job, or nohup, ignores some signals, and what it starts would too: no Ctrl-C there."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_hydra_of_an_earlier_test() -> None:
    """What Hydra keeps for a whole process, an application's version base above all, is a test's own."""
    for kind in (VersionBase, GlobalHydra):
        Singleton._instances.pop(kind, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where none is allowed."""
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself."""
    return _refuse_skip((yield))


def _refuse_skip(report: Any) -> Any:
    if os.environ.get(_NO_SKIPS) == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} may not be skipped here ({_NO_SKIPS}=1). {reason}"
    return report
