"""What the writer thread answers to the agent's wait loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clusterduck.agent.claiming import Haul
from clusterduck.inbox import Request


@dataclass(frozen=True)
class ClaimsMade:
    """The answer to ``Writer.claim``."""

    asked: int
    haul: Haul


@dataclass(frozen=True)
class QueueSeen:
    """The answer to ``Writer.look`` and ``Writer.put_back``: how many attempts there may be to claim."""

    left: int


@dataclass(frozen=True)
class PayloadFetched:
    """The answer to ``Writer.fetch``; ``error`` is a sentence if the payload cannot be had."""

    error: str | None


@dataclass(frozen=True)
class InboxRead:
    """The answer to ``Writer.read_inbox``, if there was anything in it."""

    requests: list[Request]
    superseded: bool  # a later restart of the job has an agent


@dataclass(frozen=True)
class NotSuperseded:
    """The answer to ``Writer.look_for_restart``, if the job was not started again; else it is an
    :class:`InboxRead`."""


@dataclass(frozen=True)
class FolderGone:
    """Not asked for: the sweep's folder has been away for a while, so there is nothing left to work on."""

    folder: Path


Answer = FolderGone | ClaimsMade | QueueSeen | PayloadFetched | InboxRead | NotSuperseded
