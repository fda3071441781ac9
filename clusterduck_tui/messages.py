"""What the reader threads tell the app: values read at one moment, each message replacing its stale predecessor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from textual.message import Message

from clusterduck.ledger.history import Happening, Lane, Occupancy, Pace
from clusterduck.ledger.listing import Listing
from clusterduck.ledger.queries import Act, Agent, AttemptInfo, Batch, Run, SlotNow, Sweep
from clusterduck.slurm.jobs import JobStatus
from clusterduck.standing import Neglected

if TYPE_CHECKING:
    from clusterduck_tui.acting import Deed

#: An agent's slot: sweep, batch, restart, node, slot.
SlotKey = tuple[str, str, int, int, int]

#: CPU and GPU load in percent, as far as they are known.
Load = tuple[float | None, float | None]


class Span(NamedTuple):
    """A stretch of time, in seconds since the epoch; None where it has no bound."""

    start: float | None
    end: float | None


ALL_TIME = Span(None, None)


@dataclass(frozen=True)
class Interest:
    """What the view in front wants to know.

    Attributes:
        subject: ``overview``, ``nodes``, ``timeline``, ``runs``, ``run`` or ``activity``.
        sweep: the chosen sweep.
        run: the chosen run of it.
        listing: which runs are listed, in which order.
        rows: the first row that is wanted, and the one behind the last: of the listing, or of the timeline's slots.
        span: the time that is wanted of these slots.
        columns: how many columns of a picture it has.
    """

    subject: str
    sweep: str | None = None
    run: int | None = None
    listing: Listing | None = None
    rows: tuple[int, int] = (0, 0)
    span: Span = ALL_TIME
    columns: int | None = None


class Fresh(Message):
    """A message of which only the latest counts."""

    def can_replace(self, message: Message) -> bool:
        """Whether ``message``, which came later, may take this one's place."""
        return type(message) is type(self)


class LedgerState(Fresh):
    """Which ledger is read, a sentence if that does not work, whether much is still to be read, and whether all was."""

    def __init__(
        self, ledger: Path | None, trouble: str | None, *, is_reading: bool = False, is_caught_up: bool = False
    ) -> None:
        super().__init__()
        self.is_caught_up = is_caught_up
        self.ledger = ledger
        self.trouble = trouble
        self.is_reading = is_reading


class SweepsRead(Fresh):
    """All sweeps, the jobs of the chosen one and all that live, and how fast live sweeps go."""

    def __init__(self, sweeps: Sequence[Sweep], batches: Sequence[Batch], paces: Mapping[str, Pace]) -> None:
        super().__init__()
        self.sweeps = tuple(sweeps)
        self.batches = tuple(batches)
        self.paces = dict(paces)


@dataclass(frozen=True)
class Node:
    """One agent with its slots, and the recent loads of each, minute by minute."""

    agent: Agent
    slots: tuple[SlotNow, ...]
    history: Mapping[int, Sequence[Load]]


class NodesRead(Fresh):
    """Every node at work; the keys that vary, the typical duration and the occupancy so far, by sweep."""

    def __init__(
        self,
        nodes: Sequence[Node],
        varying: Mapping[str, Sequence[str]],
        typical: Mapping[str, float | None],
        occupancy: Mapping[str, Occupancy],
    ) -> None:
        super().__init__()
        self.nodes = tuple(nodes)
        self.varying = dict(varying)
        self.typical = dict(typical)
        self.occupancy = dict(occupancy)


class LanesRead(Fresh):
    """The sweep's slots; of those in ``rows``, also which run occupied them when, as far as that lies in ``span``."""

    def __init__(self, sweep: str, lanes: Sequence[Lane], rows: tuple[int, int], span: Span) -> None:
        super().__init__()
        self.sweep = sweep
        self.lanes = tuple(lanes)
        self.rows = rows
        self.span = span


class RunsRead(Fresh):
    """The order of the listed runs, and those of the rows that were asked for."""

    def __init__(self, listing: Listing, order: Sequence[int], runs: Sequence[Run], varying: Sequence[str]) -> None:
        super().__init__()
        self.listing = listing
        self.order = order
        self.runs = tuple(runs)
        self.varying = tuple(varying)


class RunRead(Fresh):
    """One run with its attempts; None if the sweep has no such run."""

    def __init__(self, sweep: str, number: int, run: Run | None, attempts: Sequence[AttemptInfo]) -> None:
        super().__init__()
        self.sweep = sweep
        self.number = number
        self.run = run
        self.attempts = tuple(attempts)


class ActivityRead(Fresh):
    """What people and tools did, and what the runs and jobs of the chosen sweep went through."""

    def __init__(self, acts: Sequence[Act], happenings: Sequence[Happening]) -> None:
        super().__init__()
        self.acts = tuple(acts)
        self.happenings = tuple(happenings)


class JobsRead(Fresh):
    """What Slurm (or this host) says of the jobs of live batches; a sentence if it could not be asked."""

    def __init__(self, jobs: Mapping[tuple[str, str], JobStatus], trouble: str | None) -> None:
        super().__init__()
        self.jobs = dict(jobs)
        self.trouble = trouble


class NeglectRead(Fresh):
    """The runs that wait and that no job will take, of each sweep that has any."""

    def __init__(self, found: Mapping[str, Neglected]) -> None:
        super().__init__()
        self.found = found


class ActDone(Message):
    """An action ended: what happened in a sentence or more, and whether it went well."""

    def __init__(self, title: str, sentences: Sequence[str], went_well: bool) -> None:
        super().__init__()
        self.title = title
        self.sentences = tuple(sentences)
        self.went_well = went_well


class Planned(Message):
    """An action was thought through and can be asked about: what it would do, and what does it."""

    def __init__(self, act: Deed) -> None:
        super().__init__()
        self.act = act


class Progress(Message):
    """An action that takes time says what it does."""

    def __init__(self, title: str, words: str) -> None:
        super().__init__()
        self.title = title
        self.words = words
