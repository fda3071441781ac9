"""Another user of the same host as an attacker: gets to see nothing, to plant nothing, and to have nothing executed.

What the stranger does is really done by another user: in a forked process that has given up root's rights.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from journals_builder import SweepBuilder
from strangers import STRANGER, as_stranger, umask

from clusterduck import inbox, queue, timeline
from clusterduck.agent.claiming import Claiming
from clusterduck.agent.settings import AgentSettings
from clusterduck.cli.main import main
from clusterduck.doctor import ledgers
from clusterduck.doctor.finding import Level
from clusterduck.errors import LedgerError, NotFoundError, UnsafePathError
from clusterduck.export import export
from clusterduck.inbox import Request
from clusterduck.launch.register import ledger_for
from clusterduck.ledger import queries
from clusterduck.ledger.lock import hold
from clusterduck.ledger.replica import Replica
from clusterduck.model import AgentId, Attempt
from clusterduck.paths import HIDDEN, LedgerPaths, require_ledger, require_own_up_to
from clusterduck.queue import Requeued
from clusterduck.rebuild import rebuild
from clusterduck.reconcile import _end_in_result
from clusterduck.result import read_job_return, write_result

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that both users can reach, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="clusterduck-strangers-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def shared_tmp(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder as hosts have it: everybody's, with the sticky bit."""
    folder = place / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def sweep(place: Path, shared_tmp: Path) -> SweepBuilder:
    (place / "project").mkdir()
    sweep = SweepBuilder(place / "project", "train-aa2de")
    sweep.write_all(8, 2)
    (sweep.paths.launch(0) / "payload.pkl").write_bytes(b"payload")
    (sweep.paths.launch(0) / "payload.pkl").chmod(0o600)
    return sweep


# --- what is made is the owner's alone

APP = """
import hydra

@hydra.main(config_path=None, config_name=None, version_base=None)
def main(config):
    print("a secret")
    return 1.5

if __name__ == "__main__":
    main()
"""


