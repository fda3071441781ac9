"""Which tables hold a sweep, to take one out of a replica, or over from an older file whose journals are gone."""

from __future__ import annotations

import sqlite3

from clusterduck.ledger.fold import immediate

#: Every table with rows of a sweep -> the column that names the sweep.
TABLES = {
    **dict.fromkeys(("launch", "batch", "agent", "run", "attempt", "slot", "sample", "act"), "sweep"),
    **dict.fromkeys(("override_key", "override_part", "journal", "visit"), "sweep"),
    "sweep": "id",
}


def forget(connection: sqlite3.Connection, sweep: str) -> None:
    """Remove all that is known of a sweep, in one transaction."""
    with immediate(connection):
        for table, column in TABLES.items():
            connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (sweep,))  # noqa: S608 - our own names


def take_over(connection: sqlite3.Connection, older: sqlite3.Connection, sweep: str) -> None:
    """Copy all that another file of ours, of the same schema version, knows of a sweep that is not known here.

    Raises:
        sqlite3.Error: if that file cannot be read to its end; then nothing was copied.
    """
    with immediate(connection):
        for table, column in TABLES.items():
            names = [f'"{row[1]}"' for row in connection.execute(f"PRAGMA table_info({table})").fetchall()]
            columns, marks = ", ".join(names), ", ".join("?" * len(names))
            rows = older.execute(f"SELECT {columns} FROM {table} WHERE {column} = ?", (sweep,))  # noqa: S608
            connection.executemany(f"INSERT INTO {table}({columns}) VALUES ({marks})", rows)  # noqa: S608
