"""Rebuilding: the result equals what was right, what was wrong or lost is mended and said, and nobody is disturbed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from journals_builder import START, SweepBuilder, make_older, tables

from clusterduck.cli.main import main
from clusterduck.errors import LedgerError, NotFoundError
from clusterduck.ledger import condition, queries
from clusterduck.ledger.condition import Condition
from clusterduck.ledger.publish import publish
from clusterduck.ledger.replica import Replica
from clusterduck.paths import HIDDEN, LedgerPaths
from clusterduck.rebuild import rebuild


@pytest.fixture(autouse=True)
def _own_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def done(tmp_path: Path) -> SweepBuilder:
    """A sweep that is over."""
    sweep = SweepBuilder(tmp_path / "project", "train-aa2de")
    sweep.write_all(24, 2)
    return sweep


@pytest.fixture
def live(done: SweepBuilder, tmp_path: Path) -> SweepBuilder:
    """Another one of the project, whose agent is at work."""
    sweep = SweepBuilder(tmp_path / "project", "train-bb3fg", start=START + 5000)
    sweep.write(sweep.launch_journal(), sweep.launch(8))
    sweep.write(sweep.agent_journal(), sweep.agent(range(4), "node1")[:-3], close=False)
    return sweep


@pytest.fixture
def published(live: SweepBuilder) -> dict[str, list[tuple[object, ...]]]:
    """What the published ledger holds, and this host's replica."""
    with Replica.open(live.ledger) as replica:
        replica.catch_up()
        assert publish(replica, live.ledger)
    return folded(live.ledger)


