"""The overrides of a sweep's runs by key, kept so that 100,000 runs are put in order by one, or searched, without
reading the runs.

A plan comes in parts, see ``events.RunsPlanned``. Of each part and key one row says which overrides there were, in the
order of their values, and which runs have each. Overrides never change, so a row is written once.
"""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise, repeat
from typing import Any, NamedTuple

from clusterduck.ledger import overrides
from clusterduck.ledger.merged import Merged
from clusterduck.ledger.tables import storable, write_rows

Plan = Sequence[tuple[int, Sequence[str]]]  # runs, each with its overrides

#: In place of a key: overrides that a later one of the same run overrides again. They are found, and order nothing.
OVERRIDDEN = ""

#: Parts with fewer runs than so many, on average, are put in order whole: to look into each takes longer.
_SMALL_PART = 100


class _Column(NamedTuple):
    position: int
    runs: dict[str, list[int]]  # by override


def write(connection: sqlite3.Connection, sweep: str, plans: Iterable[Plan]) -> None:
    """Keep what parts of a plan say, each run of which is new to the ledger."""
    for plan in plans:
        columns, overridden = _columns(plan)
        write_rows(
            connection,
            "INSERT INTO override_key(sweep, key, runs, smallest, largest, position) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT(sweep, key) DO UPDATE SET runs = runs + excluded.runs, "
            "smallest = min(smallest, excluded.smallest), largest = max(largest, excluded.largest), "
            "position = min(position, excluded.position)",
            [(sweep, key, *_extent(column)) for key, column in columns.items()],
        )
        parts = [(key, column.runs) for key, column in columns.items()]
        write_rows(
            connection,
            "INSERT OR REPLACE INTO override_part(sweep, key, first_run, last_run, overrides, counts, runs, numbers) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(sweep, key, *_part(runs)) for key, runs in [*parts, (OVERRIDDEN, overridden)] if runs],
        )


def _columns(plan: Plan) -> tuple[dict[str, _Column], dict[str, list[int]]]:
    """By key, which runs have which override; and those overrides that do not count."""
    columns: dict[str, _Column] = {}
    overridden: dict[str, list[int]] = {}
    keys: dict[str, str] = {}
    for number, texts in plan:
        its: dict[str, str] = {}
        for text in texts:
            key = keys.get(text)
            if key is None:
                key = keys[text] = storable(overrides.split(text)[0])
            if key in its:
                overridden.setdefault(its[key], []).append(number)
            its[key] = text
        for position, (key, text) in enumerate(its.items()):
            column = columns.get(key)
            if column is None or position < column.position:
                column = columns[key] = _Column(position, {} if column is None else column.runs)
            runs = column.runs.get(text)
            if runs is None:
                column.runs[text] = [number]
            else:
                runs.append(number)
    return columns, overridden


def _extent(column: _Column) -> tuple[int, str, str, int]:
    values = [storable(overrides.split(text)[1]) for text in column.runs]
    return sum(map(len, column.runs.values())), min(values), max(values), column.position


def _part(column: dict[str, list[int]]) -> tuple[int, int, str, str | None, bytes, bytes | None]:
    runs_of = {text: sorted(runs) for text, runs in column.items()}
    numbers = _numbers(overrides.split(text)[1] for text in runs_of)
    if numbers is None:
        ordered = sorted(runs_of, key=lambda text: (overrides.split(text)[1], runs_of[text][0]))
    else:
        by_text = dict(zip(runs_of, numbers, strict=True))
        ordered = sorted(runs_of, key=lambda text: (by_text[text], runs_of[text][0]))
    counts = [len(runs_of[text]) for text in ordered]
    runs = array("I", chain.from_iterable(runs_of[text] for text in ordered))
    return (
        min(runs),
        max(runs),
        json.dumps(ordered),
        json.dumps(counts) if len(runs) > len(counts) else None,
        _to_bytes(runs),
        None if numbers is None else _to_bytes(array("d", sorted(numbers))),
    )


