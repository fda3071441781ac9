"""The nouns of clusterduck as frozen values: states, attempts, slots. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, NamedTuple


class State(str, Enum):
    """How a run or attempt stands; the words are Slurm's own."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more will happen to an attempt in this state."""
        return self not in (State.PENDING, State.RUNNING)

    def __str__(self) -> str:
        return self.value


#: Every end that is neither success nor somebody's wish: what ``--failed`` means.
FAILED_STATES = (State.FAILED, State.TIMEOUT, State.OUT_OF_MEMORY, State.NODE_FAIL, State.PREEMPTED)


class Attempt(NamedTuple):
    """One execution of a run: the run's number in its sweep (from 0), and which attempt it is (from 1)."""

    run: int
    number: int

    def __str__(self) -> str:
        return f"{self.run}.{self.number}"

    @classmethod
    def parse(cls, text: str) -> Attempt:
        """Read ``<run>.<attempt>`` as used in the names of claims and results.

        Raises:
            ValueError: if the text is anything else.
        """
        run, dot, number = text.partition(".")
        if not (dot and run.isascii() and run.isdigit() and number.isascii() and number.isdigit()):
            raise ValueError(f"not <run>.<attempt>: {text!r}")
        return cls(int(run), int(number))


@dataclass(frozen=True)
class Slot:
    """A share of a node that holds one run at a time.

    Attributes:
        index: from 0 on its node.
        cpus: kernel CPU ids for the run's affinity; empty means "do not bind".
        gpus: GPU ids as CUDA names them (index, ``GPU-…``, ``MIG-…``), for the record and for sampling.
        env: environment variables that the run gets.
        start_delay_s: seconds after the agent's start before this slot's first run may start.
        tmpdir_vars: variables naming a folder, e.g. ``TMPDIR``; each run gets a sub-folder, removed after it.
        why: how the slot came to this share, in one line for people.
    """

    index: int
    cpus: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    start_delay_s: float = 0.0
    tmpdir_vars: tuple[str, ...] = ()
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """The slot as plain data, for a journal or the fork server."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Slot:
        """The inverse of :meth:`to_json`."""
        return cls(
            index=int(data["index"]),
            cpus=tuple(int(cpu) for cpu in data.get("cpus", ())),
            gpus=tuple(str(gpu) for gpu in data.get("gpus", ())),
            env={str(k): str(v) for k, v in data.get("env", {}).items()},
            start_delay_s=float(data.get("start_delay_s", 0.0)),
            tmpdir_vars=tuple(str(v) for v in data.get("tmpdir_vars", ())),
            why=str(data.get("why", "")),
        )


@dataclass(frozen=True)
class AgentId:
    """Which agent: its batch, the Slurm job's restart count, and the node's index in the job."""

    batch: str
    restart: int
    node: int

    def __str__(self) -> str:
        return f"{self.batch}/{self.restart}.{self.node}"

    @classmethod
    def parse(cls, text: str) -> AgentId:
        """The inverse of ``str``.

        Raises:
            ValueError: if the text is anything else.
        """
        batch, slash, place = text.partition("/")
        restart, dot, node = place.partition(".")
        if not (batch and slash and dot and all(part.isascii() and part.isdigit() for part in (restart, node))):
            raise ValueError(f"not <batch>/<restart>.<node>: {text!r}")
        return cls(batch, int(restart), int(node))


class ReturnValueLost:
    """Stands in for a return value that could not be pickled.

    Attributes:
        type_name: the qualified name of the value's type.
        error: why it could not be pickled.
    """

    def __init__(self, type_name: str, error: str) -> None:
        self.type_name = type_name
        self.error = error

    def __repr__(self) -> str:
        return f"<a {self.type_name} that could not be pickled: {self.error}>"
