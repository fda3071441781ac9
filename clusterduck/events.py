"""Every event that a journal can hold, and its form as JSON.

An event is a frozen dataclass whose fields are plain data, plus ``time`` (seconds since the epoch, UTC). Its JSON is an
object with the class's short name under ``e``. A reader ignores fields it does not know and takes defaults for fields
that are missing, and passes over events it does not know, so that both can be added without a new version; a change
that older readers would get wrong raises ``VERSION``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar

from clusterduck import clock
from clusterduck.errors import JournalError

#: The version every journal begins with. A reader refuses a newer one.
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Event:
    """What all events share."""

    name: ClassVar[str] = ""
    time: float = field(default_factory=clock.now)


@dataclass(frozen=True, kw_only=True)
class JournalOpened(Event):
    """The first line of every segment of every journal."""

    name: ClassVar[str] = "opened"
    version: int = VERSION
    sweep: str
    writer: str  # for people: "launch 0", "agent 0-1/0.0", "cancel"
    segment: int = 0


@dataclass(frozen=True, kw_only=True)
class JournalClosed(Event):
    """The last line of a journal whose writer ended in good order: nothing follows."""

    name: ClassVar[str] = "closed"


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """What a newer clusterduck wrote into a journal of this version: it may be passed over, and is not forgotten."""

    kind: str


# --- written by a launch


@dataclass(frozen=True, kw_only=True)
class LaunchStarted(Event):
    """A call of ``launch()``: what would be needed to do it again."""

    name: ClassVar[str] = "launch"
    launch: int
    sweep_dir: str
    job_name: str
    user: str
    host: str
    pid: int
    cwd: str
    command: list[str]
    launcher: str  # "local" or "slurm"
    settings: dict[str, Any]  # the launcher's options as resolved
    python: str
    versions: dict[str, str]  # hydra, clusterduck, submitit, python
    git_commit: str | None = None
    git_dirty: bool | None = None


#: How many runs of a launch go into one event, but for the last.
RUNS_PER_LINE = 500


@dataclass(frozen=True, kw_only=True)
class RunsPlanned(Event):
    """Some runs of a launch: pairs of number and overrides, :data:`RUNS_PER_LINE` to a line.

    Where it is known how long runs with these overrides took before, agents claim the longest first (see
    ``queue.order_of_looking``).
    """

    name: ClassVar[str] = "runs"
    launch: int
    runs: list[tuple[int, list[str]]]
    expected_s: list[float | None] = field(default_factory=list)  # of each of them, where any is known


@dataclass(frozen=True, kw_only=True)
class BatchPlanned(Event):
    """A job to be submitted, and its home range of runs: ``first`` up to, not including, ``stop``."""

    name: ClassVar[str] = "batch"
    batch: str
    launch: int
    first: int
    stop: int
    nodes: int
    slots_per_node: int
    share_runs: bool
    attempts: list[tuple[int, int]] = field(default_factory=list)  # the home of a batch for requeued attempts


@dataclass(frozen=True, kw_only=True)
class BatchSubmitted(Event):
    """The cluster took the job."""

    name: ClassVar[str] = "submitted"
    batch: str
    cluster: str  # "local" or "slurm"
    job_id: str  # Slurm's, "123" or "123_4"; the controller's process id for a local job
    host: str  # where it was submitted; where a local job runs
    log_dir: str  # submitit's folder of that job: the job's own stdout and stderr


@dataclass(frozen=True, kw_only=True)
class SubmissionDoubted(Event):
    """Nobody knows whether the cluster took the job: its answer was lost. What is found later settles it."""

    name: ClassVar[str] = "doubted"
    batch: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class BatchClosed(Event):
    """A job that is known to be over (or was never taken) without its agents having said so themselves."""

    name: ClassVar[str] = "batch_closed"
    batch: str
    state: str
    reason: str
    unsubmitted: bool = False  # it was never taken; void if it shows that it was


@dataclass(frozen=True, kw_only=True)
class RunsClosed(Event):
    """Runs that will never start, as ranges of numbers (first, stop); has no effect on runs with an attempt."""

    name: ClassVar[str] = "runs_closed"
    ranges: list[tuple[int, int]]
    state: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LaunchEnded(Event):
    """Every job of the launch was submitted or refused."""

    name: ClassVar[str] = "launch_ended"
    launch: int


# --- acts: written by whoever did it, a person's command or an agent, before it is done


@dataclass(frozen=True, kw_only=True)
class AttemptsRequeued(Event):
    """New attempts, as pairs of run and attempt number, were put into the queue."""

    name: ClassVar[str] = "requeued"
    attempts: list[tuple[int, int]]
    kind: str  # see queue.KINDS: "person", "retry" or "restart"
    reason: str
    user: str
    host: str
    overrides: list[str] = field(default_factory=list)  # added by this act
    as_submitted: bool = True
    fresh: bool = False
    batch: str | None = None  # whose agent put them there, and looks for them first
    git_commit: str | None = None
    git_dirty: bool | None = None


@dataclass(frozen=True, kw_only=True)
class AttemptsCancelled(Event):
    """Attempts that nobody had claimed will never start: whoever cancelled them has claimed them."""

    name: ClassVar[str] = "cancelled"
    attempts: list[tuple[int, int]]
    reason: str
    user: str
    host: str


@dataclass(frozen=True, kw_only=True)
class Asked(Event):
    """Agents were asked to do something (see inbox.KINDS), or Slurm to end a job ("scancel")."""

    name: ClassVar[str] = "asked"
    kind: str
    user: str
    host: str
    batches: list[str] = field(default_factory=list)
    attempts: list[tuple[int, int]] = field(default_factory=list)
    job_id: str | None = None


# --- written by an agent; which agent, the journal's path says


@dataclass(frozen=True, kw_only=True)
class AgentStarted(Event):
    """An agent is up on its node and has built its slots (see ``model.Slot.to_json``)."""

    name: ClassVar[str] = "agent"
    host: str
    pid: int
    cluster: str
    job_id: str
    slots: list[dict[str, Any]]
    ends_at: float | None = None  # when Slurm will end the job


@dataclass(frozen=True, kw_only=True)
class AttemptStarted(Event):
    """A run's process exists."""

    name: ClassVar[str] = "started"
    run: int
    attempt: int
    slot: int
    pid: int
    log: str
    git_commit: str | None = None
    git_dirty: bool | None = None


