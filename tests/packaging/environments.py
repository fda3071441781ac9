"""Fresh virtual environments, and a fresh tree of the sources, for the tests of what people install."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("clusterduck", "clusterduck_tui", "hydra_plugins")
SHIPPED = (*PACKAGES, "example", "pyproject.toml", "README.md")

_TELL_LAUNCHERS = """
import hydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
found = {cls.__name__: cls.__module__ for cls in Plugins.instance().discover(Launcher)}
print(hydra.__version__, *sorted(found))
"""


def copy_sources(folder: Path) -> Path:
    """A tree with what an installation needs, and nothing that earlier work left over."""
    folder.mkdir()
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "multirun", "outputs"))
        else:
            shutil.copy(source, folder / name)
    return folder


class Environment:
    """A virtual environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=True, symlinks=True)

    def pip(self, *arguments: str) -> None:
        """Run pip; fails the test with pip's own words if it fails."""
        self.run("python", "-m", "pip", "--quiet", *arguments, cwd=self.folder)

    def run(self, program: str, *arguments: str, cwd: Path) -> str:
        """Standard output of a program of this environment; fails the test if the program fails."""
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PYENV"))
        }
        done = subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        said = f"{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, f"{program} {' '.join(arguments)}: exit code {done.returncode}\n{said}"
        return done.stdout

    def launchers(self, cwd: Path) -> tuple[str, list[str]]:
        """Hydra's version, and the names of the launchers that it finds here."""
        version, *names = self.run("python", "-W", "error::UserWarning", "-c", _TELL_LAUNCHERS, cwd=cwd).split()
        return version, names
