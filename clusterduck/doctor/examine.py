"""All checks, one after the other, in bounded time: what a person asks the doctor for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from clusterduck.doctor import between, cluster, files, host, ledgers, mounts
from clusterduck.doctor.finding import Check, Finding, Level, carry_out
from clusterduck.doctor.scratch import scratch
from clusterduck.errors import NotFoundError

#: All checks on this host together may take so long, in seconds.
LIMIT_S = 60.0


def examine(folder: Path, *, with_slurm: bool = False, ledger: str | None = None) -> Iterator[Finding]:
    """Try the folder, its file system and this host; the findings come as they are made.

    Args:
        folder: where sweeps would go.
        with_slurm: whether to try the file system between two nodes, too.
        ledger: the ledger's path, if it is not the folder's own.

    Raises:
        NotFoundError: if there is no such folder.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder}.")
    deadline = time.monotonic() + LIMIT_S
    mount_check = Check("mount", "the file system's type and mount options", lambda: mounts.check(folder))
    yield from carry_out(mount_check, mount_check.limit_s)
    with ExitStack() as stack:
        tried: list[Check] = []
        try:
            place = stack.enter_context(scratch(folder))
            here, nodes = place / "here", place / "nodes"
            here.mkdir(0o700)
            nodes.mkdir(0o700)
        except OSError as error:
            yield Finding(
                "write",
                f"making a folder in {folder}",
                str(error.strerror or error),
                Level.BAD,
                "Choose a folder that you can write: set hydra.sweep.dir.",
            )
            with_slurm = False
        else:
            tried = [
                Check("pair", "the file system", lambda: between.try_here(here), between.LIMIT_S),
                Check("fsync", "appending a line and fsync", lambda: files.check_fsync(place), 20.0),
                Check("clock", "a new file's time against this host's clock", lambda: files.check_clock(place)),
            ]
        for check in [*tried, *_checks_of_host(folder, ledger)]:
            yield from carry_out(check, max(1.0, min(check.limit_s, deadline - time.monotonic())))
        if with_slurm:
            yield from cluster.check_two_nodes(nodes)  # in this thread, so that an interrupt also ends the job


def _checks_of_host(folder: Path, ledger: str | None) -> list[Check]:
    return [
        Check("space", "room that is left", lambda: files.check_room(folder)),
        Check("quota", "your quota", lambda: files.check_quota(folder, mounts.find(folder)), 8.0),
        Check("temporary", "the temporary folder", host.check_temporary),
        Check("packages", "Python and packages on this host", host.check_packages),
        Check("nvml", "GPUs that NVML shows on this host", host.check_gpus, 10.0),
        Check("slurm", "Slurm's commands", cluster.check_commands, 30.0),
        Check("ledger", "the ledger", lambda: ledgers.check(folder, ledger), 20.0),
    ]
