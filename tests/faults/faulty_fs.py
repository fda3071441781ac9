"""Builds the faulty file system of ``faulty_fs.c`` and tells it, while processes run on it, what fails from now on."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def build(folder: Path) -> Path:
    """Compile the library that is preloaded."""
    library = folder / "faulty_fs.so"
    command = ["gcc", "-Wall", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=180)
    return library


@dataclass(frozen=True)
class Rule:
    """What fails, and how; see ``faulty_fs.c``. ``path`` is a pattern below the folder of the test, if it is not
    absolute."""

    calls: str
    path: str
    error: int = 0
    how: str = "fail"
    often: int = -1
    who: str = "any"


class FaultyFileSystem:
    """The faults of the processes that are started with :attr:`environ`.

    Args:
        library: what :func:`build` made.
        folder: the paths in rules are below it.
        control: a file outside it for the rules.
    """

    def __init__(self, library: Path, folder: Path, control: Path) -> None:
        self.environ = {"LD_PRELOAD": str(library), "FAULTY_FS": str(control)}
        self._folder = folder
        self._control = control
        self._hits = control.with_name(f"{control.name}.hits")

    def fail(self, *rules: Rule) -> None:
        """Let these faults begin, and all others end."""
        beside = self._control.with_suffix(".new")
        beside.write_text(
            "".join(f"{r.calls} {r.who} {r.how} {r.error} {r.often} {self._folder / r.path}\n" for r in rules)
        )
        os.rename(beside, self._control)

    def mend(self) -> None:
        """Let all faults end."""
        self.fail()

    def hits(self) -> list[tuple[str, str]]:
        """The faults that were dealt out so far: call and path."""
        if not self._hits.exists():
            return []
        lines = [line.split(" ", 2) for line in self._hits.read_text().splitlines()]
        return [(call, path) for call, _, path in lines]
