"""What the tests of faults share: a sick file system, and sweeps upon it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_fs import FaultyFileSystem, build
from faulty_sweep import FaultySweep

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def faulty_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    return build(tmp_path_factory.mktemp("faulty"))


@pytest.fixture(scope="session")
def prepare_sweep() -> Iterator[Callable[[Path, list[list[str]]], None]]:
    """Prepares a sweep in a folder where an ``app.py`` is."""
    command = [sys.executable, str(HERE / "prepare_sweeps.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as preparer:
        assert preparer.stdin is not None
        assert preparer.stdout is not None
        asked, answers = preparer.stdin, preparer.stdout

        def prepare(folder: Path, overrides: list[list[str]]) -> None:
            asked.write(json.dumps({"folder": str(folder), "overrides": overrides}) + "\n")
            asked.flush()
            assert answers.readline() == "0\n"

        yield prepare
        asked.close()


@pytest.fixture
def sweep(
    tmp_path: Path, faulty_library: Path, prepare_sweep: Callable[[Path, list[list[str]]], None]
) -> Iterator[FaultySweep]:
    folder = tmp_path / "project"
    folder.mkdir()
    found = FaultySweep(folder, FaultyFileSystem(faulty_library, folder, tmp_path / "faults"), prepare_sweep)
    yield found
    found.close()
