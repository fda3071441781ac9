"""Requests to one agent, one file each: the command line and the dashboard write them, the agent lists its folder.

A request is data, checked field by field, never a pickle; one that anybody else could have written is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clusterduck.errors import ClusterduckError, JournalError
from clusterduck.model import Attempt
from clusterduck.paths import require_own_up_to

#: What can be asked of an agent: end these attempts; claim nothing more; look into the queue now.
KINDS = ("cancel", "drain", "look")

#: A longer request is none of ours, in bytes.
MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Request:
    """What is asked of an agent.

    Attributes:
        kind: one of :data:`KINDS`.
        by: user and host.
        attempts: the attempts to cancel.
        grace_s: from asking a run to end to killing it, in seconds.
        at: when, in seconds since the epoch.
    """

    kind: str
    by: str
    attempts: tuple[Attempt, ...] = ()
    grace_s: float = 10.0
    at: float = field(default_factory=time.time)


def post(inbox: Path, request: Request) -> str:
    """Put a request into an agent's inbox. Returns the request's name.

    Raises:
        OSError: if it cannot be written; the agent's folder is gone, or has not been made yet.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(inbox, 0o700)
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.json"
    data = json.dumps({**asdict(request), "attempts": [str(attempt) for attempt in request.attempts]}).encode("ascii")
    beside = inbox / f".{name}"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(beside, inbox / name)
    return name


def take(inbox: Path) -> tuple[list[Request], list[str]]:
    """Take the requests out of an inbox, oldest first, and say in a sentence each which were refused.

    Raises:
        OSError: if the folder cannot be listed, other than that nobody has written to it yet.
    """
    taken: list[Request] = []
    refused: list[str] = []
    try:
        with os.scandir(inbox) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except FileNotFoundError:
        return [], []
    for name in names:
        path = inbox / name
        try:
            require_own_up_to(path, inbox.parents[3])  # the sweep's root: batches, batch and agent lie between
            taken.append(parse(path.read_bytes()))
        except ClusterduckError as error:
            refused.append(f"the request {name} is refused: {error}")
        except OSError:
            continue  # it is gone, or stays there and is taken next time
        with contextlib.suppress(OSError):
            os.unlink(path)
    return taken, refused


def parse(data: bytes) -> Request:
    """Read a request.

    Raises:
        JournalError: if it is none.
    """
    if len(data) > MAX_BYTES:
        raise JournalError(f"it has {len(data)} bytes.")
    try:
        found = json.loads(data)
        request = Request(
            kind=str(found["kind"]),
            by=str(found["by"])[:200],
            attempts=tuple(Attempt.parse(attempt) for attempt in found["attempts"]),
            grace_s=min(3600.0, max(0.0, float(found["grace_s"]))),
            at=float(found["at"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JournalError(f"it is no request ({type(error).__name__}: {error}).") from None
    if request.kind not in KINDS:
        raise JournalError(f"it asks for {request.kind[:40]!r}, which no agent can do.")
    return request
