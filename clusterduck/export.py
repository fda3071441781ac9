"""A sweep's runs as a file for pandas and its like: a row for each run, with a column for each override.

An override's column bears its key (``lr``), with ``override.`` before it where a column of ours has that name. Of a
return value that is a mapping, each entry has a column of its own, ``return_value.<key>``, too.
"""

from __future__ import annotations

import csv
import json
import math
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from clusterduck.errors import ConfigError
from clusterduck.ledger import queries
from clusterduck.ledger.queries import Run
from clusterduck.whole import written_whole
from clusterduck.wording import json_value

#: Columns that every export has; the overrides stand after ``reason``, what a return value holds at the end.
FIRST = ("run", "sweep", "number", "state", "attempt", "reason")
LAST = (
    *("return_value", "exception_type", "started_at", "ended_at", "duration_s", "host", "slot", "launch", "batch"),
    *("folder", "log"),
)

#: Runs that are in memory at a time.
PAGE = 2000

_NUMBER = re.compile(r"[+-]?(\d+|(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?)", re.ASCII)
_WORDS = {"true": True, "false": False, "null": None}


class Table:
    """The rows of one sweep, read page by page.

    Attributes:
        columns: the names of all columns.
    """

    def __init__(self, connection: sqlite3.Connection, sweep: str) -> None:
        self._connection = connection
        self._sweep = sweep
        keys: dict[str, None] = {}
        entries: dict[str, None] = {}
        for run in self._runs():
            keys |= dict.fromkeys(run.override_values)
            value = json_value(run.return_value)
            if isinstance(value, dict):
                entries |= dict.fromkeys(f"return_value.{key}" for key in value)
        taken = {*FIRST, *LAST, *entries}
        self._names = {key: f"override.{key}" if key in taken else key for key in keys}
        self.columns = [*FIRST, *self._names.values(), *LAST, *entries]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows: overrides that read like a number, true, false or null are that, all others text."""
        for run in self._runs():
            value = json_value(run.return_value)
            row: dict[str, Any] = dict.fromkeys(self.columns)
            row |= {name: getattr(run, name) for name in (*FIRST, *LAST) if name not in ("run", "return_value")}
            row["run"] = f"{run.sweep}/{run.number}"
            row |= {self._names[key]: typed(text) for key, text in run.override_values.items() if key in self._names}
            row["return_value"] = value
            if isinstance(value, dict):
                row |= {f"return_value.{key}": item for key, item in value.items()}
            yield {name: row[name] for name in self.columns}  # a run that came meanwhile brings no new column

    def _runs(self) -> Iterator[Run]:
        after = None
        while True:
            page = queries.runs(self._connection, self._sweep, after=after, limit=PAGE)
            yield from page
            if len(page) < PAGE:
                return
            after = queries.cursor(page[-1])


def typed(text: str) -> Any:
    """The value that an override's text stands for, where that is plain; otherwise the text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > 300:
        return text
    number = float(text)
    return int(text) if match[2] is None else number if math.isfinite(number) else text


def write_csv(file: TextIO, table: Table) -> int:
    """Write the rows as CSV; what is neither text nor number is JSON in its cell. Returns how many there were."""
    writer = csv.writer(file)
    writer.writerow(table.columns)
    count = 0
    for row in table:
        writer.writerow([_cell(value) for value in row.values()])
        count += 1
    return count


def write_lines(file: TextIO, table: Table) -> int:
    """Write each row as one line of JSON; NaN is null, as pandas takes it. Returns how many there were."""
    count = 0
    for row in table:
        file.write(json.dumps(_standard(row), allow_nan=False) + "\n")
        count += 1
    return count


#: How a file's name ends -> what is written into it.
FORMATS: dict[str, Callable[[TextIO, Table], int]] = {".csv": write_csv, ".jsonl": write_lines, ".ndjson": write_lines}


def export(connection: sqlite3.Connection, sweep: str, path: Path) -> int:
    """Write a sweep's runs to ``path``, whole or not at all. Returns how many there were.

    Raises:
        ConfigError: if the file's name does not say in which format.
        OSError: if it cannot be written; what had the name before is still there.
    """
    write = format_of(path)
    with written_whole(path) as file:
        count = write(file, Table(connection, sweep))
    return count


def format_of(path: Path) -> Callable[[TextIO, Table], int]:
    """What writes a file of this name.

    Raises:
        ConfigError: if nobody knows.
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise ConfigError(f"{str(path)!r} says not what is wanted: name a file that ends in .csv or .jsonl.") from None


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else value


def _standard(value: Any) -> Any:
    """What JSON has words for: NaN becomes null, the infinities text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _standard(item) for key, item in value.items()}
    return [_standard(item) for item in value] if isinstance(value, list) else value