@dataclass(frozen=True, kw_only=True)
class AttemptLocated(Event):
    """Hydra has named the run's folder, and the log has moved there; both relative to the sweep's folder if in it."""

    name: ClassVar[str] = "located"
    run: int
    attempt: int
    run_dir: str
    log: str


@dataclass(frozen=True, kw_only=True)
class FolderSetAside(Event):
    """The run's folder, with all that earlier attempts left in it, got another name: this one begins afresh."""

    name: ClassVar[str] = "set_aside"
    run: int
    attempt: int  # the one that begins
    run_dir: str  # as AttemptLocated has it
    new_dir: str


@dataclass(frozen=True, kw_only=True)
class AttemptEnded(Event):
    """A run's process and all it started are gone."""

    name: ClassVar[str] = "ended"
    run: int
    attempt: int
    state: str
    reason: str = ""  # one line a person can read; empty only for a plain COMPLETED
    exit_code: int | None = None
    signal: int | None = None
    exception_type: str | None = None
    exception_message: str | None = None
    traceback: str | None = None
    return_value: str | None = None  # JSON text, where the value is JSON and not too long
    started_at: float | None = None
    peak_memory_bytes: int | None = None
    cpu_time_s: float | None = None
    result: str | None = None  # path of the result file, where one was written
    agent: str | None = None  # whose attempt it was ("0-1/0.0"), where somebody else writes this from the result file
    by_job_end: bool = False  # it had to end because its job had to: preemption or cancellation, the next restart tells


