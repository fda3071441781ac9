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


@dataclass(frozen=True)
class Bar:
    """An attempt's time in a slot; seconds since the epoch, ``end`` None while it runs."""

    run: int
    attempt: int
    state: str
    start: float
    end: float | None


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
    connection: sqlite3.Connection, sweep: str, start: float | None = None, end: float | None = None
) -> list[Lane]:
    """Every slot that the sweep ever had, with the attempts in it that lie (partly) between ``start`` and ``end``."""
    agents = _all(
        connection,
        f"SELECT batch, restart, node, coalesce(host, '?') AS host, coalesce(slots, 0) AS slots, "  # noqa: S608
        f"{_SECONDS.format('started_at')} AS start, {_SECONDS.format('coalesce(ended_at, seen_at)')} AS heard, "
        f"ended_at, state FROM agent WHERE sweep = ? AND started_at IS NOT NULL "
        f"ORDER BY started_at, batch, restart, node",
        [sweep],
    )
    where, values = "sweep = ? AND started_at IS NOT NULL AND slot IS NOT NULL", [sweep]
    if end is not None:
        where += " AND started_at < ?"
        values.append(times.to_text(end))
    if start is not None:
        where += " AND (ended_at IS NULL OR ended_at > ?)"
        values.append(times.to_text(start))
    asked = connection.cursor()
    try:
        rows = asked.execute(
            f"SELECT batch, restart, node, slot, run, number, state, {_SECONDS.format('started_at')}, "  # noqa: S608
            f"{_SECONDS.format('ended_at')} FROM attempt WHERE {where} ORDER BY started_at LIMIT {MOST_BARS}",
            values,
        ).fetchall()
    finally:
        asked.close()
    bars: dict[tuple[str, int, int, int], list[Bar]] = {}
    for batch, restart, node, slot, run, number, state, begun, ended in rows:
        bars.setdefault((batch, restart or 0, node or 0, slot), []).append(Bar(run, number, state, begun, ended))
    found = []
    for agent in agents:
        its_end = None if agent["state"] == "RUNNING" else agent["heard"]
        for slot in range(agent["slots"]):
            key = (agent["batch"], agent["restart"], agent["node"], slot)
            found.append(Lane(*key, agent["host"], agent["start"], its_end, tuple(bars.get(key, ()))))
    return found


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
    there = _all(
        connection,
        f"SELECT sweep, sum(slots * (? - {_SECONDS.format('started_at')})) FROM agent "  # noqa: S608
        "WHERE state = 'RUNNING' AND started_at IS NOT NULL GROUP BY sweep",
        [now],
    )
    busy = _all(
        connection,
        "SELECT sweep, sum(coalesce(attempt.duration_s, "  # noqa: S608
        f"CASE WHEN attempt.ended_at IS NULL THEN ? - {_SECONDS.format('attempt.started_at')} ELSE 0 END)) "
        "FROM attempt JOIN agent USING (sweep, batch, restart, node) "
        "WHERE attempt.sweep IN (SELECT sweep FROM agent WHERE state = 'RUNNING') AND agent.state = 'RUNNING' "
        "GROUP BY sweep",
        [now],
    )
    used = {sweep: seconds or 0.0 for sweep, seconds in map(tuple, busy)}
    return {sweep: Occupancy(seconds or 0.0, used.get(sweep, 0.0)) for sweep, seconds in map(tuple, there)}


def share_of_time(occupancies: Iterable[Occupancy]) -> float | None:
    """The share of their time in which these slots held a run, from 0 to 1; None where there are none yet."""
    found = list(occupancies)
    there = sum(one.there_s for one in found)
    return min(1.0, max(0.0, sum(one.busy_s for one in found) / there)) if there > 0 else None


def load_history(
    connection: sqlite3.Connection, since: float
) -> dict[tuple[str, str, int, int, int], list[tuple[float | None, float | None]]]:
    """The mean CPU and GPU readings (percent) of every minute since ``since`` of every slot of agents that run."""
    found: dict[tuple[str, str, int, int, int], list[tuple[float | None, float | None]]] = {}
    rows = _all(
        connection,
        "SELECT s.sweep, s.batch, s.restart, s.node, s.slot, avg(s.cpu_percent), avg(s.gpu_percent), "
        "substr(s.taken_at, 1, 16) AS minute FROM agent CROSS JOIN slot USING (sweep, batch, restart, node) "
        "CROSS JOIN sample AS s ON s.sweep = agent.sweep AND s.batch = agent.batch AND s.restart = agent.restart "
        "AND s.node = agent.node AND s.slot = slot.slot AND s.taken_at >= ? WHERE agent.state = 'RUNNING' "
        "GROUP BY s.sweep, s.batch, s.restart, s.node, s.slot, minute "
        "ORDER BY s.sweep, s.batch, s.restart, s.node, s.slot, minute",
        [times.to_text(since)],
    )
    for sweep, batch, restart, node, slot, cpu, gpu, _ in map(tuple, rows):
        found.setdefault((sweep, batch, restart, node, slot), []).append((cpu, gpu))
    return found


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
