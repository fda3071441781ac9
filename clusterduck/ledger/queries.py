"""Every question that the command line and the dashboard ask the ledger.

Each takes a connection (to a replica, or to a published ledger), reads all of its answer before it returns, so that no
writer ever waits for a reader, and gives frozen values. Times are text, UTC (see ``times``).
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, NamedTuple

from clusterduck.errors import ConfigError, NotFoundError
from clusterduck.ledger.answers import Act, Agent, AttemptInfo, Batch, Pending, Run, SlotNow, Sweep
from clusterduck.model import State

__all__ = [
    "EVERY_RUN",
    "LAST",
    "SORTS",
    "Act",
    "Agent",
    "AttemptInfo",
    "Batch",
    "Cursor",
    "Filter",
    "Pending",
    "Run",
    "SlotNow",
    "Sweep",
    "acts",
    "agents",
    "attempts",
    "batches",
    "cursor",
    "path",
    "pending",
    "resolve_among",
    "resolve_sweep",
    "run",
    "runs",
    "runs_numbered",
    "slots",
    "sweep",
    "sweeps",
    "varying_keys",
    "waiting",
]

#: What runs can be sorted by -> the column that does it. Ties, and runs without a value (always last), go by number.
SORTS = {
    "number": "number",
    "state": "state",
    "attempt": "attempt",
    "started_at": "started_at",
    "ended_at": "ended_at",
    "duration_s": "duration_s",
    "return_value": "return_number",
    "host": "host",
    "reason": "reason",
}

#: The sweep that was begun last.
LAST = "@last"


class Cursor(NamedTuple):
    """Where a page of runs ended: the last run's value in the sort column, and its number."""

    value: float | int | str | None
    number: int


@dataclass(frozen=True)
class Filter:
    """Which runs are meant: those in any of these states; empty means all."""

    states: Collection[str] = ()

    def where(self, sweep: str) -> tuple[str, list[Any]]:
        """The filter as SQL, and its values."""
        if not self.states:
            return "sweep = ?", [sweep]
        return f"sweep = ? AND state IN ({','.join('?' * len(self.states))})", [sweep, *map(str, self.states)]


EVERY_RUN = Filter()


def sweeps(connection: sqlite3.Connection) -> list[Sweep]:
    """All sweeps, the newest first."""
    return [_sweep(row) for row in _all(connection, "SELECT * FROM sweep ORDER BY created_at DESC, id DESC")]


def sweep(connection: sqlite3.Connection, sweep_id: str) -> Sweep:
    """One sweep, by its whole id.

    Raises:
        NotFoundError: if there is none.
    """
    found = _all(connection, "SELECT * FROM sweep WHERE id = ?", [sweep_id])
    if not found:
        raise NotFoundError(f"No sweep {sweep_id} in this ledger.")
    return _sweep(found[0])


def resolve_sweep(connection: sqlite3.Connection, token: str) -> str:
    """The id of the sweep that ``token`` means: its id, the beginning of it or of its last part, or ``@last``.

    Raises:
        NotFoundError: if it means none, or several.
    """
    ids = [row[0] for row in _all(connection, "SELECT id FROM sweep ORDER BY created_at DESC, id DESC")]
    return resolve_among(ids, token)


def resolve_among(ids: Sequence[str], token: str) -> str:
    """Like :func:`resolve_sweep`, among the ids of all sweeps, the newest first.

    Raises:
        NotFoundError: if it means none, or several.
    """
    if not ids:
        raise NotFoundError("This ledger holds no sweep yet.")
    if token == LAST:
        return str(ids[0])
    if token in ids:
        return token
    matching = [one for one in ids if token and (one.startswith(token) or one.rpartition("-")[2].startswith(token))]
    if len(matching) == 1:
        return str(matching[0])
    if matching:
        raise NotFoundError(f"{token!r} may mean any of these sweeps: {_some(matching)}. Write a few letters more.")
    raise NotFoundError(f"No sweep {token!r} in this ledger; it has {_some(ids)}.")


