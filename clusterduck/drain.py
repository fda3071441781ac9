"""Have jobs finish early: their agents finish what runs, and claim nothing more."""

from __future__ import annotations

import sqlite3
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence

from clusterduck import identity, standing
from clusterduck.asking import Agents
from clusterduck.errors import NotFoundError
from clusterduck.events import Asked
from clusterduck.inbox import Request
from clusterduck.journal import JournalWriter
from clusterduck.ledger import queries
from clusterduck.ledger.queries import Batch
from clusterduck.model import Attempt, State


def drain(connection: sqlite3.Connection, job: str) -> str:
    """Have the agents of a job finish what runs and claim nothing more; returns what was asked of whom in a sentence.

    Raises:
        NotFoundError: if no batch has that job, or none of its agents runs.
        OSError: if it could not be asked.
    """
    hosts: list[str] = []
    trouble: list[str] = []
    for sweep, batches in batches_of(connection, job).items():
        paths = standing.paths_of(connection, sweep)
        agents = Agents(connection, sweep)
        names = {batch.id for batch in batches}
        asked = {
            agent: Request(kind="drain", by=identity.user_at_host()) for agent in agents.known if agent.batch in names
        }
        if not asked:
            continue
        act = JournalWriter(paths.acts, sweep, "drain", name=f"drain-{uuid.uuid4().hex[:12]}")
        act.append([asked_event("drain", sorted({agent.batch for agent in asked}), [], job)])
        act.close()
        answer = agents.ask(paths, asked)
        hosts += [agents.known[agent].host or "?" for agent in answer.reached]
        trouble += answer.trouble
    if not hosts:
        raise NotFoundError(" ".join(trouble) or f"Job {job} has no agent that runs, so there is nobody to ask.")
    where = ", ".join(sorted(set(hosts)))
    return " ".join([f"job {job} on {where} finishes what runs and takes nothing more", *trouble])


def batches_of(connection: sqlite3.Connection, job: str) -> dict[str, list[Batch]]:
    """The live batches that have this job, or whose jobs are parts of this array; by sweep.

    Raises:
        NotFoundError: if there is none.
    """
    found: dict[str, list[Batch]] = defaultdict(list)
    known = False
    for batch in queries.batches(connection):
        if batch.job_id is not None and job in (batch.job_id, batch.job_id.partition("_")[0]):
            known = True
            if not State(batch.state).is_terminal:
                found[batch.sweep].append(batch)
    if not known:
        raise NotFoundError(f"No sweep of this ledger has a job {job}.")
    if not found:
        raise NotFoundError(f"Job {job} has ended already.")
    return found


def asked_event(kind: str, batches: Sequence[str], attempts: Iterable[Attempt], job: str | None = None) -> Asked:
    """The record of a request by whoever runs this program."""
    return Asked(
        kind=kind,
        user=identity.user(),
        host=identity.host(),
        batches=list(batches),
        attempts=[(attempt.run, attempt.number) for attempt in attempts],
        job_id=job,
    )
