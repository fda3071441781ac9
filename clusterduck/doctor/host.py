"""This host: Python and the packages, GPUs, the temporary folder, and what of a ledger is here already."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from clusterduck.doctor import mounts
from clusterduck.doctor.finding import Finding, Level
from clusterduck.doctor.mounts import IN_MEMORY
from clusterduck.wording import size

DISTRIBUTION = "hydra-clusterduck"

#: Less room than this in the temporary folder, in bytes, is too little for a replica of a large project.
LITTLE_BYTES = 500 << 20


def facts() -> dict[str, Any]:
    """What two hosts should have in common, and what each has of its own."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": packages(),
        "gpus": gpus(),
        "temporary": tempfile.gettempdir(),
    }


def packages() -> dict[str, str | None]:
    """Our package and those it needs -> the versions that are installed; None where one is missing."""
    found: dict[str, str | None] = {DISTRIBUTION: _version(DISTRIBUTION)}
    for name in _required():
        found[name] = _version(name)
    return found


def gpus() -> int | None:
    """How many GPUs NVML shows here; None where there is no NVML."""
    from clusterduck.agent.nvml import Nvml

    nvml = Nvml.open()
    if nvml is None:
        return None
    try:
        return len(nvml.devices)
    finally:
        nvml.close()


def check_packages() -> Iterator[Finding]:
    """Whether what the package says it needs is there."""
    tested = "Python and packages on this host"
    found = packages()
    shown = ", ".join(f"{name} {version}" for name, version in found.items() if version is not None)
    shown = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {shown}"
    if found[DISTRIBUTION] is None:
        yield Finding("packages", tested, shown, Level.NOTE, f"{DISTRIBUTION} is not installed: pip install it.")
        return
    wrong = [problem for name, needed in _required().items() if (problem := _problem(name, needed, found[name]))]
    if wrong:
        yield Finding("packages", tested, f"{shown}; {', '.join(wrong)}", Level.BAD, "Install them with pip.")
    else:
        yield Finding("packages", tested, shown)


def check_gpus() -> Iterator[Finding]:
    """Whether NVML tells of GPUs."""
    count = gpus()
    found = "no NVML, as is usual on login nodes" if count is None else f"{count} GPUs"
    yield Finding("nvml", "GPUs that NVML shows on this host", found)


def check_temporary() -> Iterator[Finding]:
    """Whether the temporary folder suits a replica: local, with room, not somebody else's, with locks that work."""
    folder = Path(tempfile.gettempdir())
    mount = mounts.find(folder)
    kind = mount.type if mount is not None else "unknown"
    told = os.statvfs(folder)
    room = told.f_bavail * told.f_frsize
    tested = f"the temporary folder {folder}"
    with tempfile.TemporaryFile(dir=folder) as file:  # it never has a name
        file.write(bytes(65536))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    found = f"{kind}, {size(room)} left"
    if mount is not None and mount.is_shared:
        advice = "It holds a working copy of the ledger, and must be this host's own: let TMPDIR name a local folder."
        yield Finding("temporary", tested, found, Level.BAD, advice)
    elif room < LITTLE_BYTES:
        yield Finding("temporary", tested, found, Level.NOTE, "Make room, or let TMPDIR name another local folder.")
    else:
        note = ", in memory" if kind in IN_MEMORY else ""
        yield Finding("temporary", tested, found + note)


def _required() -> dict[str, str]:
    """The packages that ours needs -> the text of that requirement."""
    try:
        texts = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    needed = {}
    for text in texts:
        match = re.match(r"[A-Za-z0-9._-]+", text)
        if match and "extra" not in text.partition(";")[2]:
            needed[match[0]] = text
    return needed


def _problem(name: str, needed: str, version: str | None) -> str | None:
    from packaging.requirements import InvalidRequirement, Requirement

    if version is None:
        return f"{name} is missing"
    try:
        wanted = Requirement(needed).specifier
    except InvalidRequirement:
        return None
    return None if wanted.contains(version, prereleases=True) else f"{name} should be {wanted}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