def batches(connection: sqlite3.Connection, sweep_id: str | None = None, *, alive: bool = False) -> list[Batch]:
    """Jobs, in the order in which they were planned.

    Args:
        connection: the ledger.
        sweep_id: of this sweep only.
        alive: only those that are PENDING or RUNNING.
    """
    where, values = _of_sweep(sweep_id)
    if alive:
        where += " AND state IN ('PENDING', 'RUNNING')"
    rows = _all(connection, f"SELECT * FROM batch WHERE {where}", values)  # noqa: S608
    rows.sort(key=lambda row: (row["sweep"], row["planned_at"] or "", _counted(row["id"])))
    first: dict[tuple[str, str], sqlite3.Row] = {}
    # the first agent of the last restart is the last one to be put there
    order = "SELECT * FROM agent WHERE {} ORDER BY sweep, batch, restart, node DESC"
    for agent in _all(connection, order.format(_of_sweep(sweep_id)[0]), values):
        first[agent["sweep"], agent["batch"]] = agent
    return [_batch(row, first.get((row["sweep"], row["id"]))) for row in rows]


def agents(connection: sqlite3.Connection, sweep_id: str | None = None, *, alive: bool = False) -> list[Agent]:
    """Agents, of one sweep or of all; with ``alive`` only those that run as far as is known."""
    where, values = _of_sweep(sweep_id, "agent.")
    if alive:
        where += " AND agent.state = 'RUNNING'"
    rows = _all(
        connection,
        "SELECT agent.*, sample.cpu_percent, sample.memory_bytes FROM agent "  # noqa: S608  # only words of our own
        f"{_LATEST_SAMPLE.format('agent', '-1')} WHERE {where}",
        values,
    )
    rows.sort(key=lambda row: (row["sweep"], _counted(row["batch"]), row["restart"], row["node"]))
    return [Agent(**{**dict(row), "draining": bool(row["draining"])}) for row in rows]


def slots(connection: sqlite3.Connection, sweep_id: str | None = None, *, alive: bool = True) -> list[SlotNow]:
    """Slots with what runs in them, of one sweep or of all; with ``alive`` only those of agents that run."""
    where, values = _of_sweep(sweep_id, "slot.")
    if alive:
        where += " AND agent.state = 'RUNNING'"
    rows = _all(
        connection,
        "SELECT slot.*, run.overrides, sample.taken_at AS sampled_at, sample.cpu_percent, "  # noqa: S608
        "sample.memory_bytes, "
        "sample.gpu_percent, sample.gpu_memory_bytes "
        "FROM agent JOIN slot USING (sweep, batch, restart, node) "
        "LEFT JOIN run ON run.sweep = slot.sweep AND run.number = slot.run "
        f"{_LATEST_SAMPLE.format('slot', 'slot.slot')} WHERE {where}",
        values,
    )
    rows.sort(key=lambda row: (row["sweep"], _counted(row["batch"]), row["restart"], row["node"], row["slot"]))
    lists = ("cpus", "gpus", "overrides")
    return [SlotNow(**{**dict(row), **{name: _list(row[name]) for name in lists}}) for row in rows]


def runs(
    connection: sqlite3.Connection,
    sweep_id: str,
    matching: Filter = EVERY_RUN,
    *,
    sort: str = "number",
    descending: bool = False,
    after: Cursor | None = None,
    limit: int | None = None,
) -> list[Run]:
    """A sweep's runs, a page of them if asked for.

    Args:
        connection: the ledger.
        sweep_id: the sweep.
        matching: which of its runs.
        sort: one of ``SORTS``.
        descending: the largest first; runs without a value come last all the same.
        after: where the page before ended (:func:`cursor`).
        limit: how many at most.

    Raises:
        ConfigError: if there is no such sort.
    """
    column = _sort_column(sort)
    where, values = matching.where(sweep_id)
    way, beyond = ("DESC", "<") if descending else ("ASC", ">")
    rows: list[Sequence[Any]] = []
    if column != "number" and (after is None or after.value is not None):
        condition, more = "", []
        if after is not None:
            condition, more = f" AND ({column}, number) {beyond} (?, ?)", [after.value, after.number]
        rows = connection.execute(
            f"SELECT {_RUN_COLUMNS} FROM run WHERE {where} AND {column} IS NOT NULL{condition} "  # noqa: S608
            f"ORDER BY {column} {way}, number {way} LIMIT ?",
            [*values, *more, _limit(limit)],
        ).fetchall()
        after = None
    if limit is None or len(rows) < limit:
        is_rest = "1" if column == "number" else f"{column} IS NULL"
        condition, more = ("", []) if after is None else (f" AND number {beyond} ?", [after.number])
        rows += connection.execute(
            f"SELECT {_RUN_COLUMNS} FROM run WHERE {where} AND {is_rest}{condition} ORDER BY number {way} LIMIT ?",  # noqa: S608
            [*values, *more, _limit(limit, len(rows))],
        ).fetchall()
    return _runs(connection, sweep_id, rows)


