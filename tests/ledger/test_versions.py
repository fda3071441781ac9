"""Old and new together: what released versions wrote is read for ever, and what newer ones write harms no older one."""

from __future__ import annotations

import gzip
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from crowd import folded_afresh
from journals_builder import BOOKKEEPING, SweepBuilder, tables

from clusterduck import events, journal
from clusterduck.ledger import schema
from clusterduck.ledger.publish import publish
from clusterduck.ledger.replica import Replica
from clusterduck.paths import LedgerPaths, SweepPaths

SAMPLES = sorted((Path(__file__).parent / "samples").iterdir())


# --- what released versions wrote


@pytest.fixture(params=SAMPLES, ids=lambda path: path.name)
def sample(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@contextmanager
def its_ledger(sample: Path, folder: Path) -> Iterator[sqlite3.Connection]:
    """The ledger as that version published it."""
    path = folder / "published-then.db"
    path.write_bytes(gzip.decompress((sample / "ledger.db.gz").read_bytes()))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def put_there(sample: Path, project: Path) -> SweepPaths:
    """That version's journals, in a project."""
    (journals,) = (path for path in sample.iterdir() if path.is_dir())
    ledger = LedgerPaths(project / ".clusterduck" / "ledger.db")
    ledger.create()
    sweep = SweepPaths.of(project / "out", journals.name)
    sweep.create()
    shutil.copytree(journals, sweep.root, dirs_exist_ok=True)
    for folder in (sweep.root, *sweep.root.rglob("*/")):
        folder.chmod(0o700)  # whatever the umask of the checkout
    (ledger.sweeps / journals.name).write_text(f"{sweep.root}\n")
    return sweep


def rows(connection: sqlite3.Connection, like: sqlite3.Connection, *folders: Path) -> dict[str, set[tuple[Any, ...]]]:
    """All that was folded, in the tables and columns that ``like`` has, wherever the sweep lies.

    Args:
        connection: the ledger.
        like: an older one.
        folders: where the sweep lay and lies.
    """
    found = {}
    for (table,) in like.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        if table not in BOOKKEEPING:
            columns = ", ".join(f'"{row[1]}"' for row in like.execute(f"PRAGMA table_info({table})").fetchall())
            found[table] = {
                tuple(_anywhere(value, folders) if isinstance(value, str) else value for value in row)
                for row in connection.execute(f"SELECT {columns} FROM {table}").fetchall()
            }
    return found


def _anywhere(value: str, folders: tuple[Path, ...]) -> str:
    for folder in folders:
        value = value.replace(str(folder), "<sweep>")
    return value


def test_the_journals_of_a_released_version_are_folded(sample: Path, tmp_path: Path) -> None:
    sweep = put_there(sample, tmp_path / "project")
    with its_ledger(sample, tmp_path) as then, Replica.open(tmp_path / "project/.clusterduck/ledger.db") as replica:
        then_folder = Path(then.execute("SELECT folder FROM sweep").fetchone()[0])
        assert replica.catch_up().problems == ()
        expected = rows(then, then, then_folder)
        assert {len(found) > 0 for table, found in expected.items() if table in ("run", "attempt", "act")} == {True}
        assert rows(replica.connection, then, sweep.sweep_dir, then_folder) == expected


def test_the_ledger_of_a_released_version_is_brought_up_to_date(sample: Path, tmp_path: Path) -> None:
    with its_ledger(sample, tmp_path) as then, closing(sqlite3.connect(":memory:", isolation_level=None)) as now:
        then.backup(now)
        schema.migrate(now, "the sample")
        assert schema.version(now) == len(schema.STEPS)
        assert rows(now, then) == rows(then, then)
        assert now.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_commands_go_on_with_what_a_released_version_left(sample: Path, tmp_path: Path) -> None:
    sweep = put_there(sample, tmp_path / "project")
    ledger = tmp_path / "project/.clusterduck/ledger.db"
    ledger.write_bytes(gzip.decompress((sample / "ledger.db.gz").read_bytes()))
    command = [sys.executable, "-m", "clusterduck.cli.main", "export", sweep.sweep, "-o", "runs.csv"]
    done = subprocess.run(command, cwd=tmp_path / "project", capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    with closing(sqlite3.connect(ledger)) as now:
        assert schema.version(now) == len(schema.STEPS)
        lines = (tmp_path / "project/runs.csv").read_text().splitlines()
        assert len(lines) == 1 + now.execute("SELECT count(*) FROM run").fetchone()[0]


# --- what newer versions write


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Makes this process one of a version that does not know where runs are located, and of ours again."""
    kind = events.AttemptLocated.name
    form = events._FORMS[kind]

    def become(is_older: bool) -> None:
        if is_older:
            monkeypatch.delitem(events._FORMS, kind)
        else:
            monkeypatch.setitem(events._FORMS, kind, form)

    return become


@pytest.mark.parametrize("is_open", [True, False])
def test_events_that_an_older_reader_passed_over_are_folded_once_it_is_upgraded(
    tmp_path: Path, older: Callable[[bool], None], is_open: bool
) -> None:
    sweep = SweepBuilder(tmp_path)
    sweep.write_all()
    older(True)
    with Replica.open(sweep.ledger) as replica:
        (problem,) = replica.catch_up().problems
        assert problem.startswith("A newer clusterduck has reported what this one does not know (located)")
        assert replica.catch_up().problems == (problem,)
        query = "SELECT count(*), sum(state = 'COMPLETED'), count(folder) FROM run"
        runs, completed, located = replica.connection.execute(query).fetchone()
        assert (runs, completed > 0, located) == (24, True, 0), "all else is there"
        assert publish(replica, sweep.ledger)
        if is_open:
            older(False)
            assert replica.catch_up().problems == ()
            assert replica.mended is not None and "older clusterduck" in replica.mended
    if not is_open:
        older(False)
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        assert (replica.mended is None) == is_open
        assert tables(replica.connection) == folded_afresh(sweep.ledger)
        assert publish(replica, sweep.ledger), "it knows no more of any journal, and more all the same"
        assert not publish(replica, sweep.ledger)
    with closing(sqlite3.connect(sweep.ledger)) as published:
        assert tables(published) == folded_afresh(sweep.ledger)


def test_a_newer_journal_is_left_alone_and_the_others_are_folded(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path)
    sweep.write_all(batches=2)
    path = sweep.agent_journal("0-0")
    newer = events.JournalOpened(version=events.VERSION + 1, sweep=sweep.sweep, writer="agent")
    path.write_bytes(journal.encode(newer) + path.read_bytes())
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    with Replica.open(sweep.ledger) as replica:
        (problem,) = replica.catch_up().problems
        assert "written by a newer clusterduck" in problem and "upgrade clusterduck here" in problem
        rows = replica.connection.execute("SELECT batch, count(*) FROM attempt GROUP BY batch").fetchall()
        assert rows == [("0-1", 12)]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
