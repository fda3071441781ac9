"""Lists of runs for whoever scrolls through them: which runs, in which order, and pages of them by key.

The order is read once as bare numbers (four bytes a run), pages by the runs' numbers. So a place in the list is known
at once however long it is, and a selected run is found again in a new order.
"""

from __future__ import annotations

import json
import re
import sqlite3
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any

from clusterduck.errors import ConfigError
from clusterduck.ledger import columns
from clusterduck.ledger.queries import SORTS, like
from clusterduck.model import FAILED_STATES, State

#: Columns by which a list can be ordered besides ``SORTS``.
_MORE_SORTS = {"reason": "reason", "slot": "host, slot"}

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
        sort: one of ``SORTS``, ``reason``, ``slot``, or ``=`` and the key of an override.
        descending: the largest first; runs without a value come last either way.
    """

    sweep: str
    terms: tuple[Term, ...] = ()
    sort: str = "number"
    descending: bool = False


def parse_filter(text: str) -> tuple[Term, ...]:
    """Read a filter as people type it: words, ``state:failed``, ``node:n3``, ``batch:0-1``, ``lr=1e-3``; ``!`` inverts.

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
    valued = (
        columns.in_order(connection, listing.sweep, listing.sort[1:])
        if column is None
        else _by_column(connection, listing.sweep, column)
    )
    if listing.terms:
        valued = array("I", filter(wanted.__contains__, valued))
    wanted.keep(valued, inverted=True)
    rest = wanted.all()
    if listing.descending:
        valued, rest = valued[::-1], rest[::-1]
    return array("I", valued) + array("I", rest) if rest else valued


def states_of(connection: sqlite3.Connection, sweep: str, numbers: Iterable[int]) -> dict[str, int]:
    """How many of these runs are in which state."""
    counts: dict[str, int] = {}
    wanted = list(numbers)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        marks = ",".join("?" * len(part))
        sql = f"SELECT state, count(*) FROM run WHERE sweep = ? AND number IN ({marks}) GROUP BY state"  # noqa: S608
        for state, count in connection.execute(sql, [sweep, *part]).fetchall():
            counts[state] = counts.get(state, 0) + count
    return counts


class _Runs:
    """Some of the runs of a sweep, in the order of their numbers."""

    def __init__(self, every: Sequence[int]) -> None:
        self._every = every
        self._first = every[0] if every else 0
        self._is_apart = bool(every) and every[-1] - self._first + 1 > len(every)
        self._marks: bytearray | None = None  # by number, from the first one on; None: all of them

    def __contains__(self, number: int) -> bool:
        return self._marks is None or bool(self._marks[number - self._first])

    def keep(self, numbers: Iterable[int], *, inverted: bool = False) -> None:
        """Leave out all but these runs; or just these."""
        size = self._every[-1] - self._first + 1 if self._every else 0
        marks, mark, first = bytearray(size), b"\1"[0], self._first
        if inverted:
            marks, mark = bytearray(b"\1") * size if self._marks is None else self._marks, 0
        for number in numbers:
            marks[number - first] = mark
        if not inverted and self._marks is not None:
            both = int.from_bytes(self._marks, "big") & int.from_bytes(marks, "big")
            marks = bytearray(both.to_bytes(size, "big"))
        self._marks = marks

    def all(self) -> Sequence[int]:
        """All of them."""
        if self._marks is None:
            return self._every
        if self._is_apart:
            return array("I", filter(self.__contains__, self._every))
        return array("I", compress(self._every, self._marks))


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
        return _where(connection, sweep, "batch LIKE ? ESCAPE '!'", [like(term.value)])
    if term.kind == "override":
        return columns.having(connection, sweep, term.value, _is_override)
    states = [state.value for state in State if term.value.upper() in state.value]
    return chain(
        columns.having(connection, sweep, term.value, lambda text, needle: True),
        _where(connection, sweep, "reason IS NOT NULL AND reason LIKE ? ESCAPE '!'", [like(term.value)]),
        _with(connection, sweep, "host", _hosts(connection, sweep, term.value)),
        _with(connection, sweep, "state", states),
    )


def _is_override(text: str, wanted: str) -> bool:
    return text == wanted or text.endswith(f"+{wanted}")


def _with(connection: sqlite3.Connection, sweep: str, column: str, values: Sequence[str]) -> array[int]:
    marks = ",".join("?" * len(values))
    return _where(connection, sweep, f"{column} IS NOT NULL AND {column} IN ({marks})", values)


def _where(connection: sqlite3.Connection, sweep: str, condition: str, values: Sequence[str]) -> array[int]:
    return _numbers(connection, f"SELECT number FROM run WHERE sweep = ? AND {condition}", [sweep, *values])  # noqa: S608


def _hosts(connection: sqlite3.Connection, sweep: str, part: str) -> list[str]:
    """The hosts of runs whose name holds this; from one to the next by the index, because there are few."""
    rows = connection.execute(
        "WITH RECURSIVE one(host) AS (SELECT min(host) FROM run WHERE sweep = :sweep AND host IS NOT NULL UNION ALL "
        "SELECT (SELECT min(host) FROM run WHERE sweep = :sweep AND host IS NOT NULL AND host > one.host) FROM one "
        "WHERE one.host IS NOT NULL) SELECT host FROM one WHERE host LIKE :like ESCAPE '!'",
        {"sweep": sweep, "like": like(part)},
    ).fetchall()
    return [row[0] for row in rows]


def _states(text: str) -> tuple[str, ...]:
    """The states that a word means: its own, any that begin with it, or ``trouble``.

    Raises:
        ConfigError: if it means none.
    """
    word = text.upper()
    if word == "TROUBLE":
        return _TROUBLE
    found = tuple(state.value for state in State if state.value.startswith(word))
    if not found:
        raise ConfigError(f"{text!r} is no state; the states are {', '.join(State)}, or trouble for every failure.")
    return found