def waiting(connection: sqlite3.Connection, sweep_id: str) -> tuple[list[int], dict[int, int]]:
    """The PENDING runs of a sweep, which may be very many, in the order of their numbers; and which attempt is to be
    executed next, for those of which it is not the first."""
    rows = connection.execute(
        "SELECT 0, json_group_array(number) FROM "
        "(SELECT number FROM run WHERE sweep = :sweep AND state = :pending ORDER BY number) UNION ALL "
        "SELECT attempt, json_group_array(number) FROM run WHERE sweep = :sweep AND attempt > 1 GROUP BY attempt",
        {"sweep": sweep_id, "pending": State.PENDING.value},
    ).fetchall()
    runs = {attempt: json.loads(numbers) for attempt, numbers in rows}
    pending = runs.pop(0)
    later = {number: attempt for attempt, numbers in runs.items() for number in numbers}
    return pending, {number: later[number] for number in pending if number in later} if later else {}


def pending(connection: sqlite3.Connection, sweep_id: str) -> list[Pending]:
    """All PENDING runs of a sweep, which may be very many, in the order of their numbers."""
    sql = "SELECT number, attempt, launch, batch FROM run WHERE sweep = ? AND state = ? ORDER BY number"
    return list(map(Pending._make, connection.execute(sql, [sweep_id, State.PENDING.value]).fetchall()))


def cursor(run_: Run, sort: str = "number") -> Cursor:
    """Where a page that ends with this run ends, for the next page.

    Raises:
        ConfigError: if there is no such sort.
    """
    return Cursor(getattr(run_, _sort_column(sort)), run_.number)


def run(connection: sqlite3.Connection, sweep_id: str, number: int) -> Run:
    """One run.

    Raises:
        NotFoundError: if the sweep has no such run.
    """
    found = runs_numbered(connection, sweep_id, [number])
    if not found:
        total = sweep(connection, sweep_id).runs
        raise NotFoundError(f"Sweep {sweep_id} has no run {number}; it has {total} (from 0).")
    return found[0]


def runs_numbered(connection: sqlite3.Connection, sweep_id: str, numbers: Iterable[int]) -> list[Run]:
    """The runs of these numbers, in the order of their numbers."""
    sql = (
        f"SELECT {_RUN_COLUMNS} FROM run WHERE sweep = ? "  # noqa: S608
        "AND number IN (SELECT value FROM json_each(?)) ORDER BY number"
    )
    return _runs(connection, sweep_id, connection.execute(sql, [sweep_id, json.dumps(list(numbers))]).fetchall())


def attempts(connection: sqlite3.Connection, sweep_id: str, number: int) -> list[AttemptInfo]:
    """All attempts of a run, the first one first."""
    rows = _all(connection, "SELECT * FROM attempt WHERE sweep = ? AND run = ? ORDER BY number", [sweep_id, number])
    return [
        AttemptInfo(
            **{
                **dict(row),
                **{name: _list(row[name]) for name in ("cpus", "gpus")},
                **{name: path(row[name]) for name in ("folder", "log", "result", "set_aside")},
                "git_dirty": _flag(row["git_dirty"]),
                "by_job_end": bool(row["by_job_end"]),
            }
        )
        for row in rows
    ]


def varying_keys(connection: sqlite3.Connection, sweep_id: str) -> list[str]:
    """The override keys in which the sweep's runs differ, in the order of their overrides."""
    rows = _all(
        connection,
        "SELECT key FROM override_key JOIN sweep ON sweep.id = override_key.sweep WHERE override_key.sweep = ? "
        "AND (smallest <> largest OR override_key.runs < sweep.planned) ORDER BY position, key",
        [sweep_id],
    )
    return [row[0] for row in rows]


def acts(connection: sqlite3.Connection, sweep_id: str) -> list[Act]:
    """What was done to a sweep, the first act first."""
    return [
        Act(**dict(row)) for row in _all(connection, "SELECT * FROM act WHERE sweep = ? ORDER BY at, id", [sweep_id])
    ]


