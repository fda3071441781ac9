"""What happened over time: how fast a sweep goes, who occupied which slot when, and what people did."""

from __future__ import annotations

import sqlite3
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from clusterduck.ledger import times
from clusterduck.ledger.answers import Act

#: So many of the latest completed runs tell how long one takes.
_TYPICAL_OF = 200

#: At most so many bars are read for one picture.
MOST_BARS = 200_000

_SECONDS = "(julianday({0}) - 2440587.5) * 86400.0"


@dataclass(frozen=True)
class Pace:
    """How fast a sweep goes.

    Attributes:
        typical_s: the median duration of the latest completed runs; None where there is none yet.
        per_hour: runs that ended in the last ten minutes, scaled to an hour.
        slots: slots of its agents that run now.
        busy: how many of them hold a run.
        left_s: until all runs have ended, if nothing changes; None where nobody can tell.
    """

    typical_s: float | None
    per_hour: float
    slots: int
    busy: int
    left_s: float | None


#: An attempt's time in a slot, as it is read, because there are many: the run, the attempt's number, its state, and its
#: start and end in seconds since the epoch (None while it runs).
Bar = tuple[int, int, str, float, float | None]


@dataclass(frozen=True)
class Lane:
    """One slot of one agent over time, from the agent's start to its end (None while it runs)."""

    batch: str
    restart: int
    node: int
    slot: int
    host: str
    start: float
    end: float | None
    bars: tuple[Bar, ...]


