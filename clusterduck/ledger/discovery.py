"""Which journals to look at: all that may have grown, and as few others as can be, because each costs a round trip.

What is over may come back to life (a requeue, a job that Slurm starts again), so nothing is passed over for good but
journals that say themselves that nothing follows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from clusterduck.ledger import times
from clusterduck.ledger.fold import immediate, name_of
from clusterduck.ledger.forget import forget
from clusterduck.ledger.tables import storable
from clusterduck.paths import LedgerPaths, SweepPaths, require_own

#: A sweep without a living batch is looked at again after this part of the time since its last event,
#: and at the latest after so many seconds.
RARELY = 1 / 60
RAREST_S = 600.0

#: In a sweep that lives, the folders of launches and batches that are over are listed so often, in seconds.
WHOLE_S = 30.0

#: Table -> columns that hold paths, most of them in the sweep's folder.
_PATHS = {"run": ("folder", "log"), "attempt": ("folder", "log", "result", "set_aside"), "batch": ("log_folder",)}


@dataclass(frozen=True)
class Visit:
    """A sweep to look at now; ``is_whole`` if also what is over in it."""

    sweep: str
    root: Path
    is_whole: bool


def due(connection: sqlite3.Connection, ledger: Path, now: float, look_at: Collection[str]) -> list[Visit]:
    """The sweeps to look at now, those first that were looked at longest ago.

    Args:
        connection: the replica.
        ledger: the ledger's path.
        now: seconds since the epoch.
        look_at: sweeps to look at in any case, and wholly.
    """
    known = {
        row[0]: row[1:]
        for row in connection.execute(
            "SELECT sweep.id, root, visited_at, last_event_at, EXISTS "
            "(SELECT 1 FROM batch WHERE batch.sweep = sweep.id AND batch.state IN ('PENDING', 'RUNNING')) "
            "FROM sweep LEFT JOIN visit ON visit.sweep = sweep.id"
        ).fetchall()
    }
    paths = LedgerPaths(ledger)
    found = []
    sweeps, pruned = paths.listed()
    for sweep in known.keys() & set(pruned).difference(sweeps):
        forget(connection, sweep)
    for sweep in sweeps:
        known_root, visited_at, last_event_at, is_alive = known.get(sweep, (None, None, None, False))
        is_whole = True
        if visited_at is not None and last_event_at is not None and sweep not in look_at:
            pause = min((now - times.to_seconds(last_event_at)) * RARELY, RAREST_S)
            is_whole = not 0 <= now - times.to_seconds(visited_at) < (WHOLE_S if is_alive else pause)
            if not (is_alive or is_whole):
                continue
        root = paths.sweep_root(sweep)
        if root is None:
            continue  # the next look finds it
        if known_root is not None and known_root != storable(str(root)):
            _note_root(connection, sweep, root)
        found.append((visited_at or "", Visit(sweep, root, is_whole)))
    return [visit for _, visit in sorted(found, key=lambda one: (one[0], one[1].sweep))]


def open_journals(connection: sqlite3.Connection, visit: Visit, owner: int) -> list[Path]:
    """The sweep's journals, but for those that are closed and folded, and what is over if the visit is not whole.

    Args:
        connection: the replica.
        visit: the sweep.
        owner: whose ledger it is; nobody else's sweeps belong there.

    Raises:
        FileNotFoundError: if the sweep's folder is gone.
        OSError: if it cannot be listed.
        UnsafePathError: if somebody else owns it or could write it.
    """
    require_own(visit.root, owner)
    over = set()
    if not visit.is_whole:
        for launch in connection.execute(
            "SELECT number FROM launch WHERE sweep = ? AND ended_at IS NOT NULL", (visit.sweep,)
        ).fetchall():
            over.add(visit.root / "launches" / str(launch[0]))
        for batch in connection.execute(
            "SELECT id FROM batch WHERE sweep = ? AND state NOT IN ('PENDING', 'RUNNING')", (visit.sweep,)
        ).fetchall():
            over.add(visit.root / "batches" / batch[0])
    found = connection.execute("SELECT path FROM journal WHERE sweep = ? AND closed = 1", (visit.sweep,)).fetchall()
    closed = {row[0] for row in found}
    journals = SweepPaths(visit.root).journals(passing_over=over)
    return [path for path in journals if name_of(visit.sweep, visit.root, path) not in closed]


def note(connection: sqlite3.Connection, visit: Visit, now: float) -> None:
    """Note that all of a sweep was looked at."""
    with immediate(connection):
        connection.execute(
            "INSERT INTO visit(sweep, visited_at) VALUES (?, ?) "
            "ON CONFLICT(sweep) DO UPDATE SET visited_at = excluded.visited_at",
            (visit.sweep, times.to_text(now)),
        )


def _note_root(connection: sqlite3.Connection, sweep: str, root: Path) -> None:
    """The sweep's folder was moved, and the file that says where it is was mended: all in it lies elsewhere now."""
    with immediate(connection):
        new = storable(str(root.parent.parent))
        old = connection.execute("SELECT folder FROM sweep WHERE id = ?", (sweep,)).fetchone()[0]
        connection.execute("UPDATE sweep SET folder = ?, root = ? WHERE id = ?", (new, storable(str(root)), sweep))
        for table, columns in _PATHS.items():
            for column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "  # noqa: S608 - ours
                    f"WHERE sweep = :sweep AND substr({column} || '/', 1, length(:old) + 1) = :old || '/'",
                    {"new": new, "old": old, "sweep": sweep},
                )
