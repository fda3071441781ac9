"""Lists of runs for whoever scrolls through them: which runs, in which order, and pages of them by key.

The order is read once as bare numbers (four bytes a run), or as the values from which any stretch of it follows; pages
by the runs' numbers. So a place in the list is known at once however long it is, and a selected run is found again in a
new order.
"""

from __future__ import annotations

import json
import re
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any

from clusterduck.errors import ConfigError
from clusterduck.ledger import columns
from clusterduck.ledger.merged import Merged
from clusterduck.ledger.queries import SORTS
from clusterduck.ledger.tables import storable
from clusterduck.model import FAILED_STATES, State

#: Columns by which a list can be ordered besides ``SORTS``.
_MORE_SORTS = {"slot": "host, slot"}

#: Columns of which most runs share one value.
_FEW_VALUES = ("state", "attempt")

#: States that are no trouble: ``only trouble`` shows all others.
_TROUBLE = tuple(state.value for state in FAILED_STATES)

_OVERRIDE = re.compile(r"[A-Za-z_][\w./@:-]*=.*", re.DOTALL)


@dataclass(frozen=True)
class Term:
    """One condition of a filter: ``kind`` is ``text``, ``state``, ``node``, ``batch`` or ``override``."""

    kind: str
    value: str
    inverted: bool = False


@dataclass(frozen=True)
class Listing:
    """Which runs of a sweep, and in which order.

    Attributes:
        sweep: the sweep's id.
        terms: all of them must hold.
        sort: one of ``SORTS``, ``slot``, or ``=`` and the key of an override.
        descending: the largest first; runs without a value come last either way.
    """

    sweep: str
    terms: tuple[Term, ...] = ()
    sort: str = "number"
    descending: bool = False


def parse_filter(text: str) -> tuple[Term, ...]:
    """Read a filter as people type it: words, ``state:failed,timeout``, ``node:n3``, ``batch:0-1``, ``lr=1e-3``.

    ``!`` before any of them inverts it.

    Raises:
        ConfigError: if a state is none. ``state:trouble`` stands for every end that is neither success nor a wish.
    """
    terms = []
    for typed in text.split():
        inverted = typed.startswith("!") and len(typed) > 1
        word = typed[1:] if inverted else typed
        name, colon, value = word.partition(":")
        if colon and value and name.lower() in ("state", "node", "batch"):
            kind = name.lower()
            if kind == "state":
                _states(value)
            terms.append(Term(kind, value, inverted))
        elif _OVERRIDE.fullmatch(word):
            terms.append(Term("override", word, inverted))
        else:
            terms.append(Term("text", word, inverted))
    return tuple(terms)


def order(connection: sqlite3.Connection, listing: Listing) -> Sequence[int]:
    """The numbers of the runs that are listed, in order.

    Raises:
        ConfigError: if they cannot be listed in this order.
    """
    with _standing_still(connection):
        return _order(connection, listing)


def in_any_order(order: Sequence[int]) -> Iterable[int]:
    """The same runs, as they are at hand: sooner where no more of the order was made than was looked at."""
    return order.in_any_order() if isinstance(order, Merged) else order