def _all(connection: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
    asked = connection.cursor()
    asked.row_factory = sqlite3.Row
    try:
        return asked.execute(sql, values).fetchall()
    finally:
        asked.close()


def pace(connection: sqlite3.Connection, sweep: str, pending: int, running: int, now: float) -> Pace:
    """How fast a sweep goes, and when it will be done."""
    latest = _all(
        connection,
        "SELECT duration_s FROM run WHERE sweep = ? AND ended_at IS NOT NULL AND state = 'COMPLETED' "
        "ORDER BY ended_at DESC LIMIT ?",
        [sweep, _TYPICAL_OF],
    )
    durations = [row[0] for row in latest if row[0] is not None]
    typical = statistics.median(durations) if durations else None
    ended = _all(
        connection,
        "SELECT count(*) FROM run WHERE sweep = ? AND ended_at >= ?",
        [sweep, times.to_text(now - 600)],
    )[0][0]
    slots, busy = _all(
        connection,
        "SELECT count(*), count(slot.run) FROM agent JOIN slot USING (sweep, batch, restart, node) "
        "WHERE agent.sweep = ? AND agent.state = 'RUNNING'",
        [sweep],
    )[0]
    left = None
    if typical is not None and slots and pending + running:
        started = _all(
            connection,
            f"SELECT avg({_SECONDS.format('started_at')}) FROM run WHERE sweep = ? AND state = 'RUNNING'",  # noqa: S608
            [sweep],
        )[0][0]
        done_s = 0.0 if started is None else min(typical, max(0.0, now - started))
        left = (pending * typical + running * (typical - done_s)) / slots
        if running:
            left = max(left, typical - done_s)
    return Pace(typical, ended * 6.0, slots, busy, left)


def typical_duration(connection: sqlite3.Connection, sweep: str) -> float | None:
    """The median duration of the sweep's latest completed runs, in seconds."""
    return pace(connection, sweep, 0, 0, 0.0).typical_s


def lanes(
    connection: sqlite3.Connection,
    sweep: str,
    start: float | None = None,
    end: float | None = None,
    rows: tuple[int, int] | None = None,
) -> list[Lane]:
    """Every slot that the sweep ever had, in the order in which their agents began, with the attempts in it.

    Args:
        connection: the ledger.
        sweep: the sweep.
        start: leave out attempts that ended before.
        end: leave out attempts that began later.
        rows: the first of the slots that get their attempts, and the one behind the last; None: all get them.
    """
    agents = _all(
        connection,
        f"SELECT batch, restart, node, coalesce(host, '?') AS host, coalesce(slots, 0) AS slots, "  # noqa: S608
        f"{_SECONDS.format('started_at')} AS start, {_SECONDS.format('coalesce(ended_at, seen_at)')} AS heard, "
        f"ended_at, state FROM agent WHERE sweep = ? AND started_at IS NOT NULL "
        f"ORDER BY started_at, batch, restart, node",
        [sweep],
    )
    room = MOST_BARS
    found: list[Lane] = []
    for agent in agents:
        its_end = None if agent["state"] == "RUNNING" else agent["heard"]
        for slot in range(agent["slots"]):
            key = (agent["batch"], agent["restart"], agent["node"], slot)
            is_wanted = rows is None or rows[0] <= len(found) < rows[1]
            bars = _bars(connection, sweep, key, (start, end), room) if is_wanted else ()
            room -= len(bars)
            found.append(Lane(*key, agent["host"], agent["start"], its_end, tuple(bars)))
    return found


def _bars(
    connection: sqlite3.Connection,
    sweep: str,
    slot: tuple[str, int, int, int],
    span: tuple[float | None, float | None],
    limit: int,
) -> Sequence[Bar]:
    """The attempts in a slot, the first one first. One at a time is in it, so one at most reaches across ``start``."""
    start, end = span
    where = "sweep = ? AND batch = ? AND restart = ? AND node = ? AND slot = ?"
    condition, values = f"{where} AND started_at IS NOT NULL", [sweep, *slot]
    if end is not None:
        condition += " AND started_at < ?"
        values.append(times.to_text(end))
    if start is not None:
        condition += (
            " AND (ended_at IS NULL OR ended_at > ?) AND started_at >= "  # noqa: S608
            f"coalesce((SELECT max(started_at) FROM attempt WHERE {where} AND started_at <= ?), '')"
        )
        values += [times.to_text(start), sweep, *slot, times.to_text(start)]
    rows = connection.execute(
        f"SELECT run, number, state, {_SECONDS.format('started_at')}, {_SECONDS.format('ended_at')} "  # noqa: S608
        f"FROM attempt WHERE {condition} ORDER BY started_at LIMIT ?",
        [*values, max(0, limit)],
    ).fetchall()
    return rows


@dataclass(frozen=True)
class Occupancy:
    """What the slots of a sweep's agents that run have been used for so far, in seconds of slots.

    Attributes:
        there_s: since each agent's start.
        busy_s: how long of that they held a run.
    """

    there_s: float
    busy_s: float


def occupancy(connection: sqlite3.Connection, now: float) -> dict[str, Occupancy]:
    """By sweep, how its slots that are there now have been used so far."""
    rows = _all(
        connection,
        f"SELECT sweep, sum(slots * (? - {_SECONDS.format('started_at')})), sum(busy_ms) / 1000.0 FROM agent "  # noqa: S608
        "WHERE state = 'RUNNING' AND started_at IS NOT NULL GROUP BY sweep",
        [now],
    )
    running = _all(
        connection,
        f"SELECT sweep, sum(? - {_SECONDS.format('slot.since')}) FROM agent "  # noqa: S608
        "JOIN slot USING (sweep, batch, restart, node) "
        "WHERE agent.state = 'RUNNING' AND slot.run IS NOT NULL GROUP BY sweep",
        [now],
    )
    more = {sweep: seconds or 0.0 for sweep, seconds in map(tuple, running)}
    return {sweep: Occupancy(there or 0.0, busy + more.get(sweep, 0.0)) for sweep, there, busy in map(tuple, rows)}


def share_of_time(occupancies: Iterable[Occupancy]) -> float | None:
    """The share of their time in which these slots held a run, from 0 to 1; None where there are none yet."""
    found = list(occupancies)
    there = sum(one.there_s for one in found)
    return min(1.0, max(0.0, sum(one.busy_s for one in found) / there)) if there > 0 else None


def load_history(
    connection: sqlite3.Connection, since: float
) -> dict[tuple[str, str, int, int, int], list[tuple[float | None, float | None]]]:
    """The mean CPU and GPU readings (percent) of every minute since ``since`` of every slot of agents that run."""
    slots = _all(
        connection,
        "SELECT sweep, batch, restart, node, slot FROM agent JOIN slot USING (sweep, batch, restart, node) "
        "WHERE agent.state = 'RUNNING'",
    )
    return {  # slot by slot is twice as fast as all at once, whose groups SQLite would have to sort
        tuple(slot): connection.execute(
            "SELECT avg(cpu_percent), avg(gpu_percent) FROM sample WHERE sweep = ? AND batch = ? AND restart = ? "
            "AND node = ? AND slot = ? AND taken_at >= ? GROUP BY substr(taken_at, 1, 16)",
            [*slot, times.to_text(since)],
        ).fetchall()
        for slot in slots
    }


def acts(connection: sqlite3.Connection, sweep: str | None = None, limit: int = 500) -> list[Act]:
    """What people and tools did, the latest first."""
    where, values = ("1", []) if sweep is None else ("sweep = ?", [sweep])
    rows = _all(connection, f"SELECT * FROM act WHERE {where} ORDER BY at DESC, id DESC LIMIT ?", [*values, limit])  # noqa: S608
    return [Act(**dict(row)) for row in rows]


@dataclass(frozen=True)
class Happening:
    """Something that the runs or jobs of a sweep went through."""

    at: str
    what: str
    subject: str
    state: str
    reason: str


def happenings(connection: sqlite3.Connection, sweep: str, limit: int = 200) -> list[Happening]:
    """The latest ends of runs and the comings and goings of jobs, the latest first."""
    found = [
        Happening(row["ended_at"], "run", f"{sweep}/{row['number']}", row["state"], row["reason"] or "")
        for row in _all(
            connection,
            "SELECT number, state, reason, ended_at FROM run WHERE sweep = ? AND ended_at IS NOT NULL "
            "ORDER BY ended_at DESC LIMIT ?",
            [sweep, limit],
        )
    ]
    for row in _all(
        connection,
        "SELECT id, job_id, submitted_at, started_at, ended_at, state, reason FROM batch WHERE sweep = ? "
        "ORDER BY coalesce(ended_at, started_at, submitted_at) DESC LIMIT ?",
        [sweep, limit],
    ):
        name = f"job {row['job_id']}" if row["job_id"] else f"batch {row['id']}"
        for at, state in ((row["submitted_at"], "PENDING"), (row["started_at"], "RUNNING")):
            if at:
                found.append(Happening(at, "job", name, state, "submitted" if state == "PENDING" else "started"))
        if row["ended_at"]:
            found.append(Happening(row["ended_at"], "job", name, row["state"], row["reason"] or ""))
    found.sort(key=lambda one: one.at, reverse=True)
    return found[:limit]