def test_a_sweep_launched_with_any_umask_is_the_owner_s_alone(place: Path, shared_tmp: Path) -> None:
    project = place / "project"
    project.mkdir()
    (project / "app.py").write_text(APP)
    command = [sys.executable, "app.py", "--multirun", "+x=1,2", "hydra/launcher=clusterduck_local"]
    command += ["hydra.launcher.wait_for_completion=true", "hydra.sweep.dir=out"]
    environ = {**os.environ, "TMPDIR": str(shared_tmp)}
    with umask(0):
        done = subprocess.run(command, cwd=project, env=environ, capture_output=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    logs = list(project.glob("out/*/attempt-1.log"))
    assert [path.read_text().strip() for path in logs] == ["a secret"] * 2
    replica = shared_tmp / f"clusterduck-{os.geteuid()}"
    deadline = time.monotonic() + 120
    while list(shared_tmp.glob("clusterduck-*")) != [replica]:  # the agent has a folder there until it ends
        assert time.monotonic() < deadline
        time.sleep(0.05)
    folders = [project / HIDDEN, project / "out" / HIDDEN, replica]
    for folder in folders:
        assert as_stranger(lambda folder=folder: os.listdir(folder)) == "PermissionError"
        assert as_stranger(lambda folder=folder: (folder / "x").write_text("x")) == "PermissionError"
    for path in [*logs, *(project / HIDDEN).rglob("*"), *(project / "out" / HIDDEN).rglob("*")]:
        info = path.lstat()
        assert stat.S_ISLNK(info.st_mode) or not info.st_mode & 0o077, path
    for log in logs:
        assert as_stranger(log.read_text) == "PermissionError"
    # submitit unpickles what lies in its folder when the job starts
    for path in (project / "out" / ".submitit").rglob("*_submitted.pkl"):
        assert as_stranger(lambda path=path: os.open(path, os.O_RDWR)) == "PermissionError"
        assert as_stranger(path.unlink) == "PermissionError"
    assert (project / "out" / "0").stat().st_mode & 0o777 == 0o777, "what runs make has the user's own umask"


def test_a_ledger_in_a_folder_that_others_may_read_is_the_owner_s_alone(
    sweep: SweepBuilder, place: Path, shared_tmp: Path
) -> None:
    """With a name of the user's choice, in a folder that has the user's umask and group."""
    ledger = place / "open" / "my.db"
    ledger.parent.mkdir()
    os.chown(ledger.parent, -1, STRANGER)
    ledger.parent.chmod(0o2755)
    with umask(0):
        assert rebuild(ledger, [sweep.paths.sweep_dir]).published
        with hold(ledger, 1.0) as token:
            assert token is not None
            made = {path.name: path.lstat().st_mode & 0o777 for path in ledger.parent.iterdir()}
    assert made.keys() >= {"my.db", "my.db.id", "sweeps"} and len(made) == 4
    assert all(not mode & 0o077 for mode in made.values()), made
    assert as_stranger(ledger.read_bytes) == "PermissionError"


# --- the temporary folder


def test_a_replica_s_folder_that_a_stranger_made_is_refused(sweep: SweepBuilder) -> None:
    folder = LedgerPaths(sweep.ledger).replica_folder
    assert as_stranger(lambda: folder.mkdir(parents=True)) == "done"
    with pytest.raises(UnsafePathError, match=f"belongs to user {STRANGER}"):
        Replica.open(sweep.ledger)
    found = [one for one in ledgers.check(sweep.ledger.parent.parent, None) if one.level is Level.BAD]
    assert str(STRANGER) in found[0].found
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("depth", [0, 1])
def test_a_link_in_the_place_of_a_replica_s_folder_is_not_followed(
    sweep: SweepBuilder, place: Path, depth: int
) -> None:
    treasure = place / "treasure"
    treasure.mkdir(0o700)
    folder = LedgerPaths(sweep.ledger).replica_folder
    link = [folder.parent, folder][depth]
    if depth:
        folder.parent.mkdir(0o777)
        openly(folder.parent)  # as somebody's careless script left it
    assert as_stranger(lambda: link.symlink_to(treasure)) == "done"
    with pytest.raises(UnsafePathError):
        Replica.open(sweep.ledger)
    assert list(treasure.iterdir()) == []


@pytest.mark.parametrize("name", ["replica.db", "lock", "replica.db-wal"])
def test_links_among_a_replica_s_files_are_not_followed(sweep: SweepBuilder, place: Path, name: str) -> None:
    treasure = place / "treasure"
    treasure.write_bytes(b"gold")
    folder = LedgerPaths(sweep.ledger).replica_folder
    folder.parent.mkdir(0o700)
    folder.mkdir()
    openly(folder)
    assert as_stranger(lambda: (folder / name).symlink_to(treasure)) == "done"
    for _ in range(2):  # while the folder is open to all, and after its owner has closed it
        with contextlib.suppress(UnsafePathError, LedgerError), Replica.open(sweep.ledger) as replica:
            replica.catch_up()
        assert treasure.read_bytes() == b"gold"
        folder.chmod(0o700)


# --- what is unpickled or obeyed


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.mark),))


Plant = Callable[[Path, bytes], None]


def openly(folder: Path) -> None:
    """Open a folder to all, and a way to it."""
    folder.chmod(0o777)
    reachable(folder)


def reachable(path: Path) -> None:
    """Let others through the folders above, in which they still can do nothing."""
    for folder in path.parents:
        if folder.parent == Path("/tmp"):
            return
        folder.chmod(folder.stat().st_mode & 0o7777 | 0o011)


def replace_file(path: Path, data: bytes) -> None:
    """A stranger's file in the place of ours; its folder is open to all."""
    openly(path.parent)

    def act() -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    assert as_stranger(act) == "done"


def write_into(path: Path, data: bytes) -> None:
    """Ours, which is open to all by mistake."""
    path.write_bytes(b"")
    path.chmod(0o666)
    reachable(path)
    assert as_stranger(lambda: path.write_bytes(data)) == "done"


def link_to_another(path: Path, data: bytes) -> None:
    """A link to a file of our own, which somebody else chose."""
    ours = path.parents[4] / "ours"
    ours.write_bytes(data)
    openly(path.parent)

    def act() -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(ours)

    assert as_stranger(act) == "done"


def in_an_open_folder(path: Path, data: bytes) -> None:
    """A good file in a folder in which a stranger could have put another in its place."""
    path.write_bytes(data)
    path.chmod(0o600)
    openly(path.parent)


