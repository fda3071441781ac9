"""What kind of file system a folder is on, and whether it is mounted in a way that suits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clusterduck.doctor.finding import Finding, Level

MOUNTS = Path("/proc/self/mountinfo")

#: File systems that many hosts share.
SHARED = re.compile(
    r"nfs4?|lustre|gpfs|beegfs\w*|ceph|glusterfs|fuse\.glusterfs|afs|panfs|wekafs|pvfs2|orangefs|cifs|smb3"
)

#: Those that live in memory.
IN_MEMORY = ("tmpfs", "ramfs")

#: Options -> how bad they are, and what they mean.
_OPTIONS = {
    "ro": (Level.BAD, "It is mounted read-only: choose another folder."),
    "nocto": (
        Level.BAD,
        "With nocto, what other hosts append is seen late or not at all: have it mounted without, or choose another "
        "folder.",
    ),
    "soft": (
        Level.NOTE,
        "With soft, writes fail while the server is slow. Reports are then written later, but a run's own files may be "
        "cut: prefer hard.",
    ),
    "nolock": (
        Level.NOTE,
        "Locks hold within one host only. Clusterduck locks nothing here, but SQLite files of your own are not safe.",
    ),
}
_OPTIONS |= dict.fromkeys(("softerr", "softreval"), _OPTIONS["soft"])
_OPTIONS |= dict.fromkeys(("localflock", "local_lock=all", "local_lock=flock", "local_lock=posix"), _OPTIONS["nolock"])

_WORTH_SHOWING = re.compile(
    r"(vers|proto|hard|soft\w*|sync|noac|actimeo|lookupcache|local_lock|r?w?size|ro)(=.*)?|.*lock.*|nocto"
)


@dataclass(frozen=True)
class Mount:
    """One mounted file system."""

    point: str
    type: str
    source: str
    options: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        """Whether other hosts may see it as well."""
        return SHARED.fullmatch(self.type) is not None


def parse(line: str) -> Mount | None:
    """One line of ``/proc/<pid>/mountinfo``; None if it is none."""
    fields = line.split()
    try:
        dash = fields.index("-", 6)
        options = [*fields[5].split(","), *fields[dash + 3].split(",")]
        return Mount(_plain(fields[4]), fields[dash + 1], _plain(fields[dash + 2]), tuple(dict.fromkeys(options)))
    except (ValueError, IndexError):
        return None


def mount_of(folder: Path, table: str) -> Mount | None:
    """The file system that a folder is on, by the longest mount point above it, of several the last mounted."""
    real = os.path.realpath(folder)
    best: Mount | None = None
    for line in table.splitlines():
        mount = parse(line)
        if mount is None:
            continue
        inside = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def find(folder: Path) -> Mount | None:
    """As :func:`mount_of`, on this host now."""
    return mount_of(folder, MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))


def check(folder: Path) -> Iterator[Finding]:
    """What the folder is on."""
    mount = find(folder)
    tested = "the file system's type and mount options"
    if mount is None:
        yield Finding("mount", tested, f"{MOUNTS} does not tell", Level.NOTE)
        return
    yield from judge(mount, tested)


def judge(mount: Mount, tested: str) -> Iterator[Finding]:
    """What a file system's type and options mean."""
    shown = ",".join(option for option in mount.options if _WORTH_SHOWING.fullmatch(option))
    found = f"{mount.type} from {mount.source} at {mount.point}" + (f" ({shown})" if shown else "")
    troubles = [(option, *_OPTIONS[option]) for option in mount.options if option in _OPTIONS]
    if mount.type in IN_MEMORY:
        advice = "It is in this host's memory: nothing in it outlives a restart, and no other host sees it."
        yield Finding("mount", tested, found, Level.NOTE, advice)
    elif not mount.is_shared:
        advice = (
            "It may be this host's own disk. That suits hydra/launcher=clusterduck_local; for Slurm, compute nodes "
            "must see it, which `clusterduck doctor --slurm` tries."
        )
        yield Finding("mount", tested, found, Level.NOTE, advice)
    elif not troubles:
        yield Finding("mount", tested, found)
    for option, level, advice in troubles:
        yield Finding("mount", tested, f"{found}: {option}", level, advice)


def _plain(text: str) -> str:
    """Undo the kernel's octal escapes of blanks."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