def folded(ledger: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = sqlite3.connect(f"{ledger.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return tables(connection)
    finally:
        connection.close()


def of_replica(ledger: Path) -> dict[str, list[tuple[object, ...]]]:
    with Replica.open(ledger) as replica:
        return tables(replica.connection)


def test_the_result_equals_what_was_right(live: SweepBuilder, published: dict[str, list[tuple[object, ...]]]) -> None:
    before = live.ledger.stat().st_ino
    report = rebuild(live.ledger)
    assert (report.published, report.mended, report.trouble, report.kept) == (True, (), (), ())
    assert (report.journals, report.entered) == (5, {})
    assert live.ledger.stat().st_ino != before
    assert folded(live.ledger) == published == of_replica(live.ledger)
    assert not list(LedgerPaths(live.ledger).replica_folder.glob("anew-*"))


def test_what_was_wrong_is_right_again(live: SweepBuilder, published: dict[str, list[tuple[object, ...]]]) -> None:
    """Rows that somebody changed by hand, in both files, as far as the journals' offsets unnoticed."""
    with Replica.open(live.ledger) as replica:
        replica.connection.execute("UPDATE run SET state = 'FAILED', reason = 'somebody said so'")
        replica.connection.execute('UPDATE journal SET "offset" = "offset" + 1000000 WHERE closed = 0')
    changed = sqlite3.connect(live.ledger)
    changed.execute("DELETE FROM attempt")
    changed.execute('UPDATE journal SET "offset" = "offset" + 1000000')
    changed.commit()
    changed.close()
    assert rebuild(live.ledger).published
    assert folded(live.ledger) == published == of_replica(live.ledger)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, Condition.ABSENT),
        (b"", Condition.EMPTY),
        (b"These are somebody's notes.\n" * 50, Condition.FOREIGN),
        ("cut", Condition.DAMAGED),
        ("garbled", Condition.DAMAGED),
    ],
)
def test_a_lost_or_spoilt_ledger_is_mended_and_said(
    live: SweepBuilder,
    published: dict[str, list[tuple[object, ...]]],
    content: bytes | str | None,
    what: Condition,
) -> None:
    good = live.ledger.read_bytes()
    live.ledger.unlink()
    if content == "cut":
        content = good[: len(good) // 2]
    elif content == "garbled":
        content = good[:4096] + bytes(len(good) - 4096)
    if isinstance(content, bytes):
        live.ledger.write_bytes(content)
    assert condition.look(live.ledger, thoroughly=True) is what
    report = rebuild(live.ledger)
    assert report.published and len(report.mended) == 1
    assert folded(live.ledger) == published
    aside = list(live.ledger.parent.glob("ledger.db.foreign-*"))
    assert [path.read_bytes() for path in aside] == ([content] if what is Condition.FOREIGN else [])


def test_a_spoilt_ledger_mends_itself_at_the_next_look(
    live: SweepBuilder,
    published: dict[str, list[tuple[object, ...]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(live.ledger.parent.parent)
    live.ledger.write_bytes(b"")
    replica = LedgerPaths(live.ledger).replica_folder / "replica.db"
    replica.write_bytes(b"no replica at all" * 100)
    assert main(["runs"]) == 0
    said = capsys.readouterr().err
    assert "is empty: a new one" in said and "was not sound" in said
    after = folded(live.ledger)
    assert after["attempt"] == published["attempt"] and after["sweep"] == published["sweep"]


def test_a_newer_ledger_is_left_alone(live: SweepBuilder, published: object) -> None:
    newer = sqlite3.connect(live.ledger)
    newer.execute("UPDATE meta SET value = 99 WHERE key = 'schema_version'")
    newer.commit()
    newer.close()
    before = live.ledger.read_bytes()
    with pytest.raises(LedgerError, match="newer clusterduck"):
        rebuild(live.ledger)
    assert live.ledger.read_bytes() == before


def test_another_program_s_file_named_as_the_ledger_is_left_alone(tmp_path: Path, done: SweepBuilder) -> None:
    foreign = tmp_path / "notes.db"
    foreign.write_text("mine")
    with pytest.raises(LedgerError, match="left alone"):
        rebuild(foreign, [done.paths.sweep_dir])
    assert foreign.read_text() == "mine" and not (tmp_path / "sweeps").exists()


@pytest.mark.parametrize("kind", [stat.S_IFSOCK, stat.S_IFDIR])
def test_what_is_no_file_is_left_alone(
    tmp_path: Path, done: SweepBuilder, kind: int, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place" / "ledger.db"
    place.parent.mkdir()
    if kind == stat.S_IFSOCK:
        os.mknod(place, kind | 0o600)
    else:
        place.mkdir()
    named = ["--ledger", str(place if kind == stat.S_IFSOCK else place.parent)]
    for arguments in (["status"], ["rebuild"], ["rebuild", str(done.paths.sweep_dir)]):
        assert main([*arguments, *named]) == 1
        assert f"{place} is no file" in capsys.readouterr().err
    assert os.listdir(place.parent) == ["ledger.db"] and stat.S_IFMT(place.stat().st_mode) == kind


def test_a_name_beside_which_nothing_was_entered_is_refused_and_nothing_made(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "typo.db").touch()
    for name in ("typo.db", "other.db"):
        with pytest.raises(NotFoundError, match="No sweeps are recorded beside"):
            rebuild(tmp_path / "place" / name)
    assert os.listdir(tmp_path / "place") == ["typo.db"]


def test_unknown_sweeps_are_found_below_folders_and_entered(tmp_path: Path, live: SweepBuilder) -> None:
    ledger = tmp_path / "elsewhere" / HIDDEN / "ledger.db"
    ledger.parent.parent.mkdir()
    (tmp_path / "project" / "link").symlink_to(tmp_path / "project" / "multirun")
    report = rebuild(ledger, [tmp_path / "project"])
    assert sorted(report.entered) == ["train-aa2de", "train-bb3fg"]
    with Replica.open(live.ledger) as replica:
        replica.catch_up()
        assert folded(ledger) == tables(replica.connection)
    live.write(live.agent_journal(), live.agent(range(4), "node1")[-3:])
    with Replica.open(ledger) as replica:  # it is followed from here on, too
        assert replica.catch_up().events > 3
    assert rebuild(ledger, [live.paths.sweep_dir]).entered == {}


def test_a_folder_without_sweeps_is_refused(tmp_path: Path, done: SweepBuilder) -> None:
    with pytest.raises(NotFoundError, match="No sweep was launched in"):
        rebuild(done.ledger, [done.ledger.parent])
    with pytest.raises(NotFoundError, match="There is no folder"):
        rebuild(done.ledger, [tmp_path / "nowhere"])


def test_a_moved_sweep_is_found_again_and_a_copy_is_not_taken_for_it(tmp_path: Path, live: SweepBuilder) -> None:
    moved = tmp_path / "archive"
    shutil.copytree(live.paths.sweep_dir, moved, symlinks=True)
    report = rebuild(live.ledger, [moved])
    assert report.entered == {} and "which is there too" in report.trouble[0]
    shutil.rmtree(live.paths.sweep_dir)
    report = rebuild(live.ledger, [moved])
    root = moved / HIDDEN / live.sweep
    assert report.entered == {live.sweep: root}
    with Replica.open(live.ledger) as replica:
        assert queries.sweep(replica.connection, live.sweep).root == str(root)


def test_lost_pointers_are_mended_from_what_was_known(
    live: SweepBuilder, published: dict[str, list[tuple[object, ...]]]
) -> None:
    shutil.rmtree(LedgerPaths(live.ledger).sweeps)
    report = rebuild(live.ledger)
    assert sorted(report.entered) == ["train-aa2de", "train-bb3fg"]
    assert folded(live.ledger) == published


@pytest.mark.parametrize("where", ["replica", "replica of an older version", "published ledger"])
def test_a_sweep_whose_folder_is_gone_is_kept(
    live: SweepBuilder, done: SweepBuilder, published: dict[str, list[tuple[object, ...]]], where: str
) -> None:
    shutil.rmtree(done.paths.sweep_dir)
    replica = LedgerPaths(live.ledger).replica_folder
    if where == "published ledger":
        shutil.rmtree(replica)
    elif where == "replica of an older version":
        with closing(sqlite3.connect(replica / "replica.db", isolation_level=None)) as connection:
            make_older(connection)
    report = rebuild(live.ledger)
    assert report.kept == (done.sweep,) and report.published and not report.mended
    assert folded(live.ledger) == published


def test_the_replica_of_a_ledger_that_was_deleted_here_is_not_called_damaged(
    live: SweepBuilder, published: dict[str, list[tuple[object, ...]]]
) -> None:
    shutil.rmtree(live.ledger.parent)
    report = rebuild(live.ledger, [live.ledger.parent.parent])
    assert [sentence.rpartition(" ")[2] for sentence in report.mended] == ["there."]
    assert folded(live.ledger) == published


def test_a_bad_line_is_waited_for(live: SweepBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusterduck.rebuild.BAD_LINE_WAIT_S", 0.3)
    monkeypatch.setattr("clusterduck.ledger.fold.BAD_LINE_WAIT_S", 0.2)
    with live.agent_journal().open("ab") as file:
        file.write(b"garbage\n")
    live.write(live.agent_journal(), live.agent(range(4), "node1")[-3:], close=False)
    said: list[str] = []
    rebuild(live.ledger, say=said.append)
    assert "cannot be read" in said[0]
    with Replica.open(live.ledger) as replica:
        assert len(queries.runs(replica.connection, live.sweep, queries.Filter(states=["COMPLETED"]))) == 4


READER = """
import sys
from pathlib import Path
from clusterduck.ledger.replica import Replica
with Replica.open(Path(sys.argv[1])) as replica:
    replica.catch_up()
    for line in sys.stdin:
        if line == "catch up\\n":
            replica.catch_up()
        print(replica.connection.execute("SELECT count(*), max(state) FROM run").fetchone(), flush=True)
"""


@pytest.fixture
def reader(live: SweepBuilder, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process of this host that has the replica open."""
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(live.ledger)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def test_who_has_the_replica_open_reads_on(live: SweepBuilder, reader: subprocess.Popen[str]) -> None:
    assert reader.stdin is not None and reader.stdout is not None

    def ask(what: str) -> str:
        reader.stdin.write(f"{what}\n")  # type: ignore[union-attr]
        reader.stdin.flush()  # type: ignore[union-attr]
        return reader.stdout.readline()  # type: ignore[union-attr]

    before = ask("read")
    assert before.startswith("(32,")
    with Replica.open(live.ledger) as mine:
        rebuild(live.ledger)
        assert ask("read") == before
        assert ask("catch up") == before
        live.write(live.agent_journal(), live.agent(range(4), "node1")[-3:], close=False)
        assert mine.catch_up().events == 3
        assert (before, ask("catch up")) == ("(32, 'RUNNING')\n", "(32, 'PENDING')\n")
        assert of_replica(live.ledger) == tables(mine.connection)  # all look at one file again


def test_the_command(live: SweepBuilder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(live.ledger.parent.parent)
    assert main(["rebuild"]) == 0
    said = capsys.readouterr()
    assert "2 sweeps with 32 runs" in said.out and "was not there" in said.err
    assert main(["rebuild", "multirun", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["sweep"]: row["runs"] for row in rows} == {"train-aa2de": 24, "train-bb3fg": 8}
    assert main(["rebuild", "nowhere"]) == 3
    assert "There is no folder" in capsys.readouterr().err
