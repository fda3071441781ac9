"""What happened over time: how fast a sweep goes, who occupied which slot when, and what people did."""

from __future__ import annotations

import json
import math
import sqlite3
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from clusterduck.ledger import times
from clusterduck.ledger.answers import Act
from clusterduck.ledger.schema import IN_TROUBLE

#: So many of the latest completed runs tell how long one takes.
_TYPICAL_OF = 200

#: A picture on a screen is made of no more than about so many attempts, which are read in a fiftieth of a second.
MOST_BARS = 10_000

#: To find the attempt that stands for a piece of time takes as long as to read so many.
_LOOK = 6

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
    """One slot of one agent over time, from the agent's start to its end (None while it runs).

    Attributes:
        piece: 0 if each of ``bars`` is an attempt. Else a bar that is shorter than two pieces of so many seconds stands
            for all that began in its piece, and is drawn as long as that: the last one in trouble, or else the last.
    """

    batch: str
    restart: int
    node: int
    slot: int
    host: str
    start: float
    end: float | None
    bars: tuple[Bar, ...]
    piece: float = 0.0


def column_s(length: float, columns: int) -> float:
    """Seconds to a column of a picture of so much time, in steps of a hundredth: they seldom change as time goes on."""
    return float(1.01 ** math.ceil(math.log(max(length, 0.001) / max(1, columns), 1.01)))


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
    columns: int | None = None,
    most: int = MOST_BARS,
) -> list[Lane]:
    """Every slot that the sweep ever had, in the order in which their agents began, with the attempts in it.

    Args:
        connection: the ledger.
        sweep: the sweep.
        start: leave out attempts that ended before.
        end: leave out attempts that began later.
        rows: the first of the slots that get their attempts, and the one behind the last; None: all get them.
        columns: for a picture of this time in so many columns, counted from the beginning of the sweep's first agent
            and as wide as :func:`column_s` says if it is all of the time. A slot with many more attempts gets one for
            each column in which one began: the last in trouble, or else the last. If there are many such slots, it is
            one for each piece of several columns, see :class:`Lane`. None: all attempts.
        most: no more than about so many attempts are read for a picture.
    """
    agents = _all(
        connection,
        f"SELECT batch, restart, node, coalesce(host, '?') AS host, slots, {_SECONDS.format('started_at')} AS start, "  # noqa: S608
        f"CASE state WHEN 'RUNNING' THEN NULL ELSE {_SECONDS.format('coalesce(ended_at, seen_at)')} END AS end "
        "FROM agent WHERE sweep = ? AND started_at IS NOT NULL AND slots > 0 "
        "ORDER BY started_at, batch, restart, node",
        [sweep],
    )
    found = [
        Lane(agent["batch"], agent["restart"], agent["node"], slot, agent["host"], agent["start"], agent["end"], ())
        for agent in agents
        for slot in range(agent["slots"])
    ]
    bounds = ("" if start is None else times.to_text(start), _LATER if end is None else times.to_text(end))
    wanted: Sequence[int] = range(len(found))[slice(*(rows or (None,)))]
    few = None
    for is_last in (False, True):  # what slots with few attempts leave is for those with many
        grid = _grid(found, start, end, columns, most // len(wanted)) if columns and wanted else None
        many = []
        for row in wanted:
            lane = found[row]
            values = (sweep, lane.batch, lane.restart, lane.node, lane.slot, *bounds)
            if grid is None or (grid.few != few and not _are_more(connection, values, grid.few)):
                found[row] = replace(lane, bars=tuple(_all_of(connection, values)))
                most -= len(found[row].bars)
            elif is_last:
                found[row] = _some_of(connection, values, lane, grid)
            else:
                many.append(row)
        wanted, few = many, grid and grid.few
    return found


class _Grid(NamedTuple):
    """What of a slot's attempts is read for a picture.

    Attributes:
        few: all of them, if they are no more than this.
        first: when the sweep's first agent began, and with it the first of the pieces of time.
        piece: how many seconds each of them has.
        column: how many seconds a column of the picture has.
        begin: the number of the first piece that is wanted.
        edges: when that one begins, and each that follows, as text.
        now: the time at which all this is asked.
    """

    few: int
    first: float
    piece: float
    column: float
    begin: int
    edges: Sequence[str]
    now: float

    def number(self, at: float) -> int:
        """The number of the piece in which a time lies, which is told to the millisecond."""
        return math.floor((at + 0.0005 - self.first) / self.piece)


def _grid(lanes: Sequence[Lane], start: float | None, end: float | None, columns: int, share: int) -> _Grid:
    """What is read of each slot for a picture of so many columns, if each may cost as much as so many attempts."""
    first, now = lanes[0].start, time.time()
    last = max(now if lane.end is None else lane.end for lane in lanes)
    is_all = start is None or end is None
    start, end = first if start is None else start, last if end is None else end
    column = column_s(last - first, columns) if is_all else (end - start) / columns
    piece = column * math.ceil(columns * _LOOK / max(1, share))
    grid = _Grid(min(share, columns * _LOOK), first, piece, column, 0, (), now)
    begin = grid.number(max(first, start))
    numbers = range(begin, max(begin, grid.number(min(last, end) - 0.001)) + 1)
    return grid._replace(begin=begin, edges=[times.to_text(first + number * piece) for number in numbers])


#: What begins in a slot (the values 1 to 5), and whatever is in it at the time between two others (6 and 7): one at a
#: time is, so one at most reaches across the first.
_ITS = "sweep = ?1 AND batch = ?2 AND restart = ?3 AND node = ?4 AND slot = ?5 AND started_at"
_BETWEEN = f"{_ITS} < ?7 AND started_at >= coalesce((SELECT max(started_at) FROM attempt WHERE {_ITS} <= ?6), '')"  # noqa: S608


def _are_more(connection: sqlite3.Connection, values: Sequence[Any], than: int) -> bool:
    """Whether so many attempts are in a slot, which an index tells."""
    sql = f"SELECT 1 FROM attempt WHERE {_BETWEEN} LIMIT 1 OFFSET ?8"  # noqa: S608
    return bool(connection.execute(sql, [*values, than]).fetchall())


def _all_of(connection: sqlite3.Connection, values: Sequence[Any]) -> list[Bar]:
    """The attempts in a slot, the first one first."""
    return connection.execute(
        f"SELECT run, number, state, {_SECONDS.format('started_at')}, {_SECONDS.format('ended_at')} "  # noqa: S608
        f"FROM attempt WHERE {_BETWEEN} AND (ended_at IS NULL OR ended_at > ?6) ORDER BY started_at",
        values,
    ).fetchall()


def _some_of(connection: sqlite3.Connection, values: Sequence[Any], lane: Lane, grid: _Grid) -> Lane:
    """The slot with an attempt for each piece of time in which one began, the last one before, and the last one."""
    begin = max(0, min(grid.number(lane.start) - grid.begin, len(grid.edges) - 1))
    behind = None if lane.end is None else max(begin, grid.number(lane.end) - grid.begin) + 1
    edges = grid.edges[begin:behind]
    last = values[6].ljust(24)  # as wide as a time
    pieces = json.dumps([low + high for low, high in pairwise([edges[0], *edges, last, last])])
    times_ = (f"CAST(round({_SECONDS.format(at)} * 1000) AS INTEGER)" for at in ("started_at", "ended_at"))
    bar = f"json_array(run, number, state, {', '.join(times_)})"  # whole numbers: SQLite takes long for the other ones
    picked = f"(SELECT {bar} FROM attempt WHERE {_ITS} < substr(value, 25) ORDER BY started_at DESC LIMIT 1)"  # noqa: S608
    in_trouble = f"FROM attempt INDEXED BY attempt_in_trouble WHERE {IN_TROUBLE} AND {_ITS}"
    if connection.execute(f"SELECT 1 {in_trouble} >= ?6 AND {_ITS} < ?7 LIMIT 1", values).fetchone():
        latest = f"SELECT max(started_at) {in_trouble} >= substr(value, 1, 24) AND {_ITS} < substr(value, 25)"
        picked = f"coalesce((SELECT {bar} FROM attempt WHERE {_ITS} = ({latest})), {picked})"  # noqa: S608
    found = connection.execute(f"SELECT group_concat({picked}) FROM json_each(?8)", [*values, pieces]).fetchone()[0]  # noqa: S608
    bars = [
        (run, number, state, start / 1000, None if end is None else end / 1000)
        for (run, number, state, start, end), _ in groupby(json.loads(f"[{found or ''}]"))
    ]
    return replace(lane, bars=tuple(_as_long_as_their_pieces(bars, lane, grid)), piece=grid.piece)


def _as_long_as_their_pieces(bars: Iterable[Bar], lane: Lane, grid: _Grid) -> Iterator[Bar]:
    """Each bar, stretched to the piece in which it began unless it is longer, but for a hundredth of a column."""
    inset = grid.column / 100
    until = grid.now if lane.end is None else lane.end
    for bar in bars:
        run, number, state, start, end = bar
        if (until if end is None else end) - start < grid.piece:
            low = grid.first + grid.number(start) * grid.piece
            high = None if end is None else max(end, min(low + grid.piece - inset, until))
            yield run, number, state, max(low + inset, lane.start), high
        else:
            yield bar


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