@dataclass(frozen=True, kw_only=True)
class Heartbeat(Event):
    """The agent is alive: how many slots are busy, and (slot, readings) samples; -1 is the node as a whole.

    A sample is ``[slot, cpu_percent, memory_bytes, gpu_percent, gpu_memory_bytes]``, None where not known.
    """

    name: ClassVar[str] = "beat"
    busy: int
    draining: bool = False  # it claims nothing more
    samples: list[list[float | int | None]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AgentEnded(Event):
    """The agent has closed: nothing of it runs any more."""

    name: ClassVar[str] = "agent_ended"
    reason: str
    exit_code: int
    timed_out: bool = False  # the job's time limit ended it
    state: str | None = None  # how the job had to end, if it was told to before its work was done
    drained: bool = False  # somebody asked the job to claim nothing more


_TYPES: dict[str, type[Event]] = {}


def _register(cls: type[Event]) -> None:
    if cls.name:
        _TYPES[cls.name] = cls
    for sub in cls.__subclasses__():
        _register(sub)


_register(Event)
_FIELDS = {cls: tuple(f.name for f in fields(cls)) for cls in _TYPES.values()}

#: What a missing field means is not written; so a default, once released, stays what it is.
_DEFAULTS: dict[type[Event], dict[str, Any]] = {
    cls: {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(cls)
        if f.name not in ("time", "version") and (f.default is not MISSING or f.default_factory is not MISSING)
    }
    for cls in _TYPES.values()
}

#: By short name: the class of an event, the fields that it is not made without, and how those are made that each event
#: has anew where they are left out.
_FORMS: dict[str, tuple[type[Event], frozenset[str], tuple[tuple[str, Callable[[], Any]], ...]]] = {
    name: (
        cls,
        frozenset(f.name for f in fields(cls) if f.name == "time" or f.default is f.default_factory is MISSING),
        tuple((f.name, f.default_factory) for f in fields(cls) if f.name != "time" and callable(f.default_factory)),
    )
    for name, cls in _TYPES.items()
}


def knows(kind: str) -> bool:
    """Whether this version knows events of that short name."""
    return kind in _FORMS


def to_json(event: Event) -> str:
    """One line of JSON, ASCII only, without a line feed; lone surrogates in paths and overrides survive."""
    data: dict[str, Any] = {"e": event.name}
    defaults = _DEFAULTS[type(event)]
    for key in _FIELDS[type(event)]:
        value = getattr(event, key)
        if key not in defaults or value != defaults[key]:
            data[key] = value
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True, default=_plain)


def _plain(value: object) -> object:
    raise TypeError(f"an event holds only plain data, not {type(value).__name__}")


def from_json(text: str | bytes) -> Event:
    """The inverse of :func:`to_json`.

    Raises:
        JournalError: if the text is no event.
    """
    try:
        return _event(json.loads(text))
    except _NO_EVENT as error:
        raise JournalError(f"not an event: {text[:80]!r} ({error})") from None


def from_json_lines(texts: Sequence[bytes]) -> list[Event] | None:
    """What :func:`from_json` makes of each text, in half the time, because they are parsed as one; None if one of them
    is no event: :func:`from_json` tells which."""
    try:
        found = json.loads(b"[%s]" % b",".join(texts))
        return [_event(data) for data in found] if len(found) == len(texts) else None
    except _NO_EVENT:
        return None


_NO_EVENT = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _event(data: dict[str, Any]) -> Event:
    kind = data.pop("e")
    if kind not in _FORMS and isinstance(kind, str):
        return UnknownEvent(time=float(data.get("time", 0.0)), kind=kind[:40])
    cls, needed, made = _FORMS[kind]
    if not data.keys() >= needed:
        return cls(**{key: value for key, value in data.items() if key in _FIELDS[cls]})
    for key, factory in made:
        if key not in data:
            data[key] = factory()
    event = cls.__new__(cls)
    # Five times as fast as field by field. The class has what is left out; fields of a newer version nobody asks for.
    object.__setattr__(event, "__dict__", data)
    return event
