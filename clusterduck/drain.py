"""Have jobs finish early: their agents finish what runs, and claim nothing more; those that wait do not begin."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from clusterduck import identity, standing
from clusterduck.asking import Agents, Signal
from clusterduck.errors import NotFoundError, SlurmError
from clusterduck.events import Asked, BatchClosed
from clusterduck.inbox import Request
from clusterduck.journal import JournalWriter
from clusterduck.ledger import queries
from clusterduck.ledger.queries import Batch
from clusterduck.model import AgentId, Attempt, State
from clusterduck.slurm.acts import scancel
from clusterduck.slurm.jobs import still_listed

if TYPE_CHECKING:
    from clusterduck.ledger.replica import Replica

#: For how long agents that are asked are waited for, in seconds: one that no signal reaches looks by itself before.
ACKNOWLEDGE_S = 10.0


def drain(replica: Replica, job: str) -> str:
    """Have the agents of a job finish what runs and claim nothing more; returns what was done, in a sentence.

    The agents are waited for a few seconds, until they say that they do. A job that has not begun has nothing to
    finish: it leaves Slurm's queue, and its runs stay, to be sent again.

    Raises:
        NotFoundError: if no batch has that job, or it neither runs nor waits.
        OSError: if it could not be asked.
    """
    connection = replica.connection
    said: list[str] = []
    hosts: list[str] = []
    trouble: list[str] = []
    signals: list[Signal] = []
    reached: dict[str, Sequence[AgentId]] = {}
    for sweep, batches in batches_of(connection, job).items():
        paths = standing.paths_of(connection, sweep)
        agents = Agents(connection, sweep)
        names = {batch.id for batch in batches}
        asked = {
            agent: Request(kind="drain", by=identity.user_at_host()) for agent in agents.known if agent.batch in names
        }
        waiting = {
            batch.job_id: batch.id
            for batch in batches
            if batch.cluster == "slurm" and batch.job_id is not None and batch.state == State.PENDING.value
        }
        if not (asked or waiting):
            continue
        act = JournalWriter(paths.acts, sweep, "drain", name=f"drain-{uuid.uuid4().hex[:12]}")
        if asked:
            act.append([asked_event("drain", sorted({agent.batch for agent in asked}), [], job)])
        if waiting:
            said += _take_out(act, waiting, trouble)
        act.close()
        answer = agents.ask(paths, asked)
        hosts += [agents.known[agent].host or "?" for agent in answer.reached]
        trouble += answer.trouble
        reached[sweep] = answer.reached
        signals.append(answer.signal)
    if hosts:
        where = f"job {job} on {', '.join(sorted(set(hosts)))}"
        if _have_answered(replica, reached):
            said.insert(0, f"{where} finishes what runs and takes nothing more")
        else:
            said.insert(0, f"{where} is asked to finish what runs and to take nothing more, and has not answered yet")
            trouble += [words for its in signals for words in its.trouble()]
    if not said:
        raise NotFoundError(" ".join(trouble) or f"Job {job} has no agent that runs, so there is nobody to ask.")
    return ". ".join([*said, *trouble])


def _have_answered(replica: Replica, asked: Mapping[str, Sequence[AgentId]]) -> bool:
    """Wait until all agents that were asked, by sweep, say that they take nothing more, or are over."""
    until = time.monotonic() + ACKNOWLEDGE_S
    while True:
        replica.catch_up(look_at=list(asked))
        deaf = False
        for sweep, agents in asked.items():
            known = Agents(replica.connection, sweep).known
            deaf |= any(agent in known and not known[agent].draining for agent in agents)
        if not deaf:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def _take_out(act: JournalWriter, jobs: Mapping[str, str], trouble: list[str]) -> list[str]:
    """Take jobs (their ids, and batches) that have not begun out of Slurm's queue; says which, in a sentence."""
    for job, batch in jobs.items():
        act.append([asked_event("scancel", [batch], [], job)])
    act.flush(sync=True)
    try:
        scancel(jobs, waiting_only=True)
        begun = still_listed(jobs)
    except SlurmError as error:
        trouble.append(str(error))
        return []
    if begun:
        trouble.append(f"Job {', '.join(sorted(begun))} has just begun: drain it once more when it runs.")
    gone = {job: batch for job, batch in jobs.items() if job not in begun}
    reason = f"drained by {identity.user_at_host()} before it began"
    act.append([BatchClosed(batch=batch, state=State.CANCELLED.value, reason=reason) for batch in gone.values()])
    if not gone:
        return []
    its = "its" if len(gone) == 1 else "their"
    return [
        f"job {', '.join(sorted(gone))} had not begun and was taken out of Slurm's queue; {its} runs stay PENDING "
        "until `clusterduck requeue --unfinished` sends them"
    ]


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
