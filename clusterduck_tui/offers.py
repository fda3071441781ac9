"""Launcher options that it would be wise to change before runs are sent again: more time after TIMEOUT, more memory
after OUT_OF_MEMORY.

More memory is whatever the jobs' memory was asked by, half as much again. Where it was not asked for, the jobs had what
the cluster gives without being asked, often the whole node; then half as many runs at a time is what gives each more.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clusterduck.ledger import queries
from clusterduck.model import State
from clusterduck.wording import size

if TYPE_CHECKING:
    from clusterduck.requeue import RequeuePlan

#: So many times as much is offered.
MORE_TIME = 2
MORE_MEMORY = 1.5

_AMOUNT = re.compile(r"([0-9.]+)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class Offer:
    """An option to be changed.

    Attributes:
        name: the option's name.
        value: what it should be.
        was: what it was, or what speaks for the value, in a few words.
    """

    name: str
    value: str
    was: str

    @property
    def change(self) -> str:
        """As the command line wants it."""
        return f"{self.name}={self.value}"


def offers(connection: sqlite3.Connection, plan: RequeuePlan) -> list[Offer]:
    """What to change for these runs.

    Args:
        connection: the ledger.
        plan: which runs are to be sent again.
    """
    states = {chosen.run.state for part in plan.sweeps for chosen in part.chosen}
    options: list[Any] = [launch.options for part in plan.sweeps for launch in part.launches.values()]
    made: list[Offer] = []
    if options and State.TIMEOUT.value in states:
        was = max(option.timeout_min for option in options)
        made.append(Offer("timeout_min", str(was * MORE_TIME), f"was {was}"))
    if options and State.OUT_OF_MEMORY.value in states:
        made += _memory(options, _peak(connection, plan))
    return made


def _memory(options: Sequence[Any], peak: int | None) -> Iterator[Offer]:
    asked = False
    for name in ("mem_gb", "mem_per_gpu", "mem_per_cpu"):
        amounts = [option.submitit.get(name) for option in options]
        found = [_AMOUNT.fullmatch(str(amount).strip()) for amount in amounts if amount is not None]
        known = [(float(match[1]), match[2]) for match in found if match is not None]
        if known:
            asked = True
            was, unit = max(known)
            yield Offer(name, f"{_rounded(was * MORE_MEMORY)}{unit}", f"was {was:g}{unit}")
    slots = max(option.parallel_runs_per_node for option in options)
    if asked:
        return
    took = "" if peak is None else f", a run took {size(peak)}"
    if slots > 1:
        yield Offer("parallel_runs_per_node", str(slots // 2), f"was {slots}{took}")
    elif peak is not None and options[0].cluster == "slurm":
        yield Offer("mem_gb", str(math.ceil(peak * MORE_MEMORY / 1024**3)), f"was not set{took}")


def _rounded(amount: float) -> str:
    """Slurm takes whole numbers only; what is offered is never less than what was meant."""
    return str(math.ceil(amount))


def _peak(connection: sqlite3.Connection, plan: RequeuePlan) -> int | None:
    """The most memory that one of the runs that ran out of it was seen to take, in bytes."""
    peaks = [
        attempt.peak_memory_bytes
        for part in plan.sweeps
        for chosen in part.chosen[:100]
        if chosen.run.state == State.OUT_OF_MEMORY.value
        for attempt in queries.attempts(connection, part.standing.sweep, chosen.run.number)[-1:]
    ]
    return max((peak for peak in peaks if peak), default=None)
