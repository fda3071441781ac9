"""One publisher at a time, on any host: a file beside the ledger, made exclusively, that names who made it.

It spares work and settles races, as far as a file can: one whose owner is dead, or seems to be, is broken. So whoever
holds it looks once more just before the step that matters.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: A holder that is still there after this long, in seconds by the file server's clock, is taken for dead.
STALE_S = 60.0


def lock_path(ledger: Path) -> Path:
    """Where the lock on a ledger lies."""
    return ledger.with_name(f".{ledger.name}.lock")


@contextmanager
def hold(ledger: Path, wait_s: float) -> Iterator[str | None]:
    """Hold the lock on a ledger.

    Args:
        ledger: the ledger's path.
        wait_s: how long to wait for another holder, in seconds.

    Yields:
        This holder's own name, good for the names of its files; None if another one held the lock for too long.
    """
    path = lock_path(ledger)
    token = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    deadline = time.monotonic() + wait_s
    while not _take(path, token):
        if _break_if_stale(path, token):
            continue
        if time.monotonic() >= deadline:
            yield None
            return
        time.sleep(0.05)
    try:
        yield token
    finally:
        if _owner(path) == token:
            path.unlink(missing_ok=True)


def _take(path: Path, token: str) -> bool:
    """Make the lock: written beside and linked into place, so that it names its owner from its first instant."""
    beside = path.with_name(f"{path.name}.{token}")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(token)
        os.link(beside, path)
    except FileExistsError:
        return _owner(path) == token  # NFS may have carried out a request whose answer was lost
    finally:
        beside.unlink(missing_ok=True)
    return True


def _owner(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _break_if_stale(path: Path, token: str) -> bool:
    """Take a dead owner's lock out of the way. True if it is worth trying again at once."""
    try:
        owner = path.read_text(encoding="utf-8", errors="replace")
        made = path.stat().st_mtime
    except FileNotFoundError:
        return True
    if not _is_dead(owner) and _server_time(path, token) - made < STALE_S:
        return False
    aside = path.with_name(f"{path.name}.{token}.stale")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    try:
        if _owner(aside) != owner:  # a living one's, made a moment ago: back with it
            os.link(aside, path)
    except FileExistsError:
        return True
    finally:
        aside.unlink(missing_ok=True)
    return True


def _is_dead(owner: str) -> bool:
    """Whether a lock's owner was a process of this host that is no more."""
    host, _, rest = owner.rpartition(".")[0].rpartition(".")
    if host != socket.gethostname() or not rest.isdecimal():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _server_time(path: Path, token: str) -> float:
    """What the file server's clock says, learned from a file made this moment."""
    probe = path.with_name(f"{path.name}.{token}.now")
    try:
        probe.touch(0o600)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