def in_order(connection: sqlite3.Connection, sweep: str, key: str) -> array[int] | Merged:
    """The runs that have the key, in the order of its values: as numbers if all of them are, else as text.

    Runs with one value are in the order of their numbers.
    """
    rows = connection.execute(
        "SELECT first_run, last_run, counts, runs, numbers FROM override_part WHERE sweep = ? AND key = ? "
        "ORDER BY first_run",
        (sweep, storable(key)),
    ).fetchall()
    is_number = all(row[4] is not None for row in rows)
    values: list[Sequence[Any]]
    values = [_from_bytes("d", row[4]) for row in rows] if is_number else list(_values(connection, sweep, key))
    size = sum(len(row[3]) // 4 for row in rows)
    is_apart = all(before[1] < row[0] for before, row in pairwise(rows))
    if not is_apart or sum(map(len, values)) <= size / 4:
        return _by_few_values(rows, list(chain.from_iterable(values)))
    parts = []
    for (_, _, counts, stored, numbers), its in zip(rows, values, strict=True):
        runs, of_each = _from_bytes("I", stored), its
        if counts is not None:
            of_each = list(chain.from_iterable(map(repeat, its, json.loads(counts))))
        is_sorted = is_number or numbers is None  # else these are text now, in the order of their numbers
        if not is_sorted or (counts is not None and len(set(its)) < len(its)):  # or one is written in several ways
            pairs = sorted(zip(of_each, runs, strict=True))
            runs, of_each = array("I", [run for _, run in pairs]), [value for value, _ in pairs]
        parts.append((runs, of_each))
    merged = Merged(parts)
    return merged if size > _SMALL_PART * len(parts) else merged[:]


def _by_few_values(rows: Sequence[Any], values: Sequence[Any]) -> array[int]:
    """The same of any parts; it is quick where few values are in each."""
    runs = _from_bytes("I", b"".join(row[3] for row in rows))
    counts = [count for row in rows for count in (json.loads(row[2]) if row[2] else repeat(1, len(row[3]) // 4))]
    places = sorted(range(len(values)), key=values.__getitem__)
    ends = list(accumulate(counts))
    found = array("I")
    same: list[int] = []  # the runs of one value, from each part that has it
    value: float | str | None = None
    for place in places:
        if values[place] != value:
            found.extend(sorted(same))
            same, value = [], values[place]
        same.extend(runs[ends[place] - counts[place] : ends[place]])
    found.extend(sorted(same))
    return found


def are_numbers(connection: sqlite3.Connection, sweep: str, key: str) -> bool | None:
    """Whether all values of a key are numbers, so that they are ordered as such; None where no run has the key."""
    found = connection.execute(
        "SELECT min(numbers IS NOT NULL) FROM override_part WHERE sweep = ? AND key = ?",
        (sweep, storable(key)),
    ).fetchall()[0][0]
    return None if found is None else bool(found)


def having(connection: sqlite3.Connection, sweep: str, needle: str, holds: Callable[[str, str], bool]) -> array[int]:
    """The runs with an override that holds a text, upper and lower case of ASCII letters alike; some more than once.

    Args:
        connection: the ledger.
        sweep: the sweep.
        needle: stands in the override.
        holds: whether an override that it stands in will do, given that and the needle, both in lower case.
    """
    quoted = json.dumps(needle).lower()  # ASCII: what is none is escaped
    inside, needle = quoted[1:-1], json.loads(quoted)
    found = array("I")
    rows = connection.execute(
        "SELECT overrides, counts, runs FROM override_part WHERE sweep = ? ORDER BY key, first_run", (sweep,)
    ).fetchall()
    for texts, counts, its_runs in rows:
        lowered = texts.lower()
        if inside in lowered:
            runs = _from_bytes("I", its_runs)
            begin = 0
            sizes = json.loads(counts) if counts else repeat(1, len(runs))
            for text, size in zip(json.loads(lowered), sizes, strict=True):
                if needle in text and holds(text, needle):
                    found.extend(runs[begin : begin + size])
                begin += size
    return found


def _values(connection: sqlite3.Connection, sweep: str, key: str) -> Iterator[list[bytes]]:
    """The values of a key in each part, as text in UTF-8: it has the same order, and is cut in two thirds of the time.

    Most parts hold nothing but ``KEY=VALUE``, with no character that JSON writes with a backslash: a quotation mark is
    then the end of an override or the beginning of one, and to cut there is quicker than to read JSON.
    """
    begin, between = (_utf_8(f'{sign}"{key}=') for sign in ("[", '", '))
    for texts, count in connection.execute(
        "SELECT CAST(overrides AS BLOB), coalesce(json_array_length(counts), length(runs) / 4) FROM override_part "
        "WHERE sweep = ? AND key = ? ORDER BY first_run",
        (sweep, storable(key)),
    ).fetchall():
        values = texts[len(begin) : -2].split(between)
        if b"\\" in texts or not texts.startswith(begin) or len(values) < count:
            values = [_utf_8(overrides.split(text)[1]) for text in json.loads(texts)]
        yield values


def _utf_8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _numbers(texts: Iterable[str]) -> list[float] | None:
    """The texts as numbers, if all of them are."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return None
    return None if any(map(math.isnan, numbers)) else numbers


def _to_bytes(numbers: array[int] | array[float]) -> bytes:
    """Numbers as any machine reads them: the least byte first."""
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _from_bytes(kind: str, stored: bytes) -> array[int]:
    numbers: array[int] = array(kind, stored)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
