"""How facts make states: pure functions, so that the same facts give the same rows, whatever order they came in.

An agent's own word outranks all else. What others concluded (``Closing``) holds for an agent only if that agent was
not heard of after it; so a job that was called dead too early, or that Slurm started again, comes back to life by
itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from clusterduck.events import AttemptEnded
from clusterduck.ledger import times
from clusterduck.ledger.rows import TOLD_BY_AGENT, AgentRow, AttemptRow, BatchRow, RunRow
from clusterduck.model import State

#: An agent that is heard of this long after somebody declared its job over shows that the job was not over, in seconds.
#: Must exceed what two hosts' clocks may differ by.
CLOCK_SLACK_S = 60.0


class Closing(NamedTuple):
    """Somebody's conclusion that a job, or runs that never started, are over."""

    at: str
    state: str
    reason: str | None


def agent_end(agent: AgentRow, closings: Iterable[Closing], agents: Iterable[AgentRow]) -> Closing | None:
    """How an agent that did not say itself that it ended came to its end, or None if it lives as far as is known.

    Args:
        agent: the agent.
        closings: what was concluded of its batch.
        agents: all agents of its batch; a later restart shows that this one is gone.
    """
    end = _first_not_outlived(closings, agent.seen_at)
    later = [(a.started_at, a.restart) for a in agents if a.restart > agent.restart and a.started_at is not None]
    if later:  # even if it was heard of after that: a host that was frozen goes on for a moment
        at, restart = min(later)
        why = f"The job was started again (restart {restart}), and the agent before it never said how it ended."
        gone = Closing(at, State.NODE_FAIL.value, why)
        end = gone if end is None else min(end, gone, key=lambda c: (c.at, c.state, c.reason or ""))
    return end


def settle_batch(
    batch: BatchRow, agents: Sequence[AgentRow], closings: Iterable[Closing], doubt: str | None = None
) -> None:
    """Set how a batch stands: by the agents of its last restart, and by what was concluded of it.

    Args:
        batch: the batch.
        agents: all its agents.
        closings: what was concluded.
        doubt: why nobody knows whether its job was taken, if so: the reason of one that is not over.
    """
    restart = max((agent.restart for agent in agents), default=0)
    current = [agent for agent in agents if agent.restart == restart]
    told = min((agent for agent in current if agent.job_id is not None), key=lambda agent: agent.node, default=None)
    if batch.job_id is None and told is not None:  # its launcher was killed before it could write down what sbatch said
        batch.cluster, batch.job_id = told.cluster, told.job_id
        batch.submit_host = told.host if told.cluster == "local" else None
    batch.started_at = min((agent.started_at for agent in current if agent.started_at is not None), default=None)
    batch.reason = batch.ended_at = None
    ended = [agent for agent in current if agent.exit_code is not None]
    if current and len(ended) == len(current) and len(ended) >= (batch.nodes or 1):
        batch.ended_at = max(agent.ended_at or "" for agent in ended)
        failed = sorted((agent for agent in ended if agent.exit_code != 0), key=lambda agent: agent.node)
        batch.state = failed[0].state if failed else State.COMPLETED.value
        batch.reason = failed[0].reason if failed else None
        return
    closing = _first_not_outlived(closings, max((agent.seen_at or "" for agent in current), default=None))
    if closing is not None:
        batch.ended_at, batch.state, batch.reason = closing
    else:
        batch.state, batch.reason = State.RUNNING.value if current else State.PENDING.value, doubt


def is_told_better(event: AttemptEnded, attempt: AttemptRow) -> bool:
    """Whether what somebody found out of an attempt's end replaces what is known of it.

    Its agent's own word outranks all else; then what its result file tells; then the first conclusion.
    """
    if attempt.reported == TOLD_BY_AGENT:
        return False
    if attempt.reported == 0:
        return True
    new = (event.result is None, times.to_text(event.time), event.state, event.reason)
    return new < (attempt.result is None, attempt.ended_at or "", attempt.state, attempt.reason or "")


def settle_attempt(attempt: AttemptRow, agent: AgentRow | None) -> None:
    """Set how an attempt stands whose end nobody has reported; ``agent`` is whose it is, None while it waits."""
    if agent is None:
        is_cancelled = attempt.cancelled_at is not None
        attempt.state = State.CANCELLED.value if is_cancelled else State.PENDING.value
        attempt.reason, attempt.ended_at = attempt.cancel_reason, attempt.cancelled_at
    elif agent.exit_code is not None:
        attempt.state = State.FAILED.value
        attempt.reason = "The agent ended without a word on how this run ended."
        attempt.ended_at = agent.ended_at
    else:
        attempt.state, attempt.reason, attempt.ended_at = agent.state, agent.reason, agent.ended_at


def settle_restarted(attempt: AttemptRow, restart: int) -> None:
    """Decide what an agent could not tell: a job that was ended and then started again was not cancelled by anybody.

    Args:
        attempt: one that had to end because its job had to.
        restart: the highest restart of its job of which an agent was up.
    """
    if attempt.state == State.CANCELLED.value and restart > (attempt.restart or 0):
        attempt.state = State.PREEMPTED.value
        attempt.reason = "Its job was preempted or requeued: Slurm started it again."


def settle_run(run: RunRow, attempt: AttemptRow) -> None:
    """Give a run what its highest attempt says; a lower one changes nothing."""
    if attempt.number < run.attempt:
        return
    run.attempt = attempt.number
    run.batch = attempt.batch
    run.state = attempt.state
    run.reason = attempt.reason
    run.return_value = attempt.return_value
    run.return_number = number_in(attempt.return_value)
    run.started_at = attempt.started_at
    run.ended_at = attempt.ended_at
    run.duration_s = attempt.duration_s
    run.host = attempt.host
    run.slot = attempt.slot
    run.folder = attempt.folder
    run.log = attempt.log
    run.exception_type = attempt.exception_type


def close_unstarted(run: RunRow, closing: Closing) -> None:
    """End a run that never started; of several conclusions the first counts."""
    if run.attempt == 0:
        before = None if run.ended_at is None else (run.ended_at, run.state, run.reason or "")
        if before is None or (closing.at, closing.state, closing.reason or "") < before:
            run.ended_at, run.state, run.reason = closing


def number_in(return_value: str | None) -> float | None:
    """A return value (JSON text) as a number to sort by, or None if it is none."""
    if not return_value or return_value[0] not in "-0123456789":
        return None
    try:
        return float(return_value)
    except ValueError:
        return None


def _first_not_outlived(closings: Iterable[Closing], seen_at: str | None) -> Closing | None:
    seen = times.to_seconds(seen_at) if seen_at else float("-inf")
    holding = [c for c in closings if times.to_seconds(c.at) + CLOCK_SLACK_S >= seen]
    return min(holding, key=lambda c: (c.at, c.state, c.reason or ""), default=None)