def path(text: str | None) -> str | None:
    """A path as the file system has it: names that are no Unicode text are kept escaped in the ledger."""
    if text is None or "\\u" not in text:
        return text
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


_RUN_NAMES = [one.name for one in fields(Run)]
_RUN_COLUMNS = ", ".join(_RUN_NAMES)
_ESCAPED = re.compile(r"\\u(dc[89a-f][0-9a-f])")

_LATEST_SAMPLE = (
    "LEFT JOIN sample ON sample.sweep = {0}.sweep AND sample.batch = {0}.batch AND sample.restart = {0}.restart "
    "AND sample.node = {0}.node AND sample.slot = {1} AND sample.taken_at = (SELECT max(taken_at) FROM sample AS s "
    "WHERE s.sweep = {0}.sweep AND s.batch = {0}.batch AND s.restart = {0}.restart AND s.node = {0}.node "
    "AND s.slot = {1})"
)


def _all(connection: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
    asked = connection.cursor()
    asked.row_factory = sqlite3.Row
    try:
        return asked.execute(sql, values).fetchall()
    finally:
        asked.close()


def _of_sweep(sweep_id: str | None, table: str = "") -> tuple[str, list[Any]]:
    return ("1", []) if sweep_id is None else (f"{table}sweep = ?", [sweep_id])


@cache
def _counted(batch: str) -> list[str]:
    """A batch's place among others as people count: 0-2 comes before 0-10."""
    return [part.zfill(20) for part in re.split("([0-9]+)", batch)]


def _sort_column(sort: str) -> str:
    if sort not in SORTS:
        raise ConfigError(f"Runs cannot be sorted by {sort!r}; by {', '.join(SORTS)} they can.")
    return SORTS[sort]


def _limit(limit: int | None, less: int = 0) -> int:
    return -1 if limit is None else limit - less


def _some(ids: Iterable[str]) -> str:
    listed = list(ids)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return ", ".join(listed[:10]) + more


def _list(text: str | None) -> list[Any]:
    return list(json.loads(text)) if text else []


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _sweep(row: sqlite3.Row) -> Sweep:
    values = dict(row)
    counts = {state.value: values.pop(state.value.lower()) for state in State}
    values.pop("planned")
    return Sweep(
        **{
            **values,
            "folder": path(row["folder"]),
            "root": path(row["root"]),
            "cwd": path(row["cwd"]),
            "command": _list(row["command"]),
            "git_dirty": _flag(row["git_dirty"]),
            "counts": counts,
        }
    )


def _batch(row: sqlite3.Row, agent: sqlite3.Row | None) -> Batch:
    values = {**dict(row), "log_folder": path(row["log_folder"]), "share_runs": _flag(row["share_runs"])}
    values["attempts"] = [(run, number) for run, number in _list(row["attempts"])]
    if agent is not None:
        values |= {name: agent[name] for name in ("restart", "host", "ends_at", "heartbeat_at")}
        values["agent_pid"] = agent["pid"]
    return Batch(**values)


_RUN_READERS = [
    (_RUN_NAMES.index("overrides"), _list),
    (_RUN_NAMES.index("folder"), path),
    (_RUN_NAMES.index("log"), path),
]


def _run(row: Sequence[Any]) -> Run:
    values = list(row)
    for place, read in _RUN_READERS:
        values[place] = read(values[place])
    return Run(*values)


def _runs(connection: sqlite3.Connection, sweep_id: str, rows: Iterable[Sequence[Any]]) -> list[Run]:
    """Rows of ``_RUN_COLUMNS`` as runs; for those that wait because no person put them back, the reason is why."""
    found = [_run(row) for row in rows]
    again = {
        one.number: place
        for place, one in enumerate(found)
        if one.attempt > 1 and one.state == State.PENDING.value and one.reason is None
    }
    if again:
        for number, attempt, reason in _all(
            connection,
            "SELECT run, attempt, reason FROM act WHERE sweep = ? AND kind = 'requeue' AND run BETWEEN ? AND ? "
            "AND json_extract(detail, '$.kind') != 'person' ORDER BY at DESC",
            [sweep_id, min(again), max(again)],
        ):
            place = again.get(number)
            if place is not None and found[place].attempt == attempt:
                found[place] = replace(found[place], reason=reason)
    return found
