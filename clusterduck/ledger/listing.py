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
from typing import Any

from clusterduck.errors import ConfigError
from clusterduck.ledger import overrides
from clusterduck.ledger.queries import SORTS
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
    """The numbers of the runs that are listed, in order."""
    where, values = _where(listing)
    way = "DESC" if listing.descending else "ASC"
    column = None if listing.sort.startswith("=") else {**SORTS, **_MORE_SORTS}.get(listing.sort)
    if column == "number" and not listing.terms:
        low, high, count = connection.execute(
            "SELECT (SELECT min(number) FROM run WHERE sweep = :sweep), "
            "(SELECT max(number) FROM run WHERE sweep = :sweep), (SELECT runs FROM sweep WHERE id = :sweep)",
            {"sweep": listing.sweep},
        ).fetchall()[0]
        if count and high - low + 1 == count:
            return range(high, low - 1, -1) if listing.descending else range(low, high + 1)
    if column is None:
        if not listing.sort.startswith("="):
            raise ConfigError(f"Runs cannot be listed in the order of {listing.sort!r}.")
        return _by_override(connection, listing, where, values)
    if column == "number":
        sql = f"SELECT number FROM run WHERE {where} ORDER BY number {way}"  # noqa: S608  # only words of our own
        return _numbers(connection, sql, values)
    first = column.partition(",")[0]
    by = ", ".join(f"{name} {way}" for name in (*column.split(", "), "number"))
    found = _numbers(
        connection,
        f"SELECT number FROM run WHERE {where} AND {first} IS NOT NULL ORDER BY {by}",  # noqa: S608
        values,
    )
    found += _numbers(
        connection,
        f"SELECT number FROM run WHERE {where} AND {first} IS NULL ORDER BY number {way}",  # noqa: S608
        values,
    )
    return found


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


def _numbers(connection: sqlite3.Connection, sql: str, values: Sequence[Any]) -> array[int]:
    return array("I", [row[0] for row in connection.execute(sql, values).fetchall()])


def _by_override(connection: sqlite3.Connection, listing: Listing, where: str, values: Sequence[Any]) -> array[int]:
    """In the order of an override's values: as numbers if all of them are, else as text."""
    sql = f"SELECT number, overrides FROM run WHERE {where} ORDER BY number"  # noqa: S608
    rows = connection.execute(sql, values).fetchall()
    texts: list[tuple[str, int]] = []
    without: list[int] = []
    for number, text in rows:
        value = overrides.as_dict(json.loads(text)).get(listing.sort[1:]) if text else None
        if value is None:
            without.append(number)
        else:
            texts.append((value, number))
    try:
        found = [number for _, number in sorted(((float(value), n) for value, n in texts), reverse=listing.descending)]
    except ValueError:
        found = [number for _, number in sorted(texts, reverse=listing.descending)]
    return array("I", found + (without[::-1] if listing.descending else without))


def _where(listing: Listing) -> tuple[str, list[Any]]:
    parts, values = ["sweep = ?"], [listing.sweep]
    for term in listing.terms:
        part, more = _condition(term)
        parts.append(f"coalesce(NOT ({part}), 1)" if term.inverted else f"({part})")
        values += more
    return " AND ".join(parts), values


def _condition(term: Term) -> tuple[str, list[str]]:
    if term.kind == "state":
        states = _states(term.value)
        return f"state IN ({','.join('?' * len(states))})", list(states)
    if term.kind in ("node", "batch"):
        column = "host" if term.kind == "node" else "batch"
        return f"{column} LIKE ? ESCAPE '!'", [_like(term.value)]
    if term.kind == "override":
        quoted = json.dumps(term.value)[1:-1]
        return "overrides LIKE ? ESCAPE '!' OR overrides LIKE ? ESCAPE '!'", [
            _like(f'"{quoted}"'),
            _like(f'+{quoted}"'),
        ]
    return (
        "overrides LIKE ? ESCAPE '!' OR reason LIKE ? ESCAPE '!' OR host LIKE ? ESCAPE '!' OR state LIKE ? ESCAPE '!'",
        [_like(json.dumps(term.value)[1:-1]), _like(term.value), _like(term.value), _like(term.value)],
    )


def _like(text: str) -> str:
    """A pattern for what holds the text, with ``!`` as the sign that escapes."""
    return "%" + re.sub(r"([!%_])", r"!\1", text) + "%"


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
