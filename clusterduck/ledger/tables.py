"""What a fold changes in one transaction: rows loaded when asked for, changed in memory, written back together."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

from clusterduck.ledger.rows import SELDOM, AgentRow, AttemptRow, BatchRow, LaunchRow, RunRow, SlotRow
from clusterduck.paths import SweepPaths

Row = TypeVar("Row")

#: Values in one SQL statement; SQLite takes at least 999.
_AT_ONCE = 500

AgentKey = tuple[str, int, int]  # batch, restart, node
Planned = tuple[int, str]  # a run's launch, and its overrides as JSON text

# Before sqlite3 finds that it can store a None or a bool it looks in four places for somebody who could make of it what
# it can store: a quarter of all that writing a row takes. These two say so at once.
_AS_IT_IS: dict[None, None] = {}
sqlite3.register_adapter(type(None), _AS_IT_IS.get)
sqlite3.register_adapter(bool, int)


@dataclass(frozen=True)
class _Statements:
    select: str
    select_where: str
    whole: _Upsert
    short: _Upsert  # for rows of which ``seldom`` gets ``nothing``
    seldom: Callable[[Any], Any]
    nothing: tuple[None, ...] | None


@dataclass(frozen=True)
class _Upsert:
    sql: str
    values: Callable[[Any], tuple[Any, ...]]


@cache
def _statements(table: str, names: tuple[str, ...], key_size: int) -> _Statements:
    key, seldom = names[:key_size], [name for name in names if name in SELDOM.get(table, ())]
    select = " ".join(["SELECT", ", ".join(names), "FROM", table, "WHERE sweep = ? AND "])
    return _Statements(
        select=select + " AND ".join(f"{name} = ?" for name in key),
        select_where=select,
        whole=_upsert(table, key, names[key_size:], ()),
        short=_upsert(table, key, [name for name in names[key_size:] if name not in seldom], seldom),
        seldom=attrgetter(*seldom) if seldom else lambda row: None,
        nothing=(None,) * len(seldom) if len(seldom) > 1 else None,  # one by itself is no tuple
    )


def _upsert(table: str, key: Sequence[str], rest: Sequence[str], without: Sequence[str]) -> _Upsert:
    names = [*key, *rest]
    into = f"{table}(sweep, {', '.join(names)}) VALUES ({', '.join('?' * (len(names) + 1))})"
    news = [*(f"{name} = excluded.{name}" for name in rest), *(f"{name} = NULL" for name in without)]
    conflict = f"ON CONFLICT(sweep, {', '.join(key)}) DO UPDATE SET"
    return _Upsert(" ".join(["INSERT INTO", into, conflict, ", ".join(news)]), attrgetter(*names))


class Table(Generic[Row]):
    """One table's rows of one sweep, as they stand in this transaction."""

    def __init__(
        self, connection: sqlite3.Connection, sweep: str, name: str, row_type: type[Row], key_size: int
    ) -> None:
        self._connection = connection
        self._sweep = sweep
        self._type = row_type
        row_class: Any = row_type
        self._sql = _statements(name, tuple(column.name for column in fields(row_class)), key_size)
        self._single, self._key_size = key_size == 1, key_size
        self._rows: dict[Any, Row] = {}
        self._changed: dict[Any, Row] = {}
        self._fresh: set[Any] = set()
        self._absent: set[Any] = set()  # keys that were looked for in vain

    def get(self, *key: Any) -> Row | None:
        """The row with this key, if there is one."""
        index = key[0] if self._single else key
        row = self._rows.get(index)
        if row is None and index not in self._absent:
            found = self._connection.execute(self._sql.select, (self._sweep, *key)).fetchone()
            if found is not None:
                row = self._rows[index] = self._as_found(found)
        return row

    def change(self, *key: Any) -> Row:
        """The row with this key, to be written back; a new one that knows nothing but its key if there was none."""
        index = key[0] if self._single else key
        row = self._changed.get(index)
        if row is None:
            row = self._rows.get(index) or self.get(*key)
            if row is None:
                row = self._rows[index] = self._type(*key)
                self._fresh.add(index)
            self._changed[index] = row
        return row

    def _as_found(self, found: tuple[Any, ...]) -> Row:
        """The row that was read."""
        return self._type(*found)

    def _keep(self, found: tuple[Any, ...]) -> None:
        index = found[0] if self._single else found[: self._key_size]
        if index not in self._rows:
            self._rows[index] = self._as_found(found)

    def reset(self, *key: Any) -> Row:
        """Forget all that is known of a row but its key."""
        index = key[0] if self._single else key
        row = self._rows[index] = self._changed[index] = self._type(*key)
        return row

    def load(self, column: str, keys: Set[Any], numbers_in: Callable[[Set[Any]], Set[int]] = lambda keys: keys) -> None:
        """Read many rows at once, because one by one takes several times as long.

        Args:
            column: a column of numbers, in the key.
            keys: the rows' keys.
            numbers_in: gives that column's numbers in some keys.
        """
        new = keys - self._rows.keys() - self._absent
        numbers = list(numbers_in(new))
        for begin in range(0, len(numbers), _AT_ONCE):
            part = numbers[begin : begin + _AT_ONCE]
            sql = self._sql.select_where + f"{column} IN ({','.join('?' * len(part))})"
            for found in self._connection.execute(sql, (self._sweep, *part)).fetchall():
                self._keep(found)
        self._absent |= new - self._rows.keys()

    def where(self, condition: str, parameters: Sequence[Any], among: Callable[[Row], bool]) -> list[Row]:
        """All rows that match a condition, given as SQL on the columns and, for rows in memory, in Python."""
        sql = self._sql.select_where + condition
        for found in self._connection.execute(sql, (self._sweep, *parameters)).fetchall():
            self._keep(found)
        return [row for row in self._rows.values() if among(row)]

    def changed(self) -> list[Row]:
        """The rows to be written back."""
        return list(self._changed.values())

    def is_new(self, *key: Any) -> bool:
        """Whether this transaction made the row."""
        return (key[0] if self._single else key) in self._fresh

    def write(self) -> None:
        """Write the changed rows back."""
        sql, sweep = self._sql, (self._sweep,)
        seldom, nothing = sql.seldom, sql.nothing
        whole: list[Row] = []
        short: list[Row] = []
        for row in self._changed.values():
            (short if seldom(row) == nothing else whole).append(row)
        for upsert, rows in ((sql.whole, whole), (sql.short, short)):
            write_rows(self._connection, upsert.sql, [sweep + upsert.values(row) for row in rows])
        self._changed = {}