PLANTS = [replace_file, write_into, link_to_another, in_an_open_folder]


@pytest.mark.parametrize("plant", PLANTS)
def test_payloads(sweep: SweepBuilder, place: Path, plant: Plant) -> None:
    payload = sweep.paths.payload(0)
    settings = AgentSettings(
        sweep_root=str(sweep.paths.root),
        **{"batch": "0-0", "launch": 0, "first_run": 0, "stop_run": 4, "plan_first": 0, "plan_stop": 8},
        **{"nodes": 1, "cluster": "local", "parallel_runs_per_node": 1, "ledger": str(sweep.ledger)},
    )
    scratch = place / "scratch"
    scratch.mkdir()
    claiming = Claiming(settings, AgentId("0-0", 0, 0), scratch, lambda _: None)
    plant(payload, pickle.dumps(Trap(place / "sprung")))
    with pytest.raises(UnsafePathError):
        claiming.fetch_payload(0)
    assert not (place / "sprung").exists() and not claiming.payload_copy(0).exists()


@pytest.mark.parametrize("plant", PLANTS)
def test_results(sweep: SweepBuilder, place: Path, plant: Plant) -> None:
    path = sweep.paths.result(Attempt(0, 1))
    forged = place / "forged"
    write_result(forged, lambda file: pickle.dump(Trap(place / "sprung"), file), {"state": "COMPLETED", "reason": ""})
    plant(path, forged.read_bytes())
    with pytest.raises(UnsafePathError):
        read_job_return(path)
    assert _end_in_result(path, Attempt(0, 1), AgentId("0-0", 0, 0)) is None
    assert not (place / "sprung").exists()


@pytest.mark.parametrize("plant", PLANTS)
def test_requests(sweep: SweepBuilder, plant: Plant) -> None:
    box = sweep.agent_journal().parent / "inbox"
    name = inbox.post(box, Request("cancel", "me", (Attempt(0, 1),)))
    data = (box / name).read_bytes()
    plant(box / name, data)
    taken, refused = inbox.take(box)
    assert taken == [] and name in refused[0] and list(box.iterdir()) == []
    box.chmod(0o700)
    inbox.post(box, Request("drain", "me"))
    assert [request.kind for request in inbox.take(box)[0]] == ["drain"]


@pytest.mark.parametrize("plant", PLANTS)
def test_queued_attempts(sweep: SweepBuilder, plant: Plant) -> None:
    entry = Requeued(attempt=Attempt(0, 2), launch=0, kind="requeue", reason="", by="me")
    line = queue.Queue(sweep.paths.queue)
    line.put(entry)
    path = sweep.paths.queue / "0.2"
    plant(path, path.read_bytes())
    with pytest.raises(UnsafePathError):
        line.read(Attempt(0, 2))


@pytest.mark.parametrize("up", [0, 1, 2, 3])
def test_a_folder_further_up_that_others_can_write_is_enough(sweep: SweepBuilder, up: int) -> None:
    box = sweep.agent_journal().parent / "inbox"
    name = inbox.post(box, Request("drain", "me"))
    require_own_up_to(box / name, sweep.paths.root)
    folder = box.parents[up]
    folder.chmod(0o770)
    with pytest.raises(UnsafePathError, match=f"{folder.name} can be written by other users"):
        require_own_up_to(box / name, sweep.paths.root)
    assert inbox.take(box)[0] == []


def test_what_lies_outside_is_refused(sweep: SweepBuilder) -> None:
    for path in (sweep.paths.root, sweep.paths.root / ".." / "x", Path("/etc/passwd")):
        with pytest.raises(UnsafePathError, match="does not lie in"):
            require_own_up_to(path, sweep.paths.root)


# --- sweeps that a stranger enters


