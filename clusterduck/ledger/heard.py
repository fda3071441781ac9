"""When agents were last heard of, for readers whose clock is not theirs.

An agent's times are its own host's, and hosts' clocks may differ by minutes. So where the times make an agent look
silent, or speak from the future, its journal is looked at: the file server saw when it was written to.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from clusterduck.ledger import queries, times
from clusterduck.ledger.answers import Agent
from clusterduck.model import AgentId
from clusterduck.paths import SweepPaths

#: By so much may what an agent says differ from this host's clock without a second look, in seconds.
DOUBT_S = 60.0


def corrected(connection: sqlite3.Connection, agents: Iterable[Agent]) -> list[Agent]:
    """The agents, each with the time it was last heard of as this host's clock has it, as well as that can be known."""
    now = time.time()
    return [_corrected(connection, agent, now) for agent in agents]


def _corrected(connection: sqlite3.Connection, agent: Agent, now: float) -> Agent:
    said = agent.seen_at or agent.heartbeat_at
    if agent.exit_code is not None or said is None or abs(now - times.to_seconds(said)) < DOUBT_S:
        return agent
    written = _written_at(connection, agent)
    if written is None:
        return agent
    at = times.to_text(written)
    return replace(agent, seen_at=at, heartbeat_at=None if agent.heartbeat_at is None else at)


def _written_at(connection: sqlite3.Connection, agent: Agent) -> float | None:
    """When the agent's journal was last written to; None if it cannot be seen."""
    paths = SweepPaths(Path(queries.sweep(connection, agent.sweep).root))
    latest = None
    try:
        with os.scandir(paths.agent(AgentId(agent.batch, agent.restart, agent.node))) as entries:
            names = [entry.path for entry in entries if entry.name.endswith(".jsonl")]
        for name in names:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)  # opened, because NFS answers from memory
            try:
                latest = max(latest or 0.0, os.fstat(fd).st_mtime)
            finally:
                os.close(fd)
    except OSError:
        return None
    return latest
