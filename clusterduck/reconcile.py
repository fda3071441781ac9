"""Find out which jobs are over without their agents having said so, and put that on record as an act.

Slurm is the truth about jobs, the agents about runs. One look proves nothing: a job counts as over only if two looks
some seconds apart say so and nothing else was heard in between. What nobody can tell stays as it was last known. What
is found is written as a journal of its own, so that the ledger can be folded anew; two processes that find the same
write the same, and whatever an agent says itself outranks it.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from clusterduck import adopt, lost
from clusterduck.errors import ClusterduckError, SlurmError
from clusterduck.events import AttemptEnded, BatchClosed, Event
from clusterduck.journal import JournalWriter
from clusterduck.launch.processes import is_running
from clusterduck.ledger import queries, times
from clusterduck.model import AgentId, Attempt, State
from clusterduck.paths import LedgerPaths, SweepPaths, require_own, require_own_up_to
from clusterduck.queue import Claims
from clusterduck.result import read_report
from clusterduck.slurm.command import QUICK_S
from clusterduck.slurm.jobs import ABSENT, OF_ANOTHER, UNKNOWN, JobStatus, exit_words, is_denied, look_up
from clusterduck.slurm.looks import Key, Looks

if TYPE_CHECKING:
    from clusterduck.ledger.replica import Replica

#: Seconds between two looks that agree, before a job that Slurm says has ended counts as over.
CONFIRM_S = 5.0

#: The same for a job that Slurm merely does not list; and as long must its agents have been silent.
CONFIRM_ABSENT_S = 60.0
SILENCE_S = 120.0

#: Of so many jobs that are closed at once, Slurm is asked for their exit codes: each is a question of its own.
_MOST_DETAILS = 20

#: What a job's end means for the runs it was executing; every other end is FAILED.
_STATES = {
    "NODE_FAIL": State.NODE_FAIL,
    "BOOT_FAIL": State.NODE_FAIL,
    "TIMEOUT": State.TIMEOUT,
    "DEADLINE": State.TIMEOUT,
    "CANCELLED": State.CANCELLED,
    "PREEMPTED": State.PREEMPTED,
    "OUT_OF_MEMORY": State.OUT_OF_MEMORY,
}


@dataclass(frozen=True)
class LiveBatch:
    """A batch that was submitted and that the ledger does not know to be over."""

    sweep: str
    batch: str
    root: str
    cluster: str
    job_id: str
    host: str
    submitted_at: float | None
    heard_at: float | None  # the latest sign of life of an agent of it
    agents: tuple[tuple[str, int, float | None], ...]  # host, pid, started

    @property
    def key(self) -> Key:
        """What names it in the ledger."""
        return (self.sweep, self.batch)


@dataclass(frozen=True)
class Outlook:
    """What is known of the jobs of all live batches.

    Attributes:
        jobs: each batch's job, as Slurm or this host says, or said when it last could be asked.
        over: the batches whose jobs two looks found over.
        trouble: one sentence if Slurm could not be asked.
    """

    jobs: dict[Key, JobStatus]
    over: frozenset[Key]
    trouble: str | None = None


def look_at_jobs(ledger: Path, replica: Replica, patience_s: float = QUICK_S) -> Outlook:
    """Ask about the jobs of all live batches: Slurm in one batched call, unless somebody on this host just did.

    Args:
        ledger: the ledger's path.
        replica: its replica.
        patience_s: how long Slurm may take. Who shows something to a person waits a few seconds.
    """
    live = live_batches(replica.connection)
    if not live:
        return Outlook({}, frozenset())
    looks = Looks(LedgerPaths(ledger).replica_folder / "looks.json")
    of_slurm = {batch.key: batch for batch in live if batch.cluster != "local"}
    trouble = looks.look(
        {key: batch.job_id for key, batch in of_slurm.items()},
        lambda: _ask_slurm(of_slurm.values(), patience_s),
        {batch.key: local_status(batch) for batch in live if batch.cluster == "local"},
        patience_s,
    )
    jobs = {batch.key: looks.status(batch.key) or _never_heard(batch) for batch in live}
    over = [
        batch.key
        for batch in live
        if _is_confirmed(batch, jobs[batch.key], looks.over_since(batch.key), looks.heard_at(batch.key))
    ]
    return Outlook(jobs, frozenset(over), trouble)


def _never_heard(batch: LiveBatch) -> JobStatus:
    return JobStatus(batch.job_id, UNKNOWN, reason="Slurm has not told of it yet")


def close_dead_batches(ledger: Path, replica: Replica, outlook: Outlook | None = None) -> list[str]:
    """Put on record which batches are over, and how their running attempts ended; returns them as ``<sweep> <batch>``.

    Jobs that nobody has on record are adopted first, and what was lost is put back last, if its launch says so.

    Raises:
        OSError: if an act could not be written; what was not written will be found again by the next look.
        ClusterduckError: if what was lost could not be sent again; it waits in the queue.
    """
    if not LedgerPaths(ledger).is_own:
        return []  # that is for its owner to do, who may look any moment
    if outlook is None or outlook.trouble is None:
        adopt.adopt(replica)
    outlook = outlook or look_at_jobs(ledger, replica)
    if outlook.over:
        replica.catch_up()  # whatever the agents wrote before their jobs ended has priority
    found: dict[str, list[Event]] = {}
    closed: list[str] = []
    roots: dict[str, str] = {}
    for batch in live_batches(replica.connection):
        if not Path(batch.root).is_dir():
            continue  # it was moved or deleted, and nothing can be put on record there
        if batch.key not in outlook.over or not _is_sure(batch, outlook.jobs[batch.key]):
            continue
        roots[batch.sweep] = batch.root
        detail = ""
        if batch.cluster != "local" and outlook.jobs[batch.key].state == "FAILED" and len(closed) < _MOST_DETAILS:
            detail = exit_words(batch.job_id)
        state, reason = _verdict(batch, outlook.jobs[batch.key], detail)
        events = _reported_ends(replica.connection, batch)
        found.setdefault(batch.sweep, []).extend([*events, BatchClosed(batch=batch.batch, state=state, reason=reason)])
        closed.append(f"{batch.sweep} {batch.batch}")
    trouble: OSError | None = None
    for sweep, events in found.items():
        try:
            _write_act(SweepPaths(Path(roots[sweep])), sweep, events)
        except OSError as error:
            trouble = error  # the other sweeps are not to wait for this one
    if found:
        replica.catch_up()
    lost.put_back(ledger, replica, outlook.jobs)
    if trouble is not None:
        raise trouble
    return closed


def is_anything_open(connection: sqlite3.Connection) -> bool:
    """Whether any batch is not known to be over, so that looking at jobs may bring something."""
    found = connection.execute("SELECT 1 FROM batch WHERE state IN ('PENDING', 'RUNNING') LIMIT 1").fetchone()
    return found is not None


def live_batches(connection: sqlite3.Connection) -> list[LiveBatch]:
    """Every batch that was submitted and is not known to be over."""
    rows = connection.execute(
        "SELECT batch.sweep, batch.id, sweep.root, batch.cluster, batch.job_id, batch.submit_host, batch.submitted_at"
        " FROM batch JOIN sweep ON sweep.id = batch.sweep"
        " WHERE batch.state IN ('PENDING', 'RUNNING') AND batch.job_id IS NOT NULL AND sweep.root IS NOT NULL"
    ).fetchall()
    batches = []
    for sweep, batch, root, cluster, job_id, host, submitted_at in rows:
        agents = connection.execute(
            "SELECT host, pid, started_at, seen_at, ended_at FROM agent WHERE sweep = ? AND batch = ?", (sweep, batch)
        ).fetchall()
        heard = [at for agent in agents for at in map(_seconds, agent[2:4]) if at is not None]
        batches.append(
            LiveBatch(
                sweep=sweep,
                batch=batch,
                root=queries.path(root) or "",
                cluster=cluster or "",
                job_id=str(job_id),
                host=host or "",
                submitted_at=_seconds(submitted_at),
                heard_at=max(heard, default=None),
                agents=tuple((str(a[0]), int(a[1] or 0), _seconds(a[2])) for a in agents if a[4] is None),
            )
        )
    return batches


def _seconds(text: str | None) -> float | None:
    return times.to_seconds(text) if text else None


def _ask_slurm(batches: Iterable[LiveBatch], timeout_s: float) -> dict[Key, JobStatus]:
    batches = list(batches)
    answer = look_up({batch.job_id: batch.submitted_at for batch in batches}, timeout_s)
    return {batch.key: answer[batch.job_id] for batch in batches}


def local_status(batch: LiveBatch) -> JobStatus:
    """A local job, as this host's processes tell: alive as long as its controller or one of its agents is.

    A process that began after the job was submitted (an agent: after it reported) is another one with the same id.
    """
    if batch.host != socket.gethostname():
        return JobStatus(batch.job_id, UNKNOWN, reason=f"it runs on {batch.host}, and can be asked about only there")
    pids = [(int(batch.job_id) if batch.job_id.isdecimal() else 0, batch.submitted_at)]
    pids += [(pid, started) for host, pid, started in batch.agents if host == batch.host]
    if any(pid > 0 and is_running(pid, float("inf") if at is None else at) for pid, at in pids):
        return JobStatus(batch.job_id, "RUNNING", submitted_at=batch.submitted_at)
    return JobStatus(
        batch.job_id, ABSENT, reason=f"its process on {batch.host} is gone", submitted_at=batch.submitted_at
    )


def _is_confirmed(batch: LiveBatch, status: JobStatus, over_since: float | None, asked_at: float) -> bool:
    """Whether two answers, the later one of ``asked_at``, are far enough apart: however late that is looked at."""
    if over_since is None or status.as_of is not None or not (status.is_over or status.state == ABSENT):
        return False
    if status.is_over or batch.cluster == "local":
        return asked_at - over_since >= CONFIRM_S
    heard_at = max((at for at in (batch.heard_at, batch.submitted_at) if at is not None), default=0.0)
    return asked_at - over_since >= CONFIRM_ABSENT_S and asked_at - heard_at >= SILENCE_S


def _is_sure(batch: LiveBatch, status: JobStatus) -> bool:
    """Whether a job that is to be closed because Slurm does not list it is one that Slurm says it does not have."""
    if batch.cluster == "local" or status.state != ABSENT or status.reason == OF_ANOTHER:
        return True
    try:
        return is_denied(batch.job_id)
    except SlurmError:
        return False


def _verdict(batch: LiveBatch, status: JobStatus, detail: str) -> tuple[str, str]:
    if batch.cluster == "local":
        return State.FAILED.value, (
            f"The job's process {batch.job_id} on {batch.host} is gone without having said how it ended: "
            "it was killed, or the machine was restarted."
        )
    state = _STATES.get(status.state, State.FAILED).value
    if not status.is_over:
        silence = "no agent of it was ever heard of" if batch.heard_at is None else "its agent fell silent"
        return state, f"Slurm no longer knows job {batch.job_id}, and {silence}."
    words = [status.state, "" if status.reason == status.state else status.reason, detail]
    said = ", ".join(filter(None, words))
    silence = "It never began its work." if batch.heard_at is None else "Its agent did not say how it ended."
    return state, f"Slurm says of job {batch.job_id}: {said}. {silence}"


def _reported_ends(connection: sqlite3.Connection, batch: LiveBatch) -> list[Event]:
    """The ends of those attempts of a dead batch that left a result file and nothing in the journals."""
    paths = SweepPaths(Path(batch.root))
    rows = connection.execute(
        "SELECT run, number, restart, node, state FROM attempt WHERE sweep = ? AND batch = ?",
        (batch.sweep, batch.batch),
    ).fetchall()
    known = {Attempt(run, number): (AgentId(batch.batch, *place), state) for run, number, *place, state in rows}
    claims = Claims(paths.claims, "")
    found: list[Event] = []
    for attempt in _results(paths.results):
        agent, state = known.get(attempt) or (_owner(claims, attempt), State.RUNNING.value)
        if agent is not None and agent.batch == batch.batch and not State(state).is_terminal:
            end = _end_in_result(paths.result(attempt), attempt, agent)
            found += [] if end is None else [end]
    return found


def _owner(claims: Claims, attempt: Attempt) -> AgentId | None:
    try:
        return AgentId.parse(claims.owner(attempt) or "")
    except (OSError, ValueError):  # what stands in its place is no claim of an agent
        return None


def _results(folder: Path) -> list[Attempt]:
    found = []
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    for name in names:
        stem, dot, ending = name.rpartition(".")
        with suppress(ValueError):  # a result that is being written, or nothing of ours
            if dot and ending == "pkl":
                found.append(Attempt.parse(stem))
    return sorted(found)


def _end_in_result(path: Path, attempt: Attempt, agent: AgentId) -> AttemptEnded | None:
    """How the attempt ended, as its result file tells; None if that is not the whole of one, or not ours."""
    known = {field.name for field in fields(AttemptEnded)} - {"run", "attempt", "time", "agent"}
    try:
        require_own_up_to(path, path.parent.parent)
        report = {key: value for key, value in read_report(path).items() if key in known}
        if not State(report["state"]).is_terminal:
            return None
        return AttemptEnded(
            **{"result": str(path), **report},
            run=attempt.run,
            attempt=attempt.number,
            agent=str(agent),
            time=path.stat().st_mtime,  # so that whoever finds it says the same
        )
    except (OSError, ClusterduckError, TypeError, ValueError, KeyError):
        return None


def _write_act(paths: SweepPaths, sweep: str, events: list[Event]) -> None:
    require_own(paths.acts)
    writer = JournalWriter(paths.acts, sweep, "close", name=f"close-{uuid.uuid4().hex[:12]}")
    writer.append(events)
    writer.close()
