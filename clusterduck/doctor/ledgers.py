"""The ledger that sweeps launched in a folder go to, and this host's replica of it, as far as there are any."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from clusterduck.doctor.finding import Finding, Level
from clusterduck.errors import UnsafePathError
from clusterduck.ledger import condition, schema
from clusterduck.ledger.condition import Condition
from clusterduck.ledger.replica import NAME
from clusterduck.paths import LedgerPaths, find_ledger, require_own

#: A file larger than this, in bytes, is not read whole: it would take too long.
MOST_BYTES = 512 << 20


def check(folder: Path, explicit: str | None) -> Iterator[Finding]:
    """Whether both are sound, and their folders the user's alone. Neither is changed."""
    ledger = find_ledger(folder, explicit)
    if ledger is None:
        yield Finding("ledger", "the ledger that governs the folder", "none yet; the first sweep makes it")
        return
    paths = LedgerPaths(ledger)
    tested = f"the ledger {ledger}"
    for place in (ledger.parent, paths.sweeps, paths.replica_folder.parent, paths.replica_folder):
        try:
            require_own(place)
        except FileNotFoundError:
            continue
        except UnsafePathError as error:
            yield Finding("ledger", "who could write the ledger's folders", str(error), Level.BAD)
    thoroughly = not ledger.exists() or ledger.stat().st_size <= MOST_BYTES
    found = condition.look(ledger, thoroughly=thoroughly)
    words = f"it {found.value}, {len(paths.sweep_ids())} sweeps are entered beside it"
    if found in condition.MENDED:
        yield Finding("ledger", tested, words, Level.BAD, "Run `clusterduck rebuild`.")
    elif found is Condition.NEWER:
        yield Finding("ledger", tested, words, Level.BAD, "Upgrade clusterduck here.")
    elif found is Condition.ABSENT and paths.sweep_ids():
        yield Finding("ledger", tested, words, Level.NOTE, "Run `clusterduck status`: it is made from the journals.")
    else:
        yield Finding("ledger", tested, words)
    yield from _check_replica(paths.replica_folder / NAME)


def _check_replica(replica: Path) -> Iterator[Finding]:
    tested = f"this host's replica {replica}"
    if not replica.exists():
        yield Finding("replica", tested, "none yet; the first look makes it")
        return
    if replica.stat().st_size > MOST_BYTES:
        yield Finding("replica", tested, "it is too large to be read whole here")
        return
    try:
        connection = sqlite3.connect(f"{replica.as_uri()}?mode=ro", uri=True, timeout=2.0)
        try:
            schema.version(connection)
            sound = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error as error:
        sound = str(error)
    if sound == "ok":
        yield Finding("replica", tested, "it is sound")
    else:
        yield Finding("replica", tested, sound, Level.BAD, "Run `clusterduck rebuild`, or delete the file.")
