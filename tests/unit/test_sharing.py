"""A sweep that a group may read: its members look at everything and can do nothing; all others see nothing."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import inspect
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from strangers import STRANGER, as_stranger, import_all, umask

from clusterduck.cli.main import main
from clusterduck.errors import ConfigError
from clusterduck.launch.options import Options
from clusterduck.paths import HIDDEN
from clusterduck_tui.app import Dashboard

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

GROUP = "users"

APP = """
import hydra

@hydra.main(version_base=None)
def main(config):
    print("for the group")
    return 1.5

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module", autouse=True)
def all_imported() -> None:
    import_all()


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    """A sweep that was launched for a group, with the umask of a shared project, and has ended."""
    place = Path(tempfile.mkdtemp(prefix="clusterduck-sharing-", dir="/tmp"))
    place.chmod(0o755)
    project = place / "project"
    project.mkdir(mode=0o755)
    (place / "tmp").mkdir()
    (place / "tmp").chmod(0o1777)
    (project / "app.py").write_text(APP)
    command = [sys.executable, "app.py", "--multirun", "+x=1,2", "hydra/launcher=clusterduck_local"]
    command += ["hydra.launcher.wait_for_completion=true", "hydra.sweep.dir=out", "hydra.job.name=app"]
    command += [f"hydra.launcher.readable_by={GROUP}"]
    environ = {**os.environ, "TMPDIR": str(place / "tmp")}
    with umask(0o022):
        done = subprocess.run(command, cwd=project, env=environ, capture_output=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 120
    while any(str(place) in str(process.info) for process in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline, "the agent, which publishes once more at its end, has not ended"
        time.sleep(0.05)
    yield project
    shutil.rmtree(place)


@pytest.fixture
def there(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.setattr("tempfile.tempdir", str(project.parent / "tmp"))
    with contextlib.redirect_stdout(io.StringIO()):
        main(["runs", "--json"])  # it imports what others import only when they need it
    return project


def look(arguments: list[str]) -> tuple[str, int, str, str]:
    """What a member of the group sees who gives a command: whether it could be given, exit code, and what was said."""
    told = Path(tempfile.gettempdir(), "told")
    told.unlink(missing_ok=True)

    def act() -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
        told.write_text(json.dumps([int(code), out.getvalue(), err.getvalue()]))

    became = as_stranger(act, [grp.getgrnam(GROUP).gr_gid])
    code, out, err = json.loads(told.read_text()) if told.exists() else (-1, "", "")
    return became, code, out, err


def test_a_member_sees_what_the_owner_sees(there: Path) -> None:
    for arguments in (
        ["status", "--json"],
        ["runs", "--json"],
        ["show", "@last/1", "--json"],
        ["logs", "@last/1", "--json"],
    ):
        mine = io.StringIO()
        with contextlib.redirect_stdout(mine):
            main(arguments)  # first, so that all is imported
        became, code, out, err = look(arguments)
        assert (became, code, err) == ("done", 0, ""), arguments
        assert out == mine.getvalue()
    assert "for the group" in out


def test_a_member_also_folds_by_itself_what_was_not_published(there: Path) -> None:
    ledger = there / HIDDEN / "ledger.db"
    before = ledger.read_bytes()
    ledger.unlink()
    shutil.rmtree(there.parent / "tmp" / f"clusterduck-{STRANGER}", ignore_errors=True)
    became, code, out, err = look(["runs", "--json"])
    assert (became, code, err) == ("done", 0, "")
    assert [run["state"] for run in json.loads(out)] == ["COMPLETED"] * 2
    assert not ledger.exists(), "it is its owner's to publish"
    ledger.write_bytes(before)
    ledger.chmod(0o640)


@pytest.mark.parametrize(
    "arguments",
    [["cancel", "@last"], ["requeue", "@last/0"], ["drain", "1"], ["prune", "@last", "--yes"]],
    ids=lambda arguments: arguments[0],
)
def test_a_member_can_do_nothing(there: Path, arguments: list[str]) -> None:
    became, code, _, err = look(arguments)
    assert (became, code) == ("done", 1)
    assert "belongs to another user, who alone can act upon it" in err


def test_a_member_s_dashboard_only_reads(there: Path) -> None:
    told = there.parent / "tmp" / "dashboard"

    class Shown(Dashboard):
        CSS_PATH = None  # a stranger may not see where it lies
        CSS = Path(inspect.getfile(Dashboard)).with_name(str(Dashboard.CSS_PATH)).read_text()

    async def seen() -> str:
        app = Shown()
        async with app.run_test(size=(120, 40)) as pilot:
            while not app.known.sweeps:
                await pilot.pause(0.02)
            return f"{app.known.read_only} {[sweep.counts['COMPLETED'] for sweep in app.known.sweeps]}"

    def act() -> None:
        told.write_text(asyncio.run(asyncio.wait_for(seen(), 120)))

    others = set(threading.enumerate())
    act()
    assert told.read_text() == "False [2]"
    told.unlink()
    for thread in set(threading.enumerate()) - others:
        thread.join()  # what it holds while we fork, nobody would let go in the child
    assert as_stranger(act, [grp.getgrnam(GROUP).gr_gid]) == "done"
    assert told.read_text() == "True [2]"


def test_nobody_else_sees_anything_and_what_is_secret_stays_so(there: Path) -> None:
    group = grp.getgrnam(GROUP).gr_gid
    hidden = [there / HIDDEN, there / "out" / HIDDEN]
    for folder in hidden:
        assert as_stranger(lambda folder=folder: os.listdir(folder)) == "PermissionError"
        assert as_stranger(lambda folder=folder: os.listdir(folder), [group]) == "done"
        assert as_stranger(lambda folder=folder: (folder / "x").write_text("x"), [group]) == "PermissionError"
        for path in folder.rglob("*"):
            info = path.lstat()
            if not stat.S_ISLNK(info.st_mode) and path.name != ".gitignore":
                assert not info.st_mode & 0o027, f"{path}: {info.st_mode:o}"
    secret = [*there.glob("out/.clusterduck/*/launches/*/payload.pkl"), *there.glob("out/.clusterduck/*/results")]
    secret += there.glob("out/.clusterduck/*/batches/*/*/inbox")
    assert len(secret) == 3
    for path in secret:
        assert path.stat().st_mode & 0o077 == 0
        action = path.read_bytes if path.is_file() else path.iterdir
        assert as_stranger(lambda action=action: list(action()), [group]) == "PermissionError"
    for log in there.glob("out/*/attempt-1.log"):
        assert as_stranger(log.read_text) == "PermissionError"
        assert as_stranger(log.read_text, [group]) == "done"
        assert as_stranger(lambda log=log: log.write_text("x"), [group]) == "PermissionError"


def test_a_group_that_is_not_there_is_refused_at_launch() -> None:
    with pytest.raises(ConfigError, match="knows no group of that name"):
        Options.of("local", {"readable_by": "no-such-group"})


def test_a_group_of_others_is_refused_at_launch() -> None:
    def act() -> None:
        with pytest.raises(ConfigError, match="you are not in that group"):
            Options.of("local", {"readable_by": GROUP})

    assert as_stranger(act) == "done"
    assert as_stranger(lambda: Options.of("local", {"readable_by": GROUP}), [grp.getgrnam(GROUP).gr_gid]) == "done"


def test_sweeps_that_are_not_open_are_counted_and_no_trouble(there: Path) -> None:
    closed = there / HIDDEN / "sweeps" / "closed-abcde"
    root = there / "closed" / HIDDEN / closed.name
    root.mkdir(parents=True, mode=0o700)
    root.parent.chmod(0o700)
    closed.write_text(f"{root}\n")
    closed.chmod(0o640)
    became, code, out, err = look(["status", "--json"])
    closed.unlink()
    assert (became, code) == ("done", 0)
    assert err.strip() == "clusterduck: 1 of the sweeps of this ledger is not open to you"
    assert len(json.loads(out)) == 1


def test_a_submitit_folder_that_others_could_write_is_refused(there: Path, tmp_path: Path) -> None:
    """A job unpickles what it finds there."""
    folder = tmp_path / "planted"
    folder.mkdir()
    folder.chmod(0o777)
    command = [sys.executable, "app.py", "--multirun", "+x=1", "hydra/launcher=clusterduck_local"]
    command += [f"hydra.sweep.dir={tmp_path}/refused", f"hydra.launcher.ledger={tmp_path}/ledger/ledger.db"]
    command += [f"hydra.launcher.submitit_folder={folder}/%j"]
    done = subprocess.run(command, cwd=there, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode != 0
    assert f"{folder} can be written by other users" in done.stderr and "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []
