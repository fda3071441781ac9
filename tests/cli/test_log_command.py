"""``clusterduck logs``: printed, followed, raw and harmless."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from made_project import Project

from clusterduck.events import AttemptLocated


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Following:
    """A running ``logs -f``, whose output goes to a file that can be read at any time."""

    def __init__(self, project: Project, *arguments: str) -> None:
        self._file = (project.folder / "followed").open("w+b")
        self.process = project.start("logs", *arguments, "-f", stdout=self._file)

    @property
    def output(self) -> bytes:
        return Path(self._file.name).read_bytes()

    def wait(self) -> str:
        assert self.process.stderr is not None
        errors = self.process.stderr.read().decode()
        self.process.stderr.close()
        assert self.process.wait(60) == 0, errors
        self._file.close()
        return errors


def test_a_log_is_followed_from_before_it_is_there_until_its_attempt_ended(own: Project) -> None:
    live = own.live
    following = Following(own, "@last/1")
    log = live.paths.logs / "1.1.log"
    wait_for(lambda: list((own.folder / "tmp").rglob("replica.db")), "a start")
    log.write_bytes(b"epoch 1\n\xff\x1b[31m")
    wait_for(lambda: following.output == b"epoch 1\n\xff\x1b[31m", "the first lines, as they are")
    folder = live.paths.sweep_dir / "1"
    folder.mkdir()
    os.rename(log, folder / "attempt-1.log")
    with (folder / "attempt-1.log").open("ab") as file:
        file.write(b"moved\n")
    located = AttemptLocated(run=1, attempt=1, run_dir=str(folder), log=str(folder / "attempt-1.log"))
    live.write(live.agent_journal(), [located], close=False)
    wait_for(lambda: following.output.endswith(b"[31mmoved\n"), "what was written after the move")
    with (folder / "attempt-1.log").open("ab") as file:
        file.write(b"last words\n")
    live.write(live.agent_journal(), [live.ended(time.time(), 1, state="FAILED")], close=False)
    assert following.wait().endswith("clusterduck: run train-bb3fg/1 (attempt 1) is FAILED\n")
    assert following.output == b"epoch 1\n\xff\x1b[31mmoved\nlast words\n"


def test_a_run_that_waits_is_waited_for(own: Project) -> None:
    live = own.live
    following = Following(own, "@last/5", "--lines", "1")
    assert following.process.stderr is not None
    assert b"run train-bb3fg/5 is PENDING; waiting" in following.process.stderr.readline()
    (live.paths.logs / "5.1.log").write_bytes(b"a\nb\n")
    ended = [live.started(time.time(), 5, slot=1), live.ended(time.time(), 5)]
    live.write(live.agent_journal(), ended, close=False)
    assert "is COMPLETED" in following.wait()
    assert following.output == b"b\n"


def test_logs_raw_for_programs_and_harmless_on_a_terminal(own: Project) -> None:
    log = own.live.paths.logs / "0.1.log"
    log.write_bytes(b"one\ntwo \x1b]0;owned\x07\ttab \xe6\xbc\xa2\r\nthree\n")
    assert own.run("logs", "bb/0")[0] == log.read_bytes().decode()
    assert own.run("logs", "bb/0", "--lines", "1")[0] == "three\n"
    (row,) = own.json("logs", "bb/0", "--lines", "2")
    assert set(row) == {"run", "attempt", "state", "log", "text"}
    assert row["run"] == "train-bb3fg/0" and row["text"].startswith("two \x1b]0;") and row["log"] == str(log)
    shown = own.on_terminal("logs", "bb/0")
    assert b"\x1b" not in shown and b"two \\x1b]0;owned\\x07\ttab \xe6\xbc\xa2" in shown