@contextmanager
def _standing_still(connection: sqlite3.Connection) -> Iterator[None]:
    """Several questions are about the same runs, though another process may add some meanwhile."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _order(connection: sqlite3.Connection, listing: Listing) -> Sequence[int]:
    every = _every_run(connection, listing.sweep)
    wanted = _Runs(every)
    for term in listing.terms:
        wanted.keep(_meant(connection, listing.sweep, term), inverted=term.inverted)
    column = None if listing.sort.startswith("=") else {**SORTS, **_MORE_SORTS}.get(listing.sort)
    if column is None and not listing.sort.startswith("="):
        raise ConfigError(f"Runs cannot be listed in the order of {listing.sort!r}.")
    if column == "number":
        found = wanted.all()
        return found[::-1] if listing.descending else found
    valued: array[int] | Merged
    if column is None:
        valued = columns.in_order(connection, listing.sweep, listing.sort[1:])
    elif column in _FEW_VALUES:
        valued = _by_few_values(connection, listing.sweep, column, every)
    elif column == "host":
        valued = _by_host(connection, listing.sweep)
    else:
        valued = _by_column(connection, listing.sweep, column)
    if listing.terms:
        valued = valued.only(wanted.has) if isinstance(valued, Merged) else array("I", filter(wanted.has, valued))
    rest: Sequence[int] = ()
    if len(valued) < len(every):
        wanted.keep(in_any_order(valued), inverted=True)
        rest = wanted.all()[::-1] if listing.descending else wanted.all()
    if isinstance(valued, Merged):
        return valued.then(rest, descending=listing.descending)
    if listing.descending:
        valued = valued[::-1]
    return valued + array("I", rest) if rest else valued


class _Runs:
    """Some of the runs of a sweep, in the order of their numbers."""

    def __init__(self, every: Sequence[int]) -> None:
        self._every = every
        self._first, self._size = (every[0], every[-1] + 1) if every else (0, 0)
        self._is_apart = self._size - self._first > len(every)
        self._marks: bytearray | None = None  # by number; None: all of them

    def keep(self, numbers: Iterable[int], *, inverted: bool = False) -> None:
        """Leave out all but these runs; or just these."""
        marks, mark = bytearray(self._size), b"\1"[0]
        if inverted:
            marks, mark = bytearray(b"\1") * self._size if self._marks is None else self._marks, 0
        for number in numbers:
            marks[number] = mark
        if not inverted and self._marks is not None:
            both = int.from_bytes(self._marks, "big") & int.from_bytes(marks, "big")
            marks = bytearray(both.to_bytes(self._size, "big"))
        self._marks = marks

    def all(self) -> Sequence[int]:
        """All of them."""
        if self._marks is None:
            return self._every
        if self._is_apart:
            return array("I", filter(self.has, self._every))
        return array("I", compress(self._every, memoryview(self._marks)[self._first :]))

    @property
    def has(self) -> Callable[[int], object]:
        """Tells of a run of the sweep whether it is one of them: a hundred thousand are asked about."""
        return self._every.__contains__ if self._marks is None else self._marks.__getitem__


def _every_run(connection: sqlite3.Connection, sweep: str) -> Sequence[int]:
    low, high, count = connection.execute(
        "SELECT (SELECT min(number) FROM run WHERE sweep = :sweep), "
        "(SELECT max(number) FROM run WHERE sweep = :sweep), (SELECT runs FROM sweep WHERE id = :sweep)",
        {"sweep": sweep},
    ).fetchall()[0]
    if not count:
        return range(0)
    if high - low + 1 == count:
        return range(low, high + 1)
    return _numbers(connection, "SELECT number FROM run WHERE sweep = ? ORDER BY number", [sweep])


def _by_column(connection: sqlite3.Connection, sweep: str, column: str) -> array[int]:
    """The runs that have a value there, in the order of the values, and of their numbers where it is the same."""
    first = column.partition(",")[0]
    sql = f"SELECT number FROM run WHERE sweep = ? AND {first} IS NOT NULL ORDER BY {column}, number"  # noqa: S608
    return _numbers(connection, sql, [sweep])


def _by_few_values(connection: sqlite3.Connection, sweep: str, column: str, every: Sequence[int]) -> array[int]:
    """The same where many runs share a value: those with the one in the middle are the others' rest, and not read."""
    middle = connection.execute(
        f"SELECT {column} FROM run WHERE sweep = ? AND {column} IS NOT NULL ORDER BY {column} LIMIT 1 OFFSET ?",  # noqa: S608
        [sweep, len(every) // 2],
    ).fetchall()
    if not middle:
        return _by_column(connection, sweep, column)
    before, after, neither = (
        _numbers(
            connection,
            f"SELECT number FROM run WHERE sweep = ? AND {column} {others} ORDER BY {column}, number",  # noqa: S608
            [sweep, *values],
        )
        for others, values in (("< ?", middle[0]), ("> ?", middle[0]), ("IS NULL", ()))
    )
    rest = _Runs(every)
    for others in (before, after, neither):
        rest.keep(others, inverted=True)
    return before + array("I", rest.all()) + after


def _by_host(connection: sqlite3.Connection, sweep: str) -> array[int]:
    """The same by host, whose index has the runs of each by slot: to put these in order here is quicker than there."""
    sql = "SELECT json_group_array(number) FROM run WHERE sweep = ? AND host IS NOT NULL GROUP BY host ORDER BY host"
    found = array("I")
    for (numbers,) in connection.execute(sql, [sweep]).fetchall():
        found.extend(sorted(json.loads(numbers)))
    return found


def _numbers(connection: sqlite3.Connection, sql: str, values: Sequence[Any]) -> array[int]:
    """Numbers, in one piece: as many rows take twice as long."""
    found = connection.execute(f"SELECT json_group_array(number) FROM ({sql})", values).fetchall()  # noqa: S608
    return array("I", json.loads(found[0][0]))


def _meant(connection: sqlite3.Connection, sweep: str, term: Term) -> Iterable[int]:
    """The runs that a term means, in any order, some more than once."""
    if term.kind == "state":
        return _with(connection, sweep, "state", _states(term.value))
    if term.kind == "node":
        return _with(connection, sweep, "host", _hosts(connection, sweep, term.value))
    if term.kind == "batch":
        return _with(connection, sweep, "batch", _batches(connection, sweep, term.value))
    if term.kind == "override":
        return columns.having(connection, sweep, term.value, _is_override)
    states = [state.value for state in State if term.value.upper() in state.value]
    return chain(
        columns.having(connection, sweep, term.value, lambda text, needle: True),
        _where(connection, sweep, "reason IS NOT NULL AND reason LIKE ? ESCAPE '!'", [_like(term.value)]),
        _with(connection, sweep, "host", _hosts(connection, sweep, term.value)),
        _with(connection, sweep, "state", states),
    )


def _is_override(text: str, wanted: str) -> bool:
    return text == wanted or text.endswith(f"+{wanted}")


def _with(connection: sqlite3.Connection, sweep: str, column: str, values: Sequence[str]) -> array[int]:
    if not values:  # SQLite would look at every run of every sweep
        return array("I")
    marks = ",".join("?" * len(values))
    return _where(connection, sweep, f"{column} IN ({marks})", values)


def _where(connection: sqlite3.Connection, sweep: str, condition: str, values: Sequence[str]) -> array[int]:
    return _numbers(connection, f"SELECT number FROM run WHERE sweep = ? AND {condition}", [sweep, *values])  # noqa: S608


def _hosts(connection: sqlite3.Connection, sweep: str, part: str) -> list[str]:
    """The hosts of runs whose name holds this; from one to the next by the index, because there are few."""
    rows = connection.execute(
        "WITH RECURSIVE one(host) AS (SELECT min(host) FROM run WHERE sweep = :sweep AND host IS NOT NULL UNION ALL "
        "SELECT (SELECT min(host) FROM run WHERE sweep = :sweep AND host IS NOT NULL AND host > one.host) FROM one "
        "WHERE one.host IS NOT NULL) SELECT host FROM one WHERE host LIKE :like ESCAPE '!'",
        {"sweep": sweep, "like": _like(part)},
    ).fetchall()
    return [row[0] for row in rows]


def _batches(connection: sqlite3.Connection, sweep: str, part: str) -> list[str]:
    rows = connection.execute("SELECT id FROM batch WHERE sweep = ? AND id LIKE ? ESCAPE '!'", [sweep, _like(part)])
    return [row[0] for row in rows.fetchall()]


def _like(text: str) -> str:
    """A pattern for what holds the text, with ``!`` as the sign that escapes."""
    return "%" + re.sub(r"([!%_])", r"!\1", storable(text)) + "%"


def _states(text: str) -> tuple[str, ...]:
    """The states that a word means: its own, any that begin with it, or ``trouble``; or those of several words.

    Raises:
        ConfigError: if it means none.
    """
    if "," in text:
        return tuple(dict.fromkeys(state for word in text.split(",") for state in _states(word)))
    word = text.upper()
    if word == "TROUBLE":
        return _TROUBLE
    found = tuple(state.value for state in State if state.value.startswith(word))
    if not found:
        raise ConfigError(f"{text!r} is no state; the states are {', '.join(State)}, or trouble for every failure.")
    return found
