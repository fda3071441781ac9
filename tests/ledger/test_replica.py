"""Opening a replica (private, migrated, made anew when damaged or taken away), and catching up."""

from __future__ import annotations

import os
import queue
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from journals_builder import START, SweepBuilder, make_older, tables

from clusterduck import events, journal
from clusterduck.errors import LedgerError, UnsafePathError
from clusterduck.ledger import discovery, schema, settle
from clusterduck.ledger import replica as replica_module
from clusterduck.ledger.publish import publish
from clusterduck.ledger.replica import Replica
from clusterduck.paths import LedgerPaths


@pytest.fixture
def sweep(tmp_path: Path) -> SweepBuilder:
    builder = SweepBuilder(tmp_path)
    builder.write_all(runs=8, batches=1)
    return builder


def completed(replica: Replica) -> int:
    return int(replica.connection.execute("SELECT coalesce(sum(completed), 0) FROM sweep").fetchone()[0])


def opened_and_closed(ledger: Path, tell: Callable[[str], object]) -> int:
    with Replica.open(ledger, tell=tell) as replica:
        return completed(replica)


def replica_file(sweep: SweepBuilder) -> Path:
    return LedgerPaths(sweep.ledger).replica_folder / replica_module.NAME


def test_it_is_for_the_owner_alone_whatever_the_umask(
    sweep: SweepBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where no other test has made a folder before
    before = os.umask(0)
    try:
        with Replica.open(sweep.ledger) as replica:
            replica.catch_up()
            for path in (replica.path.parent.parent, replica.path.parent, *replica.path.parent.iterdir()):
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    finally:
        os.umask(before)


def test_hosts_that_share_a_temporary_folder_share_no_replica(
    sweep: SweepBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replica_file(sweep)
    uname = os.uname()
    monkeypatch.setattr("os.uname", lambda: os.uname_result((uname[0], "another-host", *uname[2:])))
    assert replica_file(sweep) != here


def test_a_folder_that_others_could_write_is_refused(
    sweep: SweepBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = LedgerPaths(sweep.ledger).replica_folder
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(UnsafePathError, match="can be written by other users"):
        Replica.open(sweep.ledger)


def test_a_parent_folder_that_others_could_write_is_refused(
    sweep: SweepBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    parent = LedgerPaths(sweep.ledger).replica_folder.parent
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(UnsafePathError, match="can be written by other users"):
        Replica.open(sweep.ledger)


def test_a_temporary_folder_that_cannot_be_written_is_one_sentence(
    sweep: SweepBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(LedgerError, match="TMPDIR"):
        Replica.open(sweep.ledger)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"these are notes of somebody's\n" * 500), id="no database"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), id="half"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:8192] + os.urandom(path.stat().st_size - 8192)),
            id="garbled",
        ),
    ],
)
def test_a_damaged_file_is_made_anew_from_the_journals(sweep: SweepBuilder, damage: Callable[[Path], object]) -> None:
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        expected = tables(replica.connection)
    damage(replica_file(sweep))
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        assert tables(replica.connection) == expected


def test_somebody_elses_database_is_made_anew(sweep: SweepBuilder, tmp_path: Path) -> None:
    path = replica_file(sweep)
    path.parent.mkdir(parents=True, mode=0o700)
    path.parent.parent.chmod(0o700)
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE run (number)")
    foreign.close()
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        assert completed(replica) == 7
    other = SweepBuilder(tmp_path / "other")
    target = replica_file(other)
    target.parent.mkdir(parents=True, mode=0o700)
    target.write_bytes(path.read_bytes())
    with Replica.open(other.ledger) as replica:
        replica.catch_up()
        assert completed(replica) == 0


def test_damage_met_while_folding_is_mended(sweep: SweepBuilder) -> None:
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        expected = tables(replica.connection)
        replica.connection.execute("DROP TABLE attempt")
        replica.connection.execute('UPDATE journal SET "offset" = 0, closed = 0')
        replica.connection.execute("DELETE FROM visit")
        replica.catch_up()
        assert tables(replica.connection) == expected


@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_file_deleted_under_ones_feet_is_made_and_opened_anew(sweep: SweepBuilder, whole_folder: bool) -> None:
    with Replica.open(sweep.ledger) as first, Replica.open(sweep.ledger) as second:
        first.catch_up()
        for path in list(first.path.parent.iterdir()):
            path.unlink()
        if whole_folder:
            first.path.parent.rmdir()
        first.catch_up()
        assert completed(first) == 7
        sweep.write(sweep.act_journal("x"), [events.RunsClosed(ranges=[(100, 101)], state="CANCELLED", reason="x")])
        second.catch_up(look_at=[sweep.sweep])
        first.catch_up(look_at=[sweep.sweep])
        assert tables(first.connection) == tables(second.connection)


