"""Fresh virtual environments, and a fresh tree of the sources, for the tests of what people install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
        venv.create(folder, symlinks=True)

    def pip(self, *arguments: str) -> None:
        """Run the pip of those who test, for this environment: to have one of its own takes seconds. Fails the test
        with pip's own words if it fails."""
        self._run(sys.executable, "-m", "pip", "--python", str(self._program("python")), "--quiet", *arguments)

    def run(self, program: str, *arguments: str, cwd: Path) -> str:
        """Standard output of a program of this environment; fails the test if the program fails."""
        return self._run(str(self._program(program)), *arguments, cwd=cwd)

    def _program(self, name: str) -> Path:
        return self.folder / "bin" / name

    def _run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PYENV"))
        }
        done = subprocess.run(
            [program, *arguments],
            cwd=cwd or self.folder,
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
