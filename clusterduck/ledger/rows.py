"""The rows that a fold looks at and changes, as Python values.

The fields of each class are its table's columns without ``sweep``, the key first. Times are text (see ``times``).
"""

from __future__ import annotations

from dataclasses import dataclass

from clusterduck.model import State

#: Who told how an attempt ended.
TOLD_BY_AGENT = 1
TOLD_BY_ACT = 2

#: Of a table, columns in which most rows have nothing: these are written without them, which takes 3 % off folding.
SELDOM = {
    "attempt": frozenset(
        {"reason", "signal", "exception_type", "exception_message", "traceback", "git_commit", "git_dirty"}
        | {"queued_at", "cancelled_at", "cancel_reason", "set_aside"}
    )
}


@dataclass(slots=True)
class LaunchRow:
    """A call of ``launch()``."""

    number: int
    started_at: str | None = None
    ended_at: str | None = None
    job_name: str | None = None
    user: str | None = None
    host: str | None = None
    pid: int | None = None
    cwd: str | None = None
    command: str | None = None
    launcher: str | None = None
    settings: str | None = None
    python: str | None = None
    versions: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None


@dataclass(slots=True)
class BatchRow:
    """A job of ours. ``state``, ``reason``, ``started_at`` and ``ended_at`` follow from its agents and from acts.

    ``attempts`` is the home of one that was submitted for requeued attempts: JSON pairs of run and attempt number.
    """

    id: str
    launch: int | None = None
    first_run: int | None = None
    stop_run: int | None = None
    nodes: int | None = None
    slots_per_node: int | None = None
    share_runs: bool | None = None
    cluster: str | None = None
    job_id: str | None = None
    submit_host: str | None = None
    log_folder: str | None = None
    planned_at: str | None = None
    submitted_at: str | None = None
    state: str = State.PENDING.value
    reason: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    attempts: str | None = None


@dataclass(slots=True)
class AgentRow:
    """An agent.

    ``exit_code`` is there if, and only if, it said itself that it ended; ``seen_at`` is its last event; ``draining``
    says that it claims nothing more; ``busy_ms`` is how long all attempts took that have ended in its slots.
    """

    batch: str
    restart: int
    node: int
    host: str | None = None
    pid: int | None = None
    cluster: str | None = None
    job_id: str | None = None
    slots: int | None = None
    busy: int | None = None
    busy_ms: int = 0
    draining: bool = False
    started_at: str | None = None
    ends_at: str | None = None
    heartbeat_at: str | None = None
    seen_at: str | None = None
    state: str = State.RUNNING.value
    reason: str | None = None
    exit_code: int | None = None
    ended_at: str | None = None


@dataclass(slots=True)
class RunRow:
    """A run. All but its plan is that of its highest attempt; ``attempt`` is 0 while there is none."""

    number: int
    launch: int | None = None
    batch: str | None = None
    overrides: str | None = None
    state: str = State.PENDING.value
    attempt: int = 0
    reason: str | None = None
    return_value: str | None = None
    return_number: float | None = None
    started_at: str | None = None
    ended_at: str | None = None
    duration_s: float | None = None
    host: str | None = None
    slot: int | None = None
    folder: str | None = None
    log: str | None = None
    exception_type: str | None = None


@dataclass(slots=True)
class AttemptRow:
    """An attempt.

    ``reported`` says who told how it ended: nobody yet (0), its own agent, or somebody who looked after it.
    ``spawned_at`` is when its agent made the process, ``started_at`` what the run itself told of its start, if it did.
    ``by_job_end`` says that it had to end because its job had to; ``set_aside`` is where it moved what earlier attempts
    left in the run's folder, if it did.
    One that was put into the queue (``queued_at``) is PENDING, or cancelled, until an agent says that it has it.
    """

    run: int
    number: int
    batch: str | None = None
    restart: int | None = None
    node: int | None = None
    slot: int | None = None
    host: str | None = None
    pid: int | None = None
    cpus: str | None = None
    gpus: str | None = None
    state: str = State.RUNNING.value
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    exception_type: str | None = None
    exception_message: str | None = None
    traceback: str | None = None
    return_value: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    duration_s: float | None = None
    peak_memory_bytes: int | None = None
    cpu_time_s: float | None = None
    folder: str | None = None
    log: str | None = None
    result: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    spawned_at: str | None = None
    reported: int = 0
    queued_at: str | None = None
    cancelled_at: str | None = None
    cancel_reason: str | None = None
    by_job_end: bool = False
    set_aside: str | None = None


@dataclass(slots=True)
class SlotRow:
    """A slot of an agent, and the attempt in it."""

    batch: str
    restart: int
    node: int
    slot: int
    host: str | None = None
    cpus: str | None = None
    gpus: str | None = None
    run: int | None = None
    attempt: int | None = None
    since: str | None = None
