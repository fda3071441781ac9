"""What stands where a ledger should: nothing, an empty file, a damaged one, something else, or a sound ledger."""

from __future__ import annotations

import sqlite3
import struct
from enum import Enum
from pathlib import Path

from clusterduck.errors import LedgerError
from clusterduck.ledger import schema


class Condition(Enum):
    """The condition of a file, with what a person is told of it."""

    ABSENT = "is not there"
    EMPTY = "is empty"
    DAMAGED = "is damaged"
    FOREIGN = "is not a clusterduck ledger"
    NEWER = "was made by a newer clusterduck"
    SOUND = "is sound"


#: What is made anew from the journals without a question.
MENDED = (Condition.EMPTY, Condition.DAMAGED, Condition.FOREIGN)


def look(path: Path, *, thoroughly: bool = False) -> Condition:
    """Look at the file, without changing it or anything beside it.

    Args:
        path: of a published ledger; nobody modifies it in place.
        thoroughly: read all of it (seconds for a large one), not only its beginning.

    Raises:
        OSError: if it cannot be read, but for not being there.
    """
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        return Condition.ABSENT
    if not head:
        return Condition.EMPTY
    if head[:16] != b"SQLite format 3\0" or head[68:72] != struct.pack(">I", schema.APPLICATION_ID):
        return Condition.FOREIGN
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            schema.require_readable(schema.version(connection), path)
            connection.execute("SELECT count(*) FROM sweep").fetchone()
            connection.execute("SELECT count(*) FROM journal").fetchone()
            sound = not thoroughly or connection.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok"
        finally:
            connection.close()
    except LedgerError:
        return Condition.NEWER
    except sqlite3.Error:
        return Condition.DAMAGED
    return Condition.SOUND if sound else Condition.DAMAGED
