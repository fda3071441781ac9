"""What the tests of faults share: a sick file system, and sweeps upon it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_fs import FaultyFileSystem, build
from faulty_sweep import FaultySweep, preparing


@pytest.fixture(scope="session")
def faulty_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    return build(tmp_path_factory.mktemp("faulty"))


@pytest.fixture(scope="session")
def prepare_sweep() -> Iterator[Callable[[Path, list[list[str]]], None]]:
    """Prepares a sweep in a folder where an ``app.py`` is."""
    with preparing() as prepare:
        yield prepare


@pytest.fixture
def sweep(
    tmp_path: Path, faulty_library: Path, prepare_sweep: Callable[[Path, list[list[str]]], None]
) -> Iterator[FaultySweep]:
    folder = tmp_path / "project"
    folder.mkdir()
    found = FaultySweep(folder, FaultyFileSystem(faulty_library, folder, tmp_path / "faults"), prepare_sweep)
    yield found
    found.close()