class Attempts(Table[AttemptRow]):
    """Attempts, with the time that each had taken, and in whose slot, before this transaction."""

    def __init__(self, connection: sqlite3.Connection, sweep: str) -> None:
        super().__init__(connection, sweep, "attempt", AttemptRow, 2)
        self.took_before: dict[tuple[int, int], tuple[AgentKey, int]] = {}

    def _as_found(self, found: tuple[Any, ...]) -> AttemptRow:
        row = super()._as_found(found)
        took = took_of(row)
        if took is not None:
            self.took_before[row.run, row.number] = took
        return row


def took_of(attempt: AttemptRow) -> tuple[AgentKey, int] | None:
    """The agent that had an attempt, and how many milliseconds; None if it has not ended, or nobody had it."""
    if attempt.duration_s is None or attempt.batch is None:
        return None
    return (attempt.batch, attempt.restart or 0, attempt.node or 0), round(attempt.duration_s * 1000)


class Changes:
    """All that some stretches of a sweep's journals change.

    A run of which nothing but its plan is known may be held back, for a file that nobody reads: its row is then made
    once, and whole, instead of growing.

    Args:
        connection: the replica, in a transaction.
        sweep: the sweep's id.
        root: its root folder.
        held: the plans that were held back so far, by run; None to hold none back.
    """

    def __init__(
        self, connection: sqlite3.Connection, sweep: str, root: Path, held: dict[int, Planned] | None = None
    ) -> None:
        self.connection = connection
        self.sweep = sweep
        self.root = root
        self.paths = SweepPaths(root)
        self.launches = Table(connection, sweep, "launch", LaunchRow, 1)
        self.batches = Table(connection, sweep, "batch", BatchRow, 1)
        self.agents = Table(connection, sweep, "agent", AgentRow, 3)
        self.runs = Table(connection, sweep, "run", RunRow, 1)
        self.attempts = Attempts(connection, sweep)
        self.slots = Table(connection, sweep, "slot", SlotRow, 4)
        self.states_before: dict[int, str] = {}  # of the runs looked at
        self.acts: list[tuple[Any, ...]] = []
        self.closed_ranges: list[tuple[int, int]] = []  # of runs that will never start
        self.homes: list[tuple[str, int, int]] = []  # batches planned: id, first run, stop
        self._held = held
        self._newly_held: dict[int, Planned] = {}
        self.newly_planned = 0
        self.plans: list[list[tuple[int, list[str]]]] = []  # runs that are new, each with its overrides
        self.samples: dict[AgentKey, dict[str, list[list[Any]]]] = defaultdict(dict)  # by the time they were taken
        self.unsettled: set[str] = set()  # batches of which something changed that others' states follow from
        self.over: set[AgentKey] = set()  # agents whose end changed
        self.placed: set[AgentKey] = set()  # agents whose host or slots became known
        self.left: set[tuple[str, int, int, int]] = set()  # slots that turned out not to hold an attempt
        self.restarts: dict[str, int] = {}  # batch: its highest restart, where that was looked up
        self.unknown: set[str] = set()  # kinds of events that this version does not know
        self.latest: float = 0.0  # time of the latest event

    def run(self, number: int) -> RunRow:
        """A run's row, to be written back."""
        row = self.runs.change(number)
        if number not in self.states_before:
            self.states_before[number] = row.state
            if self._held is not None:
                planned = self._newly_held.get(number) or self._held.get(number)
                if planned is not None:
                    row.launch, row.overrides = planned
        return row

    def plan(self, number: int, launch: int, overrides: str) -> bool:
        """Note what a run is to be (its overrides as JSON text); False if that is known."""
        if self._held is not None and self.runs.get(number) is None:
            if number in self._newly_held or number in self._held:
                return False
            self._newly_held[number] = launch, overrides
            return True
        run = self.run(number)
        if run.overrides is not None:
            return False
        run.launch, run.overrides = launch, overrides
        return True

    def update_held(self) -> None:
        """Once all is written: hold back what was planned, but no run that has its row now."""
        if self._held is not None:
            self._held.update(self._newly_held)
            for number in self.states_before:
                self._held.pop(number, None)

    def runs_with_attempts(self, keys: Set[tuple[int, int]]) -> Set[int]:
        """The runs of these attempts of which an attempt may be on record: a run tells its highest, 0 while none is."""
        return {
            run for run, number in keys if number < 1 or ((row := self.runs.get(run)) is not None and row.attempt > 0)
        }


def write_rows(connection: sqlite3.Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """``executemany`` that stores also what is no Unicode text, such as half a character in a file's name.

    ``sql`` must be such that executing it twice does no harm.
    """
    try:
        connection.executemany(sql, rows)
    except UnicodeEncodeError:
        connection.executemany(
            sql, [tuple(storable(value) if isinstance(value, str) else value for value in row) for row in rows]
        )


def storable(text: str) -> str:
    """The text with each lone surrogate, which SQLite cannot store, written as ``\\udcxx``."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
