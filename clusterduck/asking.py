"""Ask agents to do something: a request into each one's inbox, and a signal, so that they need not find it by chance.

The signal only hurries: without it an agent looks into its inbox every few seconds all the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from clusterduck import identity, inbox
from clusterduck.errors import SlurmError
from clusterduck.inbox import Request
from clusterduck.launch.processes import is_running
from clusterduck.ledger import queries, times
from clusterduck.ledger.queries import Agent
from clusterduck.model import AgentId
from clusterduck.paths import SweepPaths
from clusterduck.slurm.acts import scancel

#: How long Slurm may take to send a signal, in seconds: an agent looks by itself before a slow controller answers.
SIGNAL_PATIENCE_S = 6.0


class Signal:
    """Slurm's signal to jobs to look into their inboxes, on its way: whoever is heard of meanwhile does not need it."""

    def __init__(self, jobs: Collection[str]) -> None:
        self._jobs = sorted(jobs)
        self._trouble: list[str] = []
        self._thread = threading.Thread(target=self._send, name="signal", daemon=True)
        self._thread.start()

    def trouble(self, patience_s: float = 0.0) -> list[str]:
        """What went wrong, in sentences; nothing if it is still on its way after so many seconds."""
        self._thread.join(patience_s)
        return list(self._trouble)

    def _send(self) -> None:
        if not self._jobs:
            return
        try:
            scancel(self._jobs, signal="USR1", timeout_s=SIGNAL_PATIENCE_S)
        except SlurmError as error:
            self._trouble.append(f"{error} So the request takes a few seconds more.")


@dataclass(frozen=True)
class Asked:
    """What became of asking.

    Attributes:
        reached: the agents whose inboxes hold the request.
        trouble: a sentence for each request that could not be written.
        signal: what hurries them.
    """

    reached: tuple[AgentId, ...]
    trouble: tuple[str, ...]
    signal: Signal


class Agents:
    """A sweep's agents that live as far as the ledger knows.

    Attributes:
        known: the agents, by their ids.
    """

    def __init__(self, connection: sqlite3.Connection, sweep: str) -> None:
        self.known: dict[AgentId, Agent] = {
            AgentId(agent.batch, agent.restart, agent.node): agent
            for agent in queries.agents(connection, sweep, alive=True)
        }
        rows = connection.execute(
            "SELECT batch.id, agent.restart FROM batch JOIN agent ON agent.sweep = batch.sweep "
            "AND agent.batch = batch.id AND agent.started_at IS NOT NULL WHERE batch.sweep = ? "
            "GROUP BY batch.id, agent.restart HAVING count(*) >= coalesce(batch.nodes, 1)",
            (sweep,),
        ).fetchall()
        self._all_up = {(str(batch), int(restart)) for batch, restart in rows}

    def ask(self, paths: SweepPaths, requests: Mapping[AgentId, Request]) -> Asked:
        """Put a request into the inbox of each agent, then wake them; one that the ledger does not know is not woken.

        Args:
            paths: the sweep's.
            requests: what is asked of whom.
        """
        reached, trouble = [], []
        for agent, request in requests.items():
            try:
                inbox.post(paths.agent(agent) / "inbox", request)
            except OSError as error:
                trouble.append(f"The request to agent {agent} could not be written: {error}.")
            else:
                reached.append(agent)
        return Asked(tuple(reached), tuple(trouble), self._wake(reached))

    def _wake(self, agents: Iterable[AgentId]) -> Signal:
        """Send agents the signal to look into their inboxes.

        Slurm sends it to all agents of a job, and it would kill one that is only starting: there, nobody is woken.
        """
        jobs = set()
        for who in agents:
            agent = self.known.get(who)
            if agent is None:
                continue
            if agent.cluster == "slurm":
                if agent.job_id and (who.batch, who.restart) in self._all_up:
                    jobs.add(agent.job_id)
            elif agent.host == identity.host() and agent.pid:
                known_at = times.to_seconds(agent.started_at) if agent.started_at else 0.0
                if is_running(agent.pid, known_at):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(agent.pid, signal.SIGUSR1)
        return Signal(jobs)
