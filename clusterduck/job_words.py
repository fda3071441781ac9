"""How a job stands, for people: Slurm's word on it, else the ledger's, and how old that is if nobody could be asked."""

from __future__ import annotations

import time

from clusterduck.ledger.queries import Agent, Batch
from clusterduck.model import State
from clusterduck.slurm.jobs import ABSENT, OVER, UNKNOWN, JobStatus
from clusterduck.wording import age, seconds_of

#: An agent that was not heard of for so many seconds may be dead.
SILENT_S = 90.0

_LIVE = (State.PENDING.value, State.RUNNING.value)


def standing(batch: Batch, job: JobStatus | None) -> tuple[str, str]:
    """A job's state and reason, to be shown.

    Args:
        batch: the job's batch.
        job: what is known of the job; None if nobody asked.
    """
    if batch.state not in _LIVE:
        return batch.state, batch.reason or ""
    if job is None:
        return batch.state, (batch.reason or "not submitted") if batch.job_id is None else ""
    if (job.as_of is not None or job.state in (UNKNOWN, ABSENT)) and silence(batch.heartbeat_at) <= SILENT_S:
        # Slurm tells nothing of its job now, but its agent has just said that it is alive.
        return batch.state, job.reason if job.state == ABSENT and job.as_of is None else ""
    if job.state == UNKNOWN:
        heard_at = seconds_of(batch.heartbeat_at or batch.started_at or batch.submitted_at)
        return batch.state, f"{_as_of(heard_at)}; {job.reason}".removeprefix("; ")
    state = UNKNOWN if job.state == ABSENT else job.state
    words = [_as_of(job.as_of), job.reason, "another look will confirm it" if job.state in OVER else ""]
    return state, "; ".join(filter(None, words))


def time_left(batch: Batch | Agent, job: JobStatus | None) -> float | None:
    """Seconds until the limit of a job that lives: Slurm's answer, else what its agent was told at its start."""
    if job is not None and job.state in OVER:
        return None
    if job is not None and job.time_left_s is not None:
        return job.time_left_s
    ends_at = seconds_of(batch.ends_at)
    return None if ends_at is None else max(0.0, ends_at - time.time())


def silence(heard_at: str | None) -> float:
    """Seconds since an agent was heard of (a time of the ledger); for ever if it never was."""
    heard = seconds_of(heard_at)
    return float("inf") if heard is None else time.time() - heard


def _as_of(at: float | None) -> str:
    return "" if at is None else f"as of {age(time.time() - at)} ago"
