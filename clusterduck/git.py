"""Which commit the user's code is at, and whether its files were changed since: asked of git, if there is git."""

from __future__ import annotations

import subprocess
from typing import NamedTuple

#: git may have to read a large tree on a slow file system; then it is better not to know, in seconds.
TIMEOUT_S = 5.0


class Commit(NamedTuple):
    """The commit's hash, and whether a tracked file differs from it."""

    hash: str
    dirty: bool


def command(folder: str) -> list[str]:
    """The one command that tells both; untracked files do not count, since outputs often lie among the code."""
    return ["git", "--no-optional-locks", "-C", folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no"]


def parse(printed: bytes) -> Commit | None:
    """What the command printed, or None if it was not that."""
    found = None
    dirty = False
    for line in printed.decode("ascii", "replace").splitlines():
        if line.startswith("# branch.oid "):
            found = line.split()[2]
        elif not line.startswith("#"):
            dirty = True
    return Commit(found, dirty) if found and all(digit in "0123456789abcdef" for digit in found) else None


def commit_of(folder: str) -> Commit | None:
    """Ask now, and wait for the answer; None without git, outside a checkout, before the first commit, or if slow."""
    try:
        asked = subprocess.run(
            command(folder), capture_output=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse(asked.stdout) if asked.returncode == 0 else None