def test_a_newer_schema_is_refused_and_left_as_it_is(sweep: SweepBuilder) -> None:
    with Replica.open(sweep.ledger) as replica:
        schema.set_meta(replica.connection, "schema_version", len(schema.STEPS) + 1)
    before = replica_file(sweep).read_bytes()
    with pytest.raises(LedgerError, match="made by a newer clusterduck"):
        Replica.open(sweep.ledger)
    assert replica_file(sweep).read_bytes() == before


def test_an_older_schema_is_migrated_with_all_it_holds(sweep: SweepBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        expected = replica.connection.execute("SELECT * FROM run").fetchall()
    steps = (*schema.STEPS, lambda db: db.table("run").add_column("note", str, not_null_default="none"))
    with sqlite3.connect(replica_file(sweep), isolation_level=None) as connection:
        schema.migrate(connection, "it", steps)
        assert schema.version(connection) == len(steps)
        assert connection.execute("SELECT * FROM run").fetchall() == [(*row, "none") for row in expected]
        with pytest.raises(LedgerError, match="newer"):
            schema.migrate(connection, "it")
    connection.close()


def test_what_is_kept_since_a_newer_schema_is_counted_once_for_what_was_there(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "old.db", isolation_level=None)
    schema.migrate(connection, "it", schema.STEPS[:2])
    connection.execute("INSERT INTO agent(sweep, batch, restart, node) VALUES ('s', '0-0', 0, 0), ('s', '0-1', 0, 0)")
    connection.executemany(
        "INSERT INTO attempt(sweep, run, number, batch, restart, node, duration_s) VALUES ('s', ?, 1, '0-0', 0, 0, ?)",
        [(0, 1.25), (1, 2.5), (2, None)],
    )
    schema.migrate(connection, "it")
    assert connection.execute("SELECT batch, busy_ms FROM agent").fetchall() == [("0-0", 3750), ("0-1", 0)]
    connection.close()


def test_a_large_older_file_is_brought_up_to_date_with_a_word_to_who_waits(
    sweep: SweepBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.write(sweep.launch_journal(1), sweep.launch(501, launch=1, first=8))
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        expected = tables(replica.connection)
        make_older(replica.connection)
    monkeypatch.setattr(schema, "RUNS_WORTH_A_WORD", 8)
    told: list[str] = []
    for _ in range(2):
        with Replica.open(sweep.ledger, tell=told.append) as replica:
            assert tables(replica.connection) == expected
    assert [sentence.partition(",")[0] for sentence in told] == ["bringing this host's copy of the ledger up to date"]


def test_an_older_file_is_left_as_many_readings_as_a_new_one_has(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path)
    lives = [sweep.agent_started(START + 1, "node1"), *(sweep.beat(START + at, busy=1) for at in range(5, 205))]
    ended = events.AgentEnded(time=START + 300, reason="done", exit_code=0)
    sweep.write(sweep.agent_journal("0-0"), [*lives, ended])
    sweep.write(sweep.agent_journal("0-1"), lives, close=False)
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        expected = tables(replica.connection)
        replica.connection.execute(
            "INSERT INTO sample SELECT sweep, batch, restart, node, slot, replace(taken_at, '2025', '2024'), "
            "cpu_percent, memory_bytes, gpu_percent, gpu_memory_bytes FROM sample"
        )
        make_older(replica.connection)
    with Replica.open(sweep.ledger) as replica:
        assert tables(replica.connection) == expected
        kept = replica.connection.execute("SELECT batch, slot, count(*) FROM sample GROUP BY batch, slot").fetchall()
    assert kept == [(batch, slot, n) for batch, n in (("0-0", 10), ("0-1", 180)) for slot in range(-1, 4)]


def test_who_waits_for_another_process_that_opens_it_is_told_once(
    sweep: SweepBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "PATIENCE_S", 0.1)
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    with Replica.open(sweep.ledger, tell=told.put) as replica:
        assert told.empty(), "nobody else was there"
        with ThreadPoolExecutor(2) as others:
            with replica.locked():
                waiting = [others.submit(opened_and_closed, sweep.ledger, told.put) for _ in range(2)]
                words = {told.get(timeout=60), told.get(timeout=60)}
                assert not any(one.done() for one in waiting)
            assert [one.result() for one in waiting] == [0, 0]
    assert words == {"waiting until another process has brought this host's copy of the ledger up to date"}
    assert told.empty()


def test_a_migration_that_fails_leaves_the_file_as_it_was(sweep: SweepBuilder) -> None:
    def fail(db: object) -> None:
        db.table("run").add_column("note", str)  # type: ignore[attr-defined]
        raise OSError("the disk is full")

    with Replica.open(sweep.ledger) as replica:
        before = replica.connection.execute("SELECT sql FROM sqlite_master").fetchall()
        with pytest.raises(OSError, match="full"):
            schema.migrate(replica.connection, "it", (*schema.STEPS, fail))
        assert not replica.connection.in_transaction
        assert replica.connection.execute("SELECT sql FROM sqlite_master").fetchall() == before
        assert schema.version(replica.connection) == len(schema.STEPS)


def test_an_up_to_date_file_is_opened_without_the_slow_import(sweep: SweepBuilder) -> None:
    Replica.open(sweep.ledger).close()
    code = (
        "import sys\nfrom pathlib import Path\nfrom clusterduck.ledger.replica import Replica\n"
        "Replica.open(Path(sys.argv[1])).close()\nassert 'sqlite_utils' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(sweep.ledger)], check=True)


def test_one_that_is_folded_anew_is_in_the_end_like_any_other(sweep: SweepBuilder) -> None:
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        expected, made = tables(replica.connection), everything_made(replica.connection)
    before = replica_file(sweep).stat().st_ino
    with Replica.anew(sweep.ledger) as anew:
        anew.catch_up()
        anew.take_its_place()
        assert replica_file(sweep).stat().st_ino != before
        assert (tables(anew.connection), everything_made(anew.connection)) == (expected, made)
        assert anew.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert anew.connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
        with Replica.open(sweep.ledger) as replica:
            late = [events.RunsClosed(ranges=[(0, 1)], state="CANCELLED", reason="too late")]
            sweep.write(sweep.act_journal("late"), late)
            assert replica.catch_up(look_at=[sweep.sweep]).events == 3
            assert tables(anew.connection) == tables(replica.connection)


def test_a_new_one_whose_filling_was_broken_off_is_filled_by_the_next_who_looks(sweep: SweepBuilder) -> None:
    with Replica.open(sweep.ledger) as replica:
        assert replica.catch_up(budget_s=0).more
        assert set(schema.missing_indexes(replica.connection)) == schema.READERS_INDEXES
        assert publish(replica, sweep.ledger)
    with sqlite3.connect(sweep.ledger) as published:
        assert schema.missing_indexes(published) == []
    published.close()
    with Replica.open(sweep.ledger) as replica, Replica.anew(sweep.ledger) as anew:
        assert set(schema.missing_indexes(replica.connection)) == schema.READERS_INDEXES
        replica.catch_up()
        anew.catch_up()
        assert schema.missing_indexes(replica.connection) == []
        assert tables(replica.connection) == tables(anew.connection)
        assert everything_made(replica.connection) == everything_made(anew.connection)
        anew.discard()


def test_indexes_that_only_readers_ask_for_are_made_anew_where_very_much_is_new(
    sweep: SweepBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        before = everything_made(replica.connection)
        asked: list[str] = []
        replica.connection.set_trace_callback(asked.append)
        sweep.write(sweep.launch_journal(1), sweep.launch(20, launch=1, first=8, batches=2))
        assert replica.catch_up(look_at=[sweep.sweep]).events > 0, "little is new"
        monkeypatch.setattr(replica_module, "UNREAD_BYTES_A_RUN", 100)
        monkeypatch.setattr(replica_module, "MUCH_UNREAD_BYTES", 1000)
        for batch, runs in (("1-0", range(8, 18)), ("1-1", range(18, 28))):
            sweep.write(sweep.agent_journal(batch), sweep.agent(runs, "node7"))
        assert replica.catch_up(budget_s=0, look_at=[sweep.sweep]).more, "who looks a little at a time reads meanwhile"
        assert not any(sql.startswith(("DROP", "CREATE")) for sql in asked)
        replica.catch_up(look_at=[sweep.sweep])
        dropped = {sql.split()[4] for sql in asked if sql.startswith("DROP INDEX")}
        made = {sql.split()[5] for sql in asked if sql.startswith("CREATE INDEX")}
        assert dropped == made == schema.READERS_INDEXES
        assert everything_made(replica.connection) == before
        assert completed(replica) == 7 + 17


def everything_made(connection: sqlite3.Connection) -> set[tuple[str, str, str | None]]:
    return set(connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall())


def test_folding_reads_no_whole_sweep_where_there_are_no_readers_indexes(sweep: SweepBuilder) -> None:
    sweep.write(sweep.act_journal("x"), [events.RunsClosed(ranges=[(0, 100)], state="CANCELLED", reason="x")])
    ended = [events.BatchClosed(time=sweep.start + 9e5, batch="0-0", state="FAILED", reason="x", unsubmitted=False)]
    sweep.write(sweep.act_journal("y"), ended)
    sweep.write(sweep.agent_journal("0-0", restart=1), [sweep.agent_started(sweep.start + 1000, "node2")])
    asked: dict[str, bool] = {}  # whether the index of attempts by slot was there
    is_made = "SELECT 1 FROM sqlite_master WHERE name = 'attempt_by_slot'"
    with Replica.anew(sweep.ledger) as anew:
        assert anew.connection.execute(is_made).fetchone() is None

        def note(sql: str) -> None:
            there = "attempt_by_slot" in sql or any("attempt_by_slot" in one for one in asked)
            asked.setdefault(sql, there)

        anew.connection.set_trace_callback(note)
        anew.catch_up()
        anew.connection.set_trace_callback(None)
        for name in schema.READERS_INDEXES:
            anew.connection.execute(f"DROP INDEX {name}")
        plans = {
            step[3]: sql
            for sql in asked
            if not sql.startswith(("BEGIN", "COMMIT", "PRAGMA", "CREATE"))
            for step in anew.connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()
        }
        anew.discard()
    by_slot = [sql for step, sql in plans.items() if "attempt_by_slot" in step]
    assert by_slot and all(asked[sql] for sql in by_slot), "a restarted job's attempts were looked for, in their index"
    whole = {step: sql for step, sql in plans.items() if re.match(r"(SCAN|SEARCH) (run|attempt)\b", step)}
    assert len(whole) > 3
    assert {step: sql for step, sql in whole.items() if step.startswith("SCAN") or step.endswith("(sweep=?)")} == {}


class Clock:
    now = START + 2000

    def __call__(self) -> float:
        return self.now


def test_quiet_sweeps_are_looked_at_rarely_and_named_ones_always(sweep: SweepBuilder) -> None:
    clock = Clock()
    with Replica.open(sweep.ledger, clock) as replica:
        assert replica.catch_up().events == sum(p.read_bytes().count(b"\n") for p in sweep.paths.journals())
        late = [events.RunsClosed(time=clock.now, ranges=[(0, 1)], state="CANCELLED", reason="too late")]
        sweep.write(sweep.act_journal("late"), late)
        assert replica.catch_up().journals == 0
        assert replica.catch_up(look_at=[sweep.sweep]).events == 3
        sweep.write(
            sweep.act_journal("later"), [events.RunsClosed(time=clock.now, ranges=[], state="FAILED", reason="")]
        )
        clock.now += discovery.RAREST_S
        assert replica.catch_up().events == 3


def test_live_sweeps_are_looked_at_each_time_and_closed_journals_never_again(tmp_path: Path) -> None:
    sweep = SweepBuilder(tmp_path)
    sweep.write(sweep.launch_journal(), sweep.launch(8))
    new = sweep.agent(range(8), "node0")
    with Replica.open(sweep.ledger, Clock()) as replica:
        assert replica.catch_up().journals == 1
        for begin in range(0, len(new), 5):
            sweep.write(sweep.agent_journal(), new[begin : begin + 5], close=False)
            report = replica.catch_up()
            assert report.journals == 1
            assert report.events >= len(new[begin : begin + 5])
        assert completed(replica) == 7


def test_what_is_over_in_a_live_sweep_is_listed_more_rarely(tmp_path: Path) -> None:
    sweep, clock = SweepBuilder(tmp_path), Clock()
    sweep.write(sweep.launch_journal(), sweep.launch(8, batches=2))
    sweep.write(sweep.agent_journal("0-0"), sweep.agent(range(4), "node0"), close=False)
    sweep.write(sweep.agent_journal("0-1"), sweep.agent(range(4, 8), "node1")[:9], close=False)
    with Replica.open(sweep.ledger, clock) as replica:
        assert replica.catch_up().journals == 3
        sweep.write(sweep.agent_journal("0-0", restart=1), [sweep.agent_started(clock.now, "node2")], close=False)
        assert replica.catch_up().journals == 1
        clock.now += discovery.WHOLE_S
        assert replica.catch_up().journals == 3
        assert replica.connection.execute("SELECT state FROM batch WHERE id = '0-0'").fetchone() == ("RUNNING",)


def test_a_budget_stops_it_and_says_so(sweep: SweepBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusterduck.ledger.fold.STRETCH_BYTES", 1000)
    with Replica.open(sweep.ledger) as replica:
        looks = 0
        while replica.catch_up(budget_s=0).more:
            looks += 1
            assert looks < 1000
        assert looks > 3
        assert completed(replica) == 7


def test_each_journal_has_its_turn_however_little_time_there_is(tmp_path: Path) -> None:
    """On a slow file system, those without news take all the time of a look."""
    sweeps = [SweepBuilder(tmp_path, name) for name in ("train-aa2de", "train-bb3fg")]
    for sweep in sweeps:
        sweep.write(sweep.launch_journal(), sweep.launch(20, batches=10), close=False)
        for batch in range(10):
            started = [sweep.agent_started(sweep.start + 10, "node1")]
            sweep.write(sweep.agent_journal(f"0-{batch}"), started, close=False)
    with Replica.open(sweeps[0].ledger) as replica:
        assert replica.catch_up().journals == 22
        for sweep in sweeps:
            run = sweep.started(sweep.start + 20, 18)
            sweep.write(sweep.agent_journal("0-9"), [run], close=False)
        looks = 0
        while replica.catch_up(budget_s=0).more:
            looks += 1
            assert looks < 25
        states = replica.connection.execute("SELECT state FROM run WHERE number = 18").fetchall()
        assert states == [("RUNNING",)] * 2


def test_one_journals_problem_is_said_and_the_others_go_on(sweep: SweepBuilder) -> None:
    newer = events.JournalOpened(version=events.VERSION + 1, sweep=sweep.sweep, writer="cancel")
    sweep.act_journal("newer").write_bytes(journal.encode(newer))
    sweep.act_journal("link").symlink_to("/etc/passwd")
    odd = sweep.paths.root / "batches" / "0-9" / "strange"
    odd.mkdir(parents=True)
    (odd / "journal-0.jsonl").write_bytes(b"")
    with Replica.open(sweep.ledger) as replica:
        problems = replica.catch_up().problems
        assert any("newer clusterduck" in problem for problem in problems)
        assert completed(replica) == 7


def test_a_sweeps_root_that_others_could_write_is_left_alone(sweep: SweepBuilder) -> None:
    sweep.paths.root.chmod(0o777)
    with Replica.open(sweep.ledger) as replica:
        report = replica.catch_up()
        assert "can be written by other users" in report.problems[0]
        assert completed(replica) == 0


def test_a_deleted_sweep_stays_in_the_ledger(sweep: SweepBuilder) -> None:
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        os.rename(sweep.paths.root, sweep.paths.root.with_name("gone"))
        assert replica.catch_up(look_at=[sweep.sweep]).problems == ()
        assert completed(replica) == 7


def test_a_sweep_that_was_moved_is_followed(sweep: SweepBuilder, tmp_path: Path) -> None:
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        moved = tmp_path / "elsewhere"
        os.rename(sweep.paths.sweep_dir, moved)
        root = moved / ".clusterduck" / sweep.sweep
        (LedgerPaths(sweep.ledger).sweeps / sweep.sweep).write_text(f"{root}\n")
        report = replica.catch_up(look_at=[sweep.sweep])
        assert report.events == 0
        assert replica.connection.execute("SELECT folder, root FROM sweep").fetchall() == [(str(moved), str(root))]


def test_samples_are_bounded_and_fewer_once_the_agent_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "SAMPLES_KEPT", 50)
    monkeypatch.setattr(settle, "SAMPLES_KEPT_AFTER", 7)
    sweep = SweepBuilder(tmp_path)
    beats = [sweep.beat(sweep.start + second, busy=1, slots=2) for second in range(120)]
    count = "SELECT slot, count(*), min(taken_at), max(taken_at) FROM sample GROUP BY slot"
    with Replica.open(sweep.ledger, Clock()) as replica:
        for begin in range(0, 120, 30):
            sweep.write(sweep.agent_journal(), beats[begin : begin + 30], close=False)
            replica.catch_up()
        first, last = "2025-10-09T08:54:30.000Z", "2025-10-09T08:55:19.000Z"
        assert replica.connection.execute(count).fetchall() == [(slot, 50, first, last) for slot in (-1, 0, 1)]
        ended = events.AgentEnded(time=sweep.start + 130, reason="done", exit_code=0)
        sweep.write(sweep.agent_journal(), [ended])
        replica.catch_up(look_at=[sweep.sweep])
        first = "2025-10-09T08:55:13.000Z"
        assert replica.connection.execute(count).fetchall() == [(slot, 7, first, last) for slot in (-1, 0, 1)]
