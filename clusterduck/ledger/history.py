"""What happened over time: how fast a sweep goes, who occupied which slot when, and what people did."""

from __future__ import annotations

import json
import sqlite3
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from clusterduck.ledger import times
from clusterduck.ledger.answers import Act
from clusterduck.ledger.schema import IN_TROUBLE

#: So many of the latest completed runs tell how long one takes.
_TYPICAL_OF = 200

#: At most so many bars are read for one picture.
MOST_BARS = 200_000

#: A slot with more than so many attempts for each piece of a picture is not read whole. With fewer it is: to look for
#: two in their indexes takes as long as to read so many.
_MANY = 6

#: After any time there is, as text.
_LATER = "~"

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
    *,
    rows: tuple[int, int] | None = None,
    pieces: int | None = None,
) -> list[Lane]:
    """Every slot that the sweep ever had, in the order in which their agents began, with the attempts in it.

    Args:
        connection: the ledger.
        sweep: the sweep.
        start: leave out attempts that ended before.
        end: leave out attempts that began later.
        rows: the first of the slots that get their attempts, and the one behind the last; None: all get them.
        pieces: for a picture in which no more than so many pieces of this time can be told apart: a slot with many
            attempts in most of them gets the last one that began in each, and the last in trouble; None: all of them.
    """
    agents = _all(
        connection,
        f"SELECT batch, restart, node, coalesce(host, '?') AS host, coalesce(slots, 0) AS slots, "  # noqa: S608
        f"{_SECONDS.format('started_at')} AS start, {_SECONDS.format('coalesce(ended_at, seen_at)')} AS heard, "
        f"ended_at, state FROM agent WHERE sweep = ? AND started_at IS NOT NULL "
        f"ORDER BY started_at, batch, restart, node",
        [sweep],
    )
    stretch = _Stretch(start, end, _ticks(agents, start, end, pieces) if agents and pieces else ())
    room = MOST_BARS
    found: list[Lane] = []
    for agent in agents:
        its_end = None if agent["state"] == "RUNNING" else agent["heard"]
        for slot in range(agent["slots"]):
            key = (agent["batch"], agent["restart"], agent["node"], slot)
            is_wanted = rows is None or rows[0] <= len(found) < rows[1]
            bars = _bars(connection, sweep, key, stretch, room) if is_wanted else ()
            room -= len(bars)
            found.append(Lane(*key, agent["host"], agent["start"], its_end, tuple(bars)))
    return found


class _Stretch(NamedTuple):
    """The time that is wanted; and where its pieces end, if not all attempts are."""

    start: float | None
    end: float | None
    ticks: Sequence[str]


def _ticks(agents: Sequence[sqlite3.Row], start: float | None, end: float | None, pieces: int) -> list[str]:
    """The ends of the pieces of this time, and its start."""
    low = min(agent["start"] for agent in agents) if start is None else start
    high = max(time.time() if agent["state"] == "RUNNING" else agent["heard"] for agent in agents)
    high = high if end is None else min(high, end)
    ticks = [times.to_text(low + (high - low) * piece / pieces) for piece in range(pieces + 1)]
    return [*ticks[:-1], _LATER if end is None else times.to_text(end)]


def _bars(
    connection: sqlite3.Connection,
    sweep: str,
    slot: tuple[str, int, int, int],
    stretch: _Stretch,
    limit: int,
) -> Sequence[Bar]:
    """The attempts in a slot, the first one first. One at a time is in it, so one at most reaches across ``start``."""
    start, end, ticks = stretch
    where = "sweep = ? AND batch = ? AND restart = ? AND node = ? AND slot = ?"
    condition, values = f"{where} AND started_at IS NOT NULL", [sweep, *slot]
    if end is not None:
        condition += " AND started_at < ?"
        values.append(times.to_text(end))
    if start is not None:
        condition += (
            f" AND started_at >= coalesce((SELECT max(started_at) FROM attempt WHERE {where} AND started_at <= ?), '')"  # noqa: S608
        )
        values += [sweep, *slot, times.to_text(start)]
    if ticks and _are_more(connection, condition, values, _MANY * len(ticks)):
        last = (
            f"SELECT (SELECT max(started_at) FROM attempt INDEXED BY {{}} WHERE {where} AND {{}} "  # noqa: S608
            "AND started_at < tick.value) FROM json_each(?) AS tick"
        )
        picked = f"{last.format('attempt_by_slot', '1')} UNION {last.format('attempt_in_trouble', IN_TROUBLE)}"
        condition = f"{where} AND started_at IN ({picked})"
        values = [sweep, *slot, *[sweep, *slot, json.dumps(ticks)] * 2]
    elif start is not None:
        condition += " AND (ended_at IS NULL OR ended_at > ?)"
        values.append(times.to_text(start))
    return connection.execute(
        f"SELECT run, number, state, {_SECONDS.format('started_at')}, {_SECONDS.format('ended_at')} "  # noqa: S608
        f"FROM attempt WHERE {condition} ORDER BY started_at LIMIT ?",
        [*values, max(0, limit)],
    ).fetchall()


def _are_more(connection: sqlite3.Connection, condition: str, values: Sequence[Any], than: int) -> bool:
    """Whether so many attempts are meant, which an index tells."""
    sql = f"SELECT 1 FROM attempt WHERE {condition} LIMIT 1 OFFSET ?"  # noqa: S608
    return bool(connection.execute(sql, [*values, than]).fetchall())


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
