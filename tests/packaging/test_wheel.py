"""The wheel holds all that is needed and nothing else: installed alone, it runs the example."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from environments import PACKAGES, Environment, copy_sources

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    sources = copy_sources(folder / "sources")
    Environment(folder / "builder").pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(sources))
    shutil.rmtree(sources)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert "hydra_plugins/__init__.py" not in names, "hydra_plugins is shared with other packages"
    assert "hydra_plugins/clusterduck_launcher/__init__.py" in names
    assert "clusterduck_tui/clusterduck.tcss" in names


def test_the_wheel_alone_runs_the_example(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "environment")
    environment.pip("install", f"{wheel}[examples]")
    shutil.copytree(Path(__file__).parents[2] / "example", tmp_path / "example")
    where = environment.run("python", "-c", "import clusterduck; print(clusterduck.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment.folder)
    version, launchers = environment.launchers(tmp_path)
    assert version.startswith(("1.3.", "1.4."))
    assert {"ClusterduckLocalLauncher", "ClusterduckSlurmLauncher"} <= set(launchers)

    sweep = ("model=convnet,transformer", "+iteration=range(2)", "+platform=slurm_debug", "epochs=1")
    environment.run("python", "example/train.py", "--multirun", *sweep, cwd=tmp_path)
    environment.run("clusterduck", "status", cwd=tmp_path)
    rows = json.loads(environment.run("clusterduck", "runs", "--sweep", "@last", "--json", cwd=tmp_path))
    assert [row["state"] for row in rows] == ["COMPLETED"] * 4