def test_a_stranger_s_sweep_is_not_folded_or_entered(sweep: SweepBuilder, place: Path) -> None:
    theirs = place / "theirs"
    shutil.copytree(sweep.paths.sweep_dir, theirs, symlinks=True)
    root = theirs / HIDDEN / "train-zz9zz"
    (theirs / HIDDEN / sweep.sweep).rename(root)
    for path in (theirs, *theirs.rglob("*")):
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    project = LedgerPaths(sweep.ledger)
    openly(project.sweeps)
    assert as_stranger(lambda: (project.sweeps / "train-zz9zz").write_text(f"{root}\n")) == "done"
    with Replica.open(sweep.ledger) as replica:
        report = replica.catch_up()
        assert f"belongs to user {STRANGER}" in report.problems[0]
        assert [one.id for one in queries.sweeps(replica.connection)] == [sweep.sweep]
    (project.sweeps / "train-zz9zz").unlink()
    project.sweeps.chmod(0o700)
    report = rebuild(sweep.ledger, [theirs])
    assert report.entered == {} and f"belongs to user {STRANGER}" in report.trouble[0]


# --- files that are written where others can write, and what comes out of files that others named


def test_a_closed_project_of_another_user_above_one_s_own_folder_is_not_in_the_way(place: Path) -> None:
    (place / HIDDEN / "sweeps").mkdir(parents=True)
    (place / HIDDEN).chmod(0o700)
    mine = place / "mine"
    mine.mkdir()
    os.chown(mine, STRANGER, STRANGER)

    def look() -> None:
        assert ledger_for(mine, None) == mine / HIDDEN / "ledger.db"
        with pytest.raises(NotFoundError, match="open to you"):
            require_ledger(mine)

    assert as_stranger(look) == "done"
    assert require_ledger(mine) == place / HIDDEN / "ledger.db"


def test_folders_that_one_may_not_read_are_said_not_to_be_without_sweeps(sweep: SweepBuilder, place: Path) -> None:
    elsewhere = place / "theirs" / HIDDEN / "ledger.db"
    elsewhere.parent.parent.mkdir()
    os.chown(elsewhere.parent.parent, STRANGER, STRANGER)
    sweep.paths.root.parent.chmod(0o700)

    def look() -> None:
        with pytest.raises(NotFoundError, match=r"could not be read, such as .*Permission denied"):
            rebuild(elsewhere, [sweep.paths.sweep_dir])

    assert as_stranger(look) == "done"
    said: list[str] = []
    assert rebuild(place / HIDDEN / "ledger.db", [place / "project"], said.append).published
    assert not said


def test_exports_and_pictures_follow_no_link(sweep: SweepBuilder, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the stranger guesses the name under which they are begun."""
    treasure = place / "treasure"
    treasure.write_bytes(b"gold")
    drop = place / "drop"
    drop.mkdir()
    openly(drop)
    monkeypatch.setattr("secrets.token_hex", lambda _=None: "guessed")
    for name in ("out.csv", "out.svg"):
        assert as_stranger(lambda name=name: (drop / f".{name}.guessed").symlink_to(treasure)) == "done"
        assert as_stranger(lambda name=name: (drop / name).symlink_to(treasure)) == "done"
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(place / "tmp"))
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        monkeypatch.setattr("secrets.token_hex", lambda _=None: "guessed")
        with contextlib.suppress(FileExistsError):
            export(replica.connection, sweep.sweep, drop / "out.csv")
        with contextlib.suppress(FileExistsError):
            timeline.write(drop / "out.svg", "a picture")
        assert treasure.read_bytes() == b"gold"
        monkeypatch.setattr("secrets.token_hex", lambda _=None: "other")
        export(replica.connection, sweep.sweep, drop / "out.csv")
        timeline.write(drop / "out.svg", "a picture")
    assert treasure.read_bytes() == b"gold"
    assert (drop / "out.svg").read_text() == "a picture" and not (drop / "out.csv").is_symlink()


def test_a_hostile_name_of_a_sweep_reaches_neither_sql_nor_the_terminal(
    sweep: SweepBuilder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = LedgerPaths(sweep.ledger)
    name = "x'; DROP TABLE run; --\x1b]0;owned\x07"
    openly(project.sweeps)
    assert as_stranger(lambda: (project.sweeps / name).write_text("/nowhere\x1b[31m\n")) == "done"
    monkeypatch.chdir(sweep.ledger.parent.parent)
    for command in (["status"], ["status", name], ["runs", "--sweep", name], ["rebuild"], ["prune", name, "--yes"]):
        main(command)
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err
    with Replica.open(sweep.ledger) as replica:
        assert queries.sweep(replica.connection, sweep.sweep).runs == 8
