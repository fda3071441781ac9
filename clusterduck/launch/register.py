"""Makes a sweep known: its id, its place in the project's ledger folder, and a ledger that shows it at once."""

from __future__ import annotations

import logging
import os
import re
import secrets
from pathlib import Path

from clusterduck import sharing
from clusterduck.errors import ConfigError, UnsafePathError
from clusterduck.paths import HIDDEN, LEDGER_NAME, LedgerPaths, SweepPaths, find_ledger

log = logging.getLogger(__name__)

_ALPHABET = "abcdefghijklmnopqrstuvwxyz23456789"

#: The longest part of a job's name that goes into an id, in characters.
_NAME_CHARS = 40

#: For how long journals are folded before the ledger is published as far as it is, in seconds.
FOLD_BUDGET_S = 10.0


def new_sweep_id(job_name: str) -> str:
    """An id that tells what the sweep is about and that nobody else has: ``<job name>-<5 characters>``."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", job_name).lstrip(".-")[:_NAME_CHARS] or "sweep"
    return f"{name}-{''.join(secrets.choice(_ALPHABET) for _ in range(5))}"


def ledger_for(cwd: Path, explicit: str | None) -> Path:
    """The ledger that sweeps launched in ``cwd`` go to; it need not exist yet.

    Raises:
        ConfigError: if its folder cannot be written.
    """
    ledger = find_ledger(cwd, explicit) or cwd / HIDDEN / LEDGER_NAME
    folder = ledger.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"The ledger {ledger} cannot be written: name another file with hydra.launcher.ledger or "
            f"CLUSTERDUCK_LEDGER."
        )
    return ledger


def prepare(ledger: Path, readable_by: int | None) -> None:
    """Make the ledger's folder, and let a group read it if one is to.

    Raises:
        ConfigError: if it cannot be made, or others could write it.
    """
    try:
        LedgerPaths(ledger).create(readable_by)
    except (OSError, UnsafePathError) as error:
        raise ConfigError(
            f"The ledger {ledger} cannot be used ({error}): name another file with hydra.launcher.ledger or "
            f"CLUSTERDUCK_LEDGER."
        ) from None


def enter(ledger: Path, paths: SweepPaths) -> None:
    """Enter the sweep into the project's list, as a file that holds where its root is, whole from its first instant.

    Raises:
        ConfigError: if another sweep of the project has the id.
        OSError: if the list cannot be written.
    """
    project = LedgerPaths(ledger)
    project.create()
    pointer = project.sweeps / paths.sweep
    group = sharing.reading_group(project.sweeps)
    try:
        # An empty file is no entry yet, but takes the name.
        os.close(os.open(pointer, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise ConfigError(f"The project already has a sweep {paths.sweep}: launch again to get another id.") from None
    write_whole(pointer, os.fsencode(paths.root) + b"\n")
    sharing.let_read(pointer, group)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file for the owner alone, on disk and whole before it has its name.

    Raises:
        OSError: if it could not be written; what had the name before still has it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def say_what_takes_long(words: str) -> None:
    """Say in the log what a launch waits for."""
    log.info("%s.", words.capitalize())


def publish(ledger: Path) -> None:
    """Bring the ledger up to date. That it fails changes nothing of the sweep, so it only warns."""
    try:
        from clusterduck.ledger.publish import publish as publish_replica
        from clusterduck.ledger.replica import Replica

        with Replica.open(ledger, tell=say_what_takes_long) as replica:
            replica.catch_up(budget_s=FOLD_BUDGET_S)
            publish_replica(replica, ledger)
    except Exception as error:
        log.warning("The ledger could not be brought up to date (%s); the sweep itself is not affected.", error)
