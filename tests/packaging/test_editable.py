"""``pip install -e .``, plain or with setuptools' options, lets either Hydra find the launchers."""

from __future__ import annotations

from pathlib import Path

import pytest
from environments import Environment, copy_sources

pytestmark = pytest.mark.packaging


@pytest.mark.parametrize("hydra", ["~=1.3.2", "==1.4.0rc3"])
def test_an_editable_install_shows_the_launchers(hydra: str, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "environment")
    sources = copy_sources(tmp_path / "sources")
    environment.pip("install", f"hydra-core{hydra}", str(sources))
    for options in ([], ["--config-settings", "editable_mode=compat"], ["--config-settings", "editable_mode=strict"]):
        environment.pip("uninstall", "--yes", "hydra-clusterduck")
        environment.pip("install", "--no-deps", *options, "--editable", str(sources))
        version, launchers = environment.launchers(tmp_path)
        assert version.startswith(hydra.lstrip("~=")[:3])
        assert {"ClusterduckLocalLauncher", "ClusterduckSlurmLauncher"} <= set(launchers), options
        where = environment.run("python", "-c", "import clusterduck; print(clusterduck.__file__)", cwd=tmp_path)
        assert Path(where.strip()).is_relative_to(sources)
        assert "usage" in environment.run("clusterduck", "--help", cwd=tmp_path).lower()
