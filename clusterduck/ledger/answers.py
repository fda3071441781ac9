"""What the ledger answers: frozen values, one class per kind of row. Times are text, UTC (see ``times``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from clusterduck.ledger import overrides as override_text


@dataclass(frozen=True)
class Sweep:
    """A sweep, and how many of its runs are in which state (by ``State``'s words)."""

    id: str
    folder: str
    root: str
    job_name: str | None
    user: str | None
    host: str | None
    cwd: str | None
    command: list[str]
    launcher: str | None
    created_at: str | None
    launches: int
    git_commit: str | None
    git_dirty: bool | None
    runs: int
    counts: dict[str, int]


@dataclass(frozen=True)
class Batch:
    """A job. What is known of its agents is that of the first one of its last restart."""

    sweep: str
    id: str
    launch: int | None
    first_run: int | None
    stop_run: int | None
    nodes: int | None
    slots_per_node: int | None
    share_runs: bool | None
    cluster: str | None
    job_id: str | None
    submit_host: str | None
    log_folder: str | None
    planned_at: str | None
    submitted_at: str | None
    state: str
    reason: str | None
    started_at: str | None
    ended_at: str | None
    attempts: list[tuple[int, int]]  # run and number: the home of a job that was submitted for requeued attempts
    restart: int | None = None
    host: str | None = None
    agent_pid: int | None = None
    ends_at: str | None = None
    heartbeat_at: str | None = None


@dataclass(frozen=True)
class Agent:
    """An agent, with the latest reading of its node as a whole."""

    sweep: str
    batch: str
    restart: int
    node: int
    host: str | None
    pid: int | None
    cluster: str | None
    job_id: str | None
    slots: int | None
    busy: int | None
    busy_ms: int
    draining: bool
    started_at: str | None
    ends_at: str | None
    heartbeat_at: str | None
    seen_at: str | None
    state: str
    reason: str | None
    exit_code: int | None
    ended_at: str | None
    cpu_percent: float | None
    memory_bytes: int | None


@dataclass(frozen=True)
class SlotNow:
    """A slot, the attempt in it (None where it is empty), and its latest reading."""

    sweep: str
    batch: str
    restart: int
    node: int
    slot: int
    host: str | None
    cpus: list[int]
    gpus: list[str]
    run: int | None
    attempt: int | None
    since: str | None
    overrides: list[str]
    sampled_at: str | None
    cpu_percent: float | None
    memory_bytes: int | None
    gpu_percent: float | None
    gpu_memory_bytes: int | None


@dataclass(frozen=True)
class Run:
    """A run as its highest attempt left it. ``return_value`` is JSON text; ``attempt`` is 0 while there is none."""

    sweep: str
    number: int
    launch: int | None
    batch: str | None
    overrides: list[str]
    state: str
    attempt: int
    reason: str | None
    return_value: str | None
    return_number: float | None
    started_at: str | None
    ended_at: str | None
    duration_s: float | None
    host: str | None
    slot: int | None
    folder: str | None
    log: str | None
    exception_type: str | None

    @property
    def override_values(self) -> dict[str, str]:
        """The overrides by key."""
        return override_text.as_dict(self.overrides)


class Pending(NamedTuple):
    """What there is to know of a run that waits for its next attempt; ``attempt`` is 0 before the first one."""

    number: int
    attempt: int
    launch: int | None
    batch: str | None


@dataclass(frozen=True)
class AttemptInfo:
    """One attempt of a run. ``reported``: its own agent told how it ended (1), or somebody who looked after it (2)."""

    sweep: str
    run: int
    number: int
    batch: str | None
    restart: int | None
    node: int | None
    slot: int | None
    host: str | None
    pid: int | None
    cpus: list[int]
    gpus: list[str]
    state: str
    reason: str | None
    exit_code: int | None
    signal: int | None
    exception_type: str | None
    exception_message: str | None
    traceback: str | None
    return_value: str | None
    started_at: str | None
    ended_at: str | None
    duration_s: float | None
    peak_memory_bytes: int | None
    cpu_time_s: float | None
    folder: str | None
    log: str | None
    result: str | None
    git_commit: str | None
    git_dirty: bool | None
    spawned_at: str | None
    reported: int
    queued_at: str | None
    cancelled_at: str | None
    cancel_reason: str | None
    by_job_end: bool
    set_aside: str | None


@dataclass(frozen=True)
class Act:
    """What a person or a tool did to a sweep."""

    id: str
    sweep: str
    kind: str
    batch: str | None
    run: int | None
    attempt: int | None
    job_id: str | None
    user: str | None
    host: str | None
    at: str
    state: str | None
    reason: str | None
    detail: str | None
