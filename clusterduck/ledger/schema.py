"""The ledger's tables, how an older file is brought up to date, and how a newer one is refused.

Each schema version is one step that sqlite-utils applies; all of them run in one ``BEGIN IMMEDIATE`` transaction, so
that any number of processes may start on a new file at once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from clusterduck.errors import LedgerError
from clusterduck.events import RUNS_PER_LINE
from clusterduck.ledger.columns import Plan
from clusterduck.ledger.columns import write as write_columns

if TYPE_CHECKING:
    from sqlite_utils import Database

#: Stands in every file of ours at the place SQLite keeps for it ("cldk").
APPLICATION_ID = 0x636C646B

Step = Callable[["Database"], None]

#: The attempts that came to neither a good end nor none yet, as an index of them alone has it. For a list of three
#: SQLite would build a table for each row that it writes, a quarter of an attempt's time.
IN_TROUBLE = "state <> 'COMPLETED' AND state <> 'RUNNING' AND state <> 'PENDING'"

#: All indexes but those that come with the tables' keys. One that is altered here takes a new step, which may be empty.
INDEXES = {
    "run_by_state": "run(sweep, state, number)",
    "run_by_ended": "run(sweep, ended_at, number) WHERE ended_at IS NOT NULL",
    "run_by_duration": "run(sweep, duration_s, number) WHERE duration_s IS NOT NULL",
    "run_by_return": "run(sweep, return_number, number) WHERE return_number IS NOT NULL",
    "run_by_started": "run(sweep, started_at, number) WHERE started_at IS NOT NULL",
    "run_by_attempt": "run(sweep, attempt, number)",
    "run_by_batch": "run(sweep, batch, number)",
    "run_by_reason": "run(sweep, reason, number) WHERE reason IS NOT NULL",
    "run_by_host": "run(sweep, host, slot, number) WHERE host IS NOT NULL",
    "attempt_open": "attempt(sweep, batch, restart, node, slot) WHERE reported = 0",
    "attempt_by_slot": "attempt(sweep, batch, restart, node, slot, started_at, ended_at, state, run, number)",
    "attempt_in_trouble": f"attempt(sweep, batch, restart, node, slot, started_at) WHERE {IN_TROUBLE}",
    "batch_alive": "batch(sweep) WHERE state IN ('PENDING', 'RUNNING')",
    "agent_alive": "agent(sweep, batch) WHERE state = 'RUNNING'",
    "act_by_sweep": "act(sweep, kind, batch)",
    "journal_by_sweep": "journal(sweep)",
}

#: Those that only readers ask for: folding finds runs by their numbers, and a new replica gets these once it is filled.
READERS_INDEXES = frozenset(name for name, columns in INDEXES.items() if columns.startswith("run("))

#: Those that folding seldom asks for, and makes when it does: a file that nobody reads yet gets these, too, once it is
#: filled.
SELDOM_NEEDED = frozenset({"attempt_by_slot", "attempt_in_trouble"})

#: With so many runs in an older file, who waits for it to be brought up to date is told: that takes seconds.
RUNS_WORTH_A_WORD = 50_000


def _first_tables(db: Database) -> None:
    keyed: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "sweep": (
            ("id",),
            {"id": str, "folder": str, "root": str, "job_name": str, "user": str, "host": str, "cwd": str}
            | {"command": str, "launcher": str, "created_at": str, "launches": int}
            | {"git_commit": str, "git_dirty": int, "runs": int, "planned": int}
            | {"pending": int, "running": int, "completed": int, "failed": int, "cancelled": int}
            | {"timeout": int, "out_of_memory": int, "node_fail": int, "preempted": int},
        ),
        "launch": (
            ("sweep", "number"),
            {"sweep": str, "number": int, "started_at": str, "ended_at": str, "job_name": str, "user": str}
            | {"host": str, "pid": int, "cwd": str, "command": str, "launcher": str, "settings": str}
            | {"python": str, "versions": str, "git_commit": str, "git_dirty": int},
        ),
        "batch": (
            ("sweep", "id"),
            {"sweep": str, "id": str, "launch": int, "first_run": int, "stop_run": int, "nodes": int}
            | {"slots_per_node": int, "share_runs": int, "cluster": str, "job_id": str, "submit_host": str}
            | {"log_folder": str, "planned_at": str, "submitted_at": str, "state": str, "reason": str}
            | {"started_at": str, "ended_at": str, "attempts": str},
        ),
        "agent": (
            ("sweep", "batch", "restart", "node"),
            {"sweep": str, "batch": str, "restart": int, "node": int, "host": str, "pid": int, "cluster": str}
            | {"job_id": str, "slots": int, "busy": int, "started_at": str, "ends_at": str, "heartbeat_at": str}
            | {"seen_at": str, "state": str, "reason": str, "exit_code": int, "ended_at": str},
        ),
        "run": (
            ("sweep", "number"),
            {"sweep": str, "number": int, "launch": int, "batch": str, "overrides": str, "state": str}
            | {"attempt": int, "reason": str, "return_value": str, "return_number": float, "started_at": str}
            | {"ended_at": str, "duration_s": float, "host": str, "slot": int, "folder": str, "log": str}
            | {"exception_type": str},
        ),
        "attempt": (
            ("sweep", "run", "number"),
            {"sweep": str, "run": int, "number": int, "batch": str, "restart": int, "node": int, "slot": int}
            | {"host": str, "pid": int, "cpus": str, "gpus": str, "state": str, "reason": str, "exit_code": int}
            | {"signal": int, "exception_type": str, "exception_message": str, "traceback": str}
            | {"return_value": str, "started_at": str, "ended_at": str, "duration_s": float}
            | {"peak_memory_bytes": int, "cpu_time_s": float, "folder": str, "log": str, "result": str}
            | {"git_commit": str, "git_dirty": int, "spawned_at": str, "reported": int}
            | {"queued_at": str, "cancelled_at": str, "cancel_reason": str, "by_job_end": int},
        ),
    }
    for name, (key, columns) in keyed.items():
        db.table(name).create(columns, pk=key if len(key) > 1 else key[0])
    compact: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "slot": (
            ("sweep", "batch", "restart", "node", "slot"),
            {"sweep": str, "batch": str, "restart": int, "node": int, "slot": int, "host": str, "cpus": str}
            | {"gpus": str, "run": int, "attempt": int, "since": str},
        ),
        "sample": (
            ("sweep", "batch", "restart", "node", "slot", "taken_at"),
            {"sweep": str, "batch": str, "restart": int, "node": int, "slot": int, "taken_at": str}
            | {"cpu_percent": float, "memory_bytes": int, "gpu_percent": float, "gpu_memory_bytes": int},
        ),
        "act": (
            ("id",),
            {"id": str, "sweep": str, "kind": str, "batch": str, "run": int, "attempt": int, "job_id": str}
            | {"user": str, "host": str, "at": str, "state": str, "reason": str, "detail": str},
        ),
        "override_key": (
            ("sweep", "key"),
            {"sweep": str, "key": str, "runs": int, "smallest": str, "largest": str, "position": int},
        ),
        "journal": (
            ("path",),
            {"path": str, "sweep": str, "offset": int, "bad_at": int, "bad_until": int, "bad_since": str}
            | {"closed": int},
        ),
        "visit": (("sweep",), {"sweep": str, "visited_at": str, "last_event_at": str}),
        "meta": (("key",), {"key": str, "value": str}),
    }
    for name, (key, columns) in compact.items():
        sql = db.create_table_sql(name, columns, pk=key if len(key) > 1 else key[0])
        db.execute(sql.rstrip().rstrip(";") + " WITHOUT ROWID")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _drained_agents_and_folders_set_aside(db: Database) -> None:
    db.execute("ALTER TABLE agent ADD COLUMN draining INTEGER")
    db.execute("ALTER TABLE attempt ADD COLUMN set_aside TEXT")


def _slots_over_time(db: Database) -> None:
    db.execute("ALTER TABLE agent ADD COLUMN busy_ms INTEGER NOT NULL DEFAULT 0")
    if db.execute("SELECT 1 FROM attempt LIMIT 1").fetchone() is None:
        return  # a new file, which may get its indexes once it is filled
    make_index(db.conn, "attempt_by_slot")  # or every agent's attempts would be looked for among all
    db.execute(
        "UPDATE agent SET busy_ms = (SELECT coalesce(sum(CAST(round(duration_s * 1000) AS INTEGER)), 0) FROM attempt "
        "WHERE (attempt.sweep, attempt.batch, attempt.restart, attempt.node) = "
        "(agent.sweep, agent.batch, agent.restart, agent.node))"
    )


def _overrides_by_key(db: Database) -> None:
    db.execute(
        "CREATE TABLE override_part(sweep TEXT, key TEXT, first_run INTEGER, last_run INTEGER, overrides TEXT, "
        "counts TEXT, runs BLOB, numbers BLOB, PRIMARY KEY (sweep, key, first_run))"
    )
    db.execute("DELETE FROM override_key")  # told together with the parts
    for (sweep,) in db.execute("SELECT id FROM sweep").fetchall():
        write_columns(db.conn, sweep, _plans(db, sweep))


def _plans(db: Database, sweep: str) -> Iterator[Plan]:
    """The runs of a sweep with their overrides, so many at a time as a launch has planned at once."""
    rows = db.execute(
        "SELECT launch, number, overrides FROM run WHERE sweep = ? AND overrides IS NOT NULL ORDER BY number", (sweep,)
    )
    for _, its in groupby(rows, key=itemgetter(0)):
        while part := [(number, json.loads(texts)) for _, number, texts in islice(its, RUNS_PER_LINE)]:
            yield part


def _attempts_by_slot(db: Database) -> None:
    """An index that has all that the timeline shows, and one of the attempts in trouble."""


def _attempts_in_trouble(db: Database) -> None:
    """Their index says by other words which these are."""


def _fewer_readings(db: Database) -> None:
    """Of each slot as many as are shown while its agent lives, and a few of the last once it has ended."""
    db.execute(
        "WITH placed AS (SELECT sample.*, row_number() OVER (PARTITION BY sweep, batch, restart, node, slot "
        "ORDER BY taken_at DESC) AS place FROM sample) "
        "DELETE FROM sample WHERE (sweep, batch, restart, node, slot, taken_at) IN "
        "(SELECT sweep, batch, restart, node, slot, taken_at FROM placed "
        "LEFT JOIN agent USING (sweep, batch, restart, node) "
        "WHERE place > CASE WHEN exit_code IS NULL THEN 180 ELSE 10 END)"
    )


#: Schema version n is what the first n steps make.
STEPS: tuple[Step, ...] = (
    _first_tables,
    _drained_agents_and_folders_set_aside,
    _slots_over_time,
    _overrides_by_key,
    _attempts_by_slot,
    _attempts_in_trouble,
    _fewer_readings,
)


def version(connection: sqlite3.Connection) -> int:
    """The schema version of the open file; 0 for an empty one.

    Raises:
        sqlite3.DatabaseError: if it is no SQLite database, a damaged one, or one of somebody else's.
    """
    is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    # asked second: another process may make the tables, and with them this number, between the two
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        if is_empty:
            return 0
        raise sqlite3.DatabaseError("it holds something else than a clusterduck ledger")
    return int(get_meta(connection, "schema_version") or 0)


def require_readable(found: int, what: object, steps: Sequence[Step] | None = None) -> None:
    """Refuse a schema that a newer clusterduck made.

    Raises:
        LedgerError: if so.
    """
    known = len(STEPS if steps is None else steps)
    if found > known:
        raise LedgerError(
            f"{what} was made by a newer clusterduck (schema version {found}, this one knows up to {known}): "
            f"upgrade clusterduck here. Nothing was changed."
        )


def missing_indexes(connection: sqlite3.Connection) -> list[str]:
    """The indexes that a file which was new has not got yet."""
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall()}
    return [name for name in INDEXES if name not in there]


def make_indexes(connection: sqlite3.Connection, but: Collection[str] = ()) -> None:
    """Make the indexes that are missing, but for some, and make anew those that were others in an older version."""
    there = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index'").fetchall())
    for name, columns in INDEXES.items():
        if there.get(name, "").rpartition(f"{name} ON ")[2] not in ("", columns):
            drop_index(connection, name)
        if name not in but:
            make_index(connection, name)


def make_index(connection: sqlite3.Connection, name: str) -> None:
    """Make an index, unless it is there."""
    connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {INDEXES[name]}")


def drop_index(connection: sqlite3.Connection, name: str) -> None:
    """Drop an index, if it is there."""
    connection.execute(f"DROP INDEX IF EXISTS {name}")


def migrate(
    connection: sqlite3.Connection,
    what: object,
    steps: Sequence[Step] | None = None,
    *,
    later: Collection[str] = (),
    tell: Callable[[str], object] = lambda _: None,
) -> None:
    """Bring the open file to the newest schema. Safe in any number of processes at once.

    Args:
        connection: in autocommit mode (``isolation_level=None``).
        what: names the file in errors.
        steps: the schema's history; :data:`STEPS` unless given.
        later: indexes that an empty file gets later, by :func:`make_index`: in a file with all its rows that takes a
            fraction of the time.
        tell: is told what takes long, if it does.

    Raises:
        LedgerError: if a newer version made the file.
        sqlite3.DatabaseError: as :func:`version`.
    """
    steps = STEPS if steps is None else steps
    found = version(connection)
    require_readable(found, what, steps)
    if found == len(steps):
        return
    from sqlite_utils import Database, Migrations  # 0.2 s to import, and seldom needed

    connection.execute("BEGIN IMMEDIATE")
    try:
        if version(connection) < len(steps):  # else another process was faster
            if found and (connection.execute("SELECT max(rowid) FROM run").fetchone()[0] or 0) >= RUNS_WORTH_A_WORD:
                tell("bringing this host's copy of the ledger up to date, for a newer clusterduck; this is done once")
            migrations = Migrations("clusterduck")
            for step in steps:
                migrations()(step)
            migrations.apply(Database(connection, recursive_triggers=False))
            make_indexes(connection, () if found else later)
            set_meta(connection, "schema_version", len(steps))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def get_meta(connection: sqlite3.Connection, key: str) -> str | None:
    """A value of the ``meta`` table, or None where there is none."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def is_of(connection: sqlite3.Connection, mark: str | None) -> bool:
    """Whether the file may belong to the ledger with this mark, see ``LedgerPaths.mark``."""
    return mark is None or get_meta(connection, "mark") in (None, mark)


def set_meta(connection: sqlite3.Connection, key: str, value: object) -> None:
    """Write a value of the ``meta`` table."""
    connection.execute("INSERT OR REPLACE INTO meta(key, value) VALUES (?, ?)", (key, str(value)))


def unknown_kinds(connection: sqlite3.Connection) -> frozenset[str]:
    """The kinds of events that were passed over when this file was folded, because that version did not know them."""
    return frozenset((get_meta(connection, "unknown_events") or "").split())


def note_unknown(connection: sqlite3.Connection, kinds: Iterable[str]) -> None:
    """Note that events of these kinds were passed over."""
    new = {"".join(kind.split()) for kind in kinds}
    if new:
        set_meta(connection, "unknown_events", " ".join(sorted(new | unknown_kinds(connection))))
