"""What writing costs in a folder, whose clock stamps its files, and how much room is left."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from clusterduck.doctor.between import judge_skew
from clusterduck.doctor.finding import Finding, Level
from clusterduck.doctor.mounts import Mount
from clusterduck.wording import size

#: An fsync that takes longer, in seconds, makes agents' reports slow.
SLOW_FSYNC_S = 0.1

#: Less room than this, in bytes and inodes, is soon used up, or too little for a sweep.
LITTLE_BYTES, LEAST_BYTES = 2 << 30, 100 << 20
LITTLE_INODES, LEAST_INODES = 100_000, 2_000

_APPENDS = 12
_TOOL_S = 5.0


def check_fsync(scratch: Path) -> Iterator[Finding]:
    """What it costs to have a line on disk, as each change of a run's state does."""
    took = []
    fd = os.open(scratch / "synced", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(_APPENDS):
            began = time.monotonic()
            os.write(fd, b"x" * 200 + b"\n")
            os.fsync(fd)
            took.append(time.monotonic() - began)
    finally:
        os.close(fd)
    found = f"{statistics.median(took) * 1000:.1f} ms (median), {max(took) * 1000:.1f} ms at most, of {_APPENDS}"
    tested = "appending a line and fsync"
    if statistics.median(took) > SLOW_FSYNC_S:
        advice = "Runs do not wait for it, but claims and reports do: slots stay empty for as long between two runs."
        yield Finding("fsync", tested, found, Level.NOTE, advice)
    else:
        yield Finding("fsync", tested, found)


def check_clock(scratch: Path) -> Iterator[Finding]:
    """Whether the clock that stamps files agrees with this host's."""
    before = time.time()
    fd = os.open(scratch / "stamped", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        stamped = os.fstat(fd).st_mtime
    finally:
        os.close(fd)
    after = time.time()
    skew = stamped - (before + after) / 2
    found = f"the file's is {abs(skew):.3f} s {'ahead' if skew >= 0 else 'behind'}"
    yield judge_skew(Finding("clock", "a new file's time against this host's clock", found), skew, (after - before) / 2)


def check_room(folder: Path) -> Iterator[Finding]:
    """Room and inodes that are left, as far as the file system itself says."""
    told = os.statvfs(folder)
    room = told.f_bavail * told.f_frsize
    level, advice = Level.GOOD, ""
    if room < LITTLE_BYTES:
        level = Level.BAD if room < LEAST_BYTES else Level.NOTE
        advice = "Make room, or choose another folder: logs and outputs come on top of what clusterduck writes."
    yield Finding("space", "room that is left", f"{size(room)} of {size(told.f_blocks * told.f_frsize)}", level, advice)
    if not told.f_files:
        yield Finding("inodes", "inodes that are left", "this file system does not count them")
        return
    level, advice = Level.GOOD, ""
    if told.f_favail < LITTLE_INODES:
        level = Level.BAD if told.f_favail < LEAST_INODES else Level.NOTE
        advice = (
            "A run takes about nine, six of them Hydra's own (hydra.output_subdir=null saves four): prune old sweeps."
        )
    yield Finding("inodes", "inodes that are left", f"{told.f_favail} of {told.f_files}", level, advice)


def check_quota(folder: Path, mount: Mount | None) -> Iterator[Finding]:
    """What the user's own quota leaves, where a command tells."""
    tested = "your quota"
    if mount is not None and mount.type == "lustre" and shutil.which("lfs"):
        rows = parse_quota(_ask(["lfs", "quota", "-q", "-u", str(os.geteuid()), str(folder)]))
    elif shutil.which("quota"):
        rows = parse_quota(_ask(["quota", "-w", "-p"]))
        rows = [row for row in rows if mount is None or row[0] in (mount.source, mount.point)]
    else:
        yield Finding("quota", tested, "no command here tells; your cluster's own documentation may name one")
        return
    if not rows:
        yield Finding("quota", tested, "none here, as far as the command tells")
    for _, blocks, block_limit, files, file_limit in rows:
        yield from _judge_quota("space", blocks * 1024, block_limit * 1024)
        yield from _judge_quota("inodes", files, file_limit)


def _judge_quota(what: str, used: int, limit: int) -> Iterator[Finding]:
    if not limit:
        return
    show = size if what == "space" else str
    little, least = (LITTLE_BYTES, LEAST_BYTES) if what == "space" else (LITTLE_INODES, LEAST_INODES)
    left = limit - used
    level = Level.BAD if left < least else Level.NOTE if left < little else Level.GOOD
    advice = "" if level is Level.GOOD else "Make room (clusterduck prune helps), or choose another folder."
    yield Finding("quota", f"your quota ({what})", f"{show(used)} of {show(limit)} are used", level, advice)


def parse_quota(output: str) -> list[tuple[str, int, int, int, int]]:
    """File system, kilobytes used, their limit, files, their limit (0: none), of what ``quota`` or ``lfs quota`` print.

    Both print: name, used, quota, limit, grace, files, quota, limit, grace. The lower of quota and limit counts.
    """
    found = []
    for line in output.splitlines():
        fields = [field.rstrip("*") for field in line.split()]
        if len(fields) >= 8 and all(fields[at].isdecimal() for at in (1, 2, 3, 5, 6, 7)):
            numbers = [int(fields[at]) for at in (1, 2, 3, 5, 6, 7)]
            limits = [min((n for n in pair if n), default=0) for pair in (numbers[1:3], numbers[4:6])]
            found.append((fields[0], numbers[0], limits[0], numbers[3], limits[1]))
    return found


def _ask(command: list[str]) -> str:
    """What a command prints; nothing if it does not answer. Over quota, ``quota`` ends with an exit code of its own."""
    try:
        asked = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TOOL_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout[:100_000].decode("utf-8", "replace")
