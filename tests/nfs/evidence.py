"""What is held against the promises: the runs' own side effects, the ledger, what readers saw, and when."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

#: What may not differ between a ledger that was folded all along and one folded anew.
TABLES = {
    "run": "sweep, number, state, attempt, reason, return_value, host",
    "attempt": "sweep, run, number, batch, restart, node, slot, state, reason, exit_code, signal, return_value, host",
    "batch": "sweep, id, job_id, state, reason",
}


#: How an attempt may have ended here.
ENDS = ("COMPLETED", "CANCELLED", "FAILED", "NODE_FAIL", "PREEMPTED")

#: How far a replica may be behind, in seconds.
REPLICA_S = 3.0


@dataclass(frozen=True)
class Effect:
    """What an attempt itself wrote down on one host: its words, and when each was said, in seconds since the epoch."""

    run: int
    attempt: int
    host: str
    said: tuple[tuple[str, float], ...]

    def when(self, word: str) -> float | None:
        """When it said the word; None if it never did."""
        return next((at for said, at in self.said if said == word), None)


def effects(folder: Path) -> list[Effect]:
    """All that the runs of a sweep wrote down."""
    found = []
    for path in sorted(folder.glob("*.*.*")) if folder.is_dir() else []:
        run, attempt, host = path.name.split(".")
        lines = [line.split() for line in path.read_text().splitlines()]
        found.append(Effect(int(run), int(attempt), host, tuple((word, float(at)) for word, at in lines)))
    return found


def rows(ledger: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """What a query on a ledger brings."""
    connection = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def differences(ledger: Path, anew: Path) -> list[str]:
    """In what a ledger differs from one folded anew, in sentences."""
    found = []
    for table, columns in TABLES.items():
        query = f"SELECT {columns} FROM {table}"
        one, other = (Counter(rows(file, query)) for file in (ledger, anew))
        if one != other:
            found.append(f"table {table}: only in the ledger {one - other}, only in the fold anew {other - one}")
    return found


@dataclass
class Verdict:
    """What the proof of one sweep brought.

    Attributes:
        states: how many attempts ended how.
        complaints: what is not as promised, in sentences.
    """

    states: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)


def judge(ledger: Path, sweep: str, runs: int, told: Iterable[Effect], cancelled: set[int], lost_at: float) -> Verdict:
    """Hold the ledger against what the runs of a sweep did.

    Args:
        ledger: a copy of the published one.
        sweep: its id.
        runs: how many it has.
        told: what the attempts wrote down.
        cancelled: the runs that were cancelled.
        lost_at: when a host lost its power, in seconds since the epoch: what had been completed within the two seconds
            before may count as lost. 0 if none did.
    """
    query = "SELECT run, number, state, host, reason FROM attempt WHERE sweep = ? ORDER BY run, number"
    ends = {(run, number): (state, host, why) for run, number, state, host, why in rows(ledger, query, sweep)}
    verdict = Verdict(Counter(state for state, _, _ in ends.values()))
    complain = verdict.complaints.append
    did: dict[tuple[int, int], Effect] = {}
    for effect in told:
        key = (effect.run, effect.attempt)
        if key in did or [word for word, _ in effect.said].count("begun") != 1:
            complain(f"attempt {key} was executed twice: {did.get(key)}, {effect}")
        did[key] = effect
        state, host, _ = ends.get(key, ("nothing", effect.host, None))
        completed_at = effect.when("completed")
        if host != effect.host:
            complain(f"attempt {key} ran on {effect.host}, the ledger says on {host}")
        if (completed_at is None) is (state == "COMPLETED") and not (
            completed_at is not None and lost_at - 2 < completed_at < lost_at
        ):
            complain(f"attempt {key} said {effect.said}, the ledger says {state}")
        if state == "CANCELLED" and effect.when("told-to-end") is None:
            complain(f"attempt {key} is CANCELLED and was never told")
    for key, (state, host, why) in ends.items():
        if key not in did and state == "COMPLETED":
            complain(f"attempt {key} is COMPLETED on {host} and never began")
        if state not in ENDS or (state != "COMPLETED" and not why):
            complain(f"attempt {key} is {state} with the reason {why!r}")
    for run in range(runs):
        of_run = [(number, state) for (one, number), (state, _, _) in sorted(ends.items()) if one == run]
        expected = "CANCELLED" if run in cancelled else "COMPLETED"
        if [state for _, state in of_run].count(expected) != 1 or of_run[-1][1] != expected:
            complain(f"run {run} is not {expected} exactly once, in the end: {of_run}")
    return verdict


@dataclass
class Lag:
    """How far behind the dashboard was, in seconds, over the attempts that ended while nothing was amiss."""

    seconds: list[float] = field(default_factory=list)

    @property
    def most(self) -> float | None:
        """The largest; None if there are none."""
        return max(self.seconds, default=None)


def lateness(told: Iterable[Effect], seconds: float, silent: bool) -> float:
    """By how many seconds runs that should have taken so long took longer, at most: those that print, or the others."""
    found = [0.0]
    for effect in told:
        begun, completed = effect.when("begun"), effect.when("completed")
        if begun is not None and completed is not None and silent is (effect.run % 2 == 0):
            found.append(completed - begun - seconds)
    return max(found)


@dataclass(frozen=True)
class Amiss:
    """That something was wrong, from and to (in seconds since the epoch), and on which hosts."""

    begin: float
    end: float
    hosts: tuple[str, ...] = ("c1", "c2")

    def covers(self, at: float, host: str) -> bool:
        """Whether what was written there then may have taken its time."""
        return host in self.hosts and self.begin - REPLICA_S < at < self.end


def lag(seen: Path, ledger: Path, sweep: str, amiss: Iterable[Amiss]) -> Lag:
    """From the moment that an agent noted an attempt's end to the moment that the dashboard had news of it.

    Args:
        seen: what the dashboard's reader wrote down.
        ledger: a copy of the published ledger.
        sweep: which sweep.
        amiss: when something was wrong; ends of that time are left out.
    """
    shown: dict[tuple[Any, ...], float] = {}
    for row in lines(seen):  # a dashboard that was started anew has news of all
        shown.setdefault(tuple(row["attempt"][:4]), row["at"])
    windows = list(amiss)
    found = Lag()
    query = "SELECT run, number, state, ended_at, host FROM attempt WHERE sweep = ? AND reported = 1"
    for run, number, state, ended_at, host in rows(ledger, query, sweep):
        ended = _seconds(ended_at)
        if any(window.covers(ended, host) for window in windows):
            continue
        at = shown.get((sweep, run, number, state))
        found.seconds.append(float("inf") if at is None else at - ended)
    return found


@dataclass(frozen=True)
class Silence:
    """What was heard of agents by their heartbeats alone.

    Attributes:
        agents: how many were heard of.
        beats: how often, in all.
        most: the longest that one of them seemed to have been silent, in seconds: until it was heard of again, since
            the time of what had been heard before.
    """

    agents: int
    beats: int
    most: float


def silence(heard: Path, sweep: str) -> Silence:
    """How long the agents of a sweep that go on seemed silent to the dashboard, at most.

    Args:
        heard: what the dashboard's reader wrote down.
        sweep: which sweep.
    """
    by_agent: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in lines(heard):
        if row["agent"][0] == sweep:
            by_agent.setdefault(tuple(row["agent"]), []).append((row["at"], _seconds(row["seen_at"])))
    pauses = [
        later[0] - earlier[1] for times in by_agent.values() for earlier, later in itertools.pairwise(sorted(times))
    ]
    return Silence(len(by_agent), sum(map(len, by_agent.values())), max(pauses, default=0.0))


@dataclass
class Readings:
    """What somebody saw who read the published ledger all the time.

    Attributes:
        reads: how many readings succeeded, each with an integrity check.
        again: how many of them needed a second or third try.
        bad: sentences on those that failed, found damage, or an older ledger than before.
    """

    reads: int = 0
    again: int = 0
    bad: list[str] = field(default_factory=list)


def readings(files: Iterable[Path], begin: float, end: float) -> Readings:
    """What was read between two instants."""
    found = Readings()
    for path in files:
        generation, completed = -1, 0
        for row in lines(path):
            if not row.get("sound"):
                if begin <= row["at"] < end:
                    found.bad.append(f"{path.stem}: {row}")
                continue
            now = row["counts"].get("COMPLETED", 0)
            older = row["generation"] < generation or now < completed
            generation, completed = row["generation"], now
            if begin <= row["at"] < end:
                found.reads += 1
                found.again += bool(row["errors"])
                if older:
                    found.bad.append(f"{path.stem}: an older ledger than before: {row}")
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """What was written, one JSON object to a line; a torn last one is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def _seconds(text: str) -> float:
    """A time of the ledger in seconds since the epoch."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
