"""Requeue, cancel, drain and wait as people use them: on sweeps whose agents run on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.main import main

SCRIPT = Path(__file__).with_name("acts_app.py")


def wait_until(fact: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


@dataclass
class Project:
    """A project folder with one sweep in it."""

    folder: Path
    environ: dict[str, str]

    def launch(self, *hows: str, slots: int = 2, options: tuple[str, ...] = ()) -> None:
        """A sweep with a run for each ``how``, none of which is waited for."""
        arguments = [f"+how={','.join(hows)}", "hydra/launcher=clusterduck_local", "hydra.sweep.dir=out", *options]
        if len(set(hows)) < len(hows):  # Hydra takes equal values for one run each, but needs something that differs
            arguments[:1] = [f"+how={hows[0]}", f"+number=range({len(hows)})"]
        done = subprocess.run(
            [sys.executable, SCRIPT.name, "--multirun", *arguments, f"hydra.launcher.parallel_runs_per_node={slots}"],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "clusterduck.cli.main", *arguments],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: ExitCode = ExitCode.OK) -> tuple[str, str]:
        """Stdout and stderr of a command."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=180)
        assert (process.returncode, "Traceback" in errors) == (code, False), f"{output}\n{errors}"
        return output, errors

    def json(self, *arguments: str, code: ExitCode = ExitCode.OK) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.run(*arguments, "--json", code=code)[0])
        return rows

    def states(self) -> list[str]:
        return [row["state"] for row in self.json("runs", "--sweep", "@last")]

    def wait_for(self, *states: str) -> None:
        wait_until(lambda: self.states() == list(states), f"runs {states}, not {self.states()}")

    def began(self, run: int, folder: str = "") -> list[str]:
        """Which attempts of a run began, and with which ``y``."""
        path = self.folder / "out" / (folder or str(run)) / "began"
        return path.read_text().splitlines() if path.exists() else []

    def attempts(self, run: int) -> list[str]:
        """The states of a run's attempts."""
        (shown,) = self.json("show", f"@last/{run}")
        return [attempt["state"] for attempt in shown["attempts"]]

    def wait_for_no_agent(self) -> None:
        """Wait until the sweep's agents have ended: they do some seconds after the last run has."""
        where = str(self.folder)
        wait_until(
            lambda: not any(where in str(process.info) for process in psutil.process_iter(["cmdline"])),
            "no agent is left",
        )

    def sweep(self) -> str:
        return str(self.json("status", "@last")[0]["sweep"])

    @property
    def root(self) -> Path:
        (root,) = (
            path for path in (self.folder / "out/.clusterduck").iterdir() if path.is_dir() and not path.is_symlink()
        )
        return root


def in_this_process(*arguments: str) -> object:
    """The exit code of a command that is refused before it does anything, for which a process each is not needed."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


@pytest.fixture
def project(tmp_path: Path) -> Project:
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "tmp").mkdir()
    return Project(tmp_path, {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "NO_COLOR": "1"})


def test_failed_runs_are_sent_again_with_the_code_of_today(project: Project) -> None:
    project.launch("succeeds", "fails")
    assert "1 of 2 runs did not complete" in project.run("wait", "@last", code=ExitCode.NOT_COMPLETED)[0]
    project.wait_for_no_agent()
    script = project.folder / SCRIPT.name
    script.write_text(script.read_text().replace("FIXED = False", "FIXED = True"))

    said, _ = project.run("requeue", "--failed", "--dry-run")
    assert said == "1 failed run: 1 in a new job\n"
    assert project.states() == ["COMPLETED", "FAILED"]

    (sent,) = project.json("requeue", "--failed", "--as-submitted")
    assert (sent["attempt"], sent["agent"], sent["batch"]) == (2, None, "r1-0")
    assert project.json("wait", "@last", code=ExitCode.NOT_COMPLETED)[0]["outcome"] == "failed"

    project.run("requeue", "--failed", "--override", "+y=7")
    assert project.run("wait", "@last")[0] == f"{project.sweep()}: all 2 runs completed\n"
    assert project.began(0) == ["1 None"]
    assert project.began(1) == ["1 None", "2 None", "3 7"], "all attempts ran in one folder"
    (run,) = project.json("show", "@last/1")
    assert [attempt["state"] for attempt in run["attempts"]] == ["FAILED", "FAILED", "COMPLETED"]
    assert run["return_value"] == 7
    assert all(Path(attempt["log"]).exists() for attempt in run["attempts"])
    assert (project.folder / "out/1/.hydra.attempt-2/overrides.yaml").exists()

    project.run("requeue", "@last/1", "--fresh", "--set", "parallel_runs_per_node=1")
    project.run("wait", "@last")
    assert project.began(1) == ["4 7"], "overrides of earlier requeues stay"
    assert len(project.began(1, "1.attempt-3")) == 3
    (run,) = project.json("show", "@last/1")
    assert [attempt["added_overrides"] for attempt in run["attempts"]] == [[], [], ["+y=7"], ["+y=7"]]
    assert project.run("show", "@last/1")[0].count("added      +y=7\n") == 2


def test_a_live_agent_with_room_takes_what_is_sent_again_and_new_jobs_the_rest(project: Project) -> None:
    project.launch("fails", "waits")
    project.wait_for("FAILED", "RUNNING")
    said, _ = project.run("requeue", "--failed", "--dry-run")
    assert said.startswith("1 failed run: 1 to a running job on ")
    (sent,) = project.json("requeue", "--failed")
    assert sent["agent"] == "0-0/0.0"
    assert sent["job_id"] is None
    wait_until(lambda: project.attempts(0) == ["FAILED", "FAILED"], "the second attempt failed, too")

    said, _ = project.run("requeue", "@last/0", "--set", "timeout_min=5")
    assert "in job" in said, "what is to have other settings goes to no running job"
    wait_until(lambda: len(project.began(0)) == 3, "the third attempt began")
    (project.folder / "go").touch()
    project.run("wait", "@last", code=ExitCode.NOT_COMPLETED)
    batches = [batch["batch"] for batch in project.json("status", "@last")[0]["batches"]]
    assert batches == ["0-0", "r2-0"], "the first act needed no job"
    assert project.began(1) == ["1 None"]


def test_of_two_who_send_a_run_again_one_does(project: Project) -> None:
    go = project.folder / "go"
    go.touch()
    project.launch("waits", "waits", "waits", slots=3)
    project.run("wait", "@last")
    project.wait_for_no_agent()
    go.unlink()  # a new attempt lasts until all have asked: whoever asks after its end may rightly send a third
    shells = [project.start("requeue", "@last/0-2", "--json") for _ in range(3)]
    answers = [json.loads(shell.communicate(timeout=180)[0]) for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0, 0]
    sent = [row["run"] for answer in answers for row in answer if "attempt" in row]
    left = [row["skipped"] for answer in answers for row in answer if "skipped" in row]
    assert sorted(sent) == sorted(f"{project.sweep()}/{run}" for run in range(3)), answers
    assert all(why.startswith(("already requeued by", "it waits for batch", "it is running")) for why in left), left
    go.touch()
    project.run("wait", "@last")
    assert [project.began(run) for run in range(3)] == [["1 None", "2 None"]] * 3


def test_cancelling_ends_what_runs_with_all_it_started_and_keeps_the_rest_from_starting(project: Project) -> None:
    project.launch("stubborn", "stubborn", "stubborn", "stubborn")
    wait_until(lambda: all((project.folder / f"out/{run}/child").exists() for run in (0, 1)), "two runs that wait")
    children = [int((project.folder / f"out/{run}/child").read_text()) for run in (0, 1)]
    rows = project.json("cancel", "@last/0", "@last/3", "--grace", "0.5")
    assert [(row["run"].rpartition("/")[2], row["state"]) for row in rows] == [("0", "CANCELLED"), ("3", "CANCELLED")]
    assert "cancelled by" in rows[0]["reason"]
    assert not psutil.pid_exists(children[0])
    assert psutil.pid_exists(children[1])
    said, _ = project.run("cancel", "@last", "--grace", "0.2")
    assert said == "2 runs cancelled\n"
    assert not psutil.pid_exists(children[1])
    project.run("wait", "@last", code=ExitCode.NOT_COMPLETED)
    assert project.states() == ["CANCELLED"] * 4
    assert project.began(3) == []
    assert project.run("cancel", "@last/0")[0] == "1 run has ended already\n"
    project.wait_for_no_agent()  # the last runs' end is the job's


def test_a_drained_job_leaves_runs_that_are_sent_on_request(project: Project) -> None:
    project.launch("waits", "waits", "waits", slots=1)
    project.wait_for("RUNNING", "PENDING", "PENDING")
    (batch,) = project.json("status", "@last")[0]["batches"]
    assert "finishes what runs" in project.run("drain", batch["job_id"])[0]
    (project.folder / "go").touch()
    said, _ = project.run("wait", "@last", code=ExitCode.STUCK)
    assert "2 runs wait, and no live job will take them: `clusterduck requeue --unfinished" in said
    assert "has ended already" in project.run("drain", batch["job_id"], code=ExitCode.NOT_FOUND)[1]
    said, _ = project.run("requeue", "@last/1", "@last/2", "--failed")
    assert "it waits for nobody; --unfinished sends such runs" in said
    said, _ = project.run("requeue", "--unfinished", "--dry-run")
    assert said == "2 runs that nobody would take: 2 in a new job\n"
    project.run("requeue", "--unfinished")
    project.run("wait", "@last")
    assert [project.began(run) for run in range(3)] == [["1 None"]] * 3, "what never began is at its first attempt"


def test_a_drained_job_is_not_counted_on(project: Project) -> None:
    project.launch("waits", "fails")
    project.wait_for("RUNNING", "FAILED")
    (batch,) = project.json("status", "@last")[0]["batches"]
    planned, _ = project.run("requeue", "--failed", "--dry-run")
    assert planned.startswith("1 failed run: 1 to a running job on ")
    project.run("drain", batch["job_id"])
    nowhere = "1 failed run: 1 in a new job\n"
    wait_until(lambda: project.run("requeue", "--failed", "--dry-run")[0] == nowhere, "its empty slot does not count")
    assert "takes nothing more" in project.run("nodes", "@last")[0]
    assert project.json("nodes", "@last")[0]["draining"]
    (project.folder / "go").touch()


def test_waiting_gives_up_when_asked_to_and_survives_its_own_death(project: Project) -> None:
    project.launch("waits", "fails")
    project.wait_for("RUNNING", "FAILED")
    assert project.json("wait", "@last", "--timeout", "0.5", code=ExitCode.TIMEOUT)[0]["outcome"] == "timeout"
    assert "1 run did not complete" in project.run("wait", "@last", "--fail-fast", code=ExitCode.NOT_COMPLETED)[0]
    waiting = project.start("wait", "@last")
    assert waiting.stderr is not None
    assert "1 of 2 runs done" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(60) == ExitCode.INTERRUPTED
    waiting.communicate()
    again = project.start("wait", "@last")
    (project.folder / "go").touch()
    output, _ = again.communicate(timeout=180)
    assert (again.returncode, output.split(": ")[1]) == (
        ExitCode.NOT_COMPLETED,
        "1 of 2 runs did not complete (1 failed)\n",
    )


def test_what_died_with_its_agent_is_put_back_by_itself_as_often_as_max_retries_says(project: Project) -> None:
    project.launch("waits", "waits", "waits", options=("hydra.launcher.max_retries=1",))
    project.wait_for("RUNNING", "RUNNING", "PENDING")
    wait_until(lambda: project.began(0) and project.began(1), "the runs' own beginning")
    (batch,) = project.json("status", "@last")[0]["batches"]
    controller = psutil.Process(int(batch["job_id"]))
    everybody = controller.children(recursive=True)
    for process in [*controller.children(), controller]:
        process.kill()
    assert psutil.wait_procs(everybody, 30)[1] == [], "a run that still lived might complete"
    (project.folder / "go").touch()
    project.run("wait", "@last")
    assert [project.began(run) for run in range(2)] == [["1 None", "2 None"]] * 2
    assert len(project.began(2)) == 1
    (run,) = project.json("show", "@last/0")
    assert [attempt["state"] for attempt in run["attempts"]] == ["FAILED", "COMPLETED"]


def test_nonsense_is_refused_in_a_sentence_and_changes_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.launch(*["succeeds"] * 7)
    project.run("wait", "@last")
    project.wait_for_no_agent()
    acts = sorted((project.root / "acts").iterdir())
    usage, absent = ExitCode.USAGE, ExitCode.NOT_FOUND
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("TMPDIR", project.environ["TMPDIR"])
    monkeypatch.setattr("tempfile.tempdir", None)
    for arguments, code, words in [
        (["requeue"], usage, "Say which runs"),
        (["requeue", "@last/2-1"], absent, "has no runs 2-1"),
        (["requeue", "@last/7"], absent, "it has 7 (from 0)"),
        (["requeue", "@last/x"], usage, "does not name runs"),
        (["requeue", "nosuch/1"], absent, "No sweep 'nosuch'"),
        (["requeue", "--state", "BROKEN"], usage, "is no state"),
        (["requeue", "@last/1", "--sweep", "@last"], usage, "leave out --sweep"),
        (["requeue", "@last/1", "--set", "tiemout_min=3"], usage, "tiemout_min is no option"),
        (["requeue", "@last/1", "--set", "timeout_min=soon"], usage, "timeout_min must be a whole number"),
        (["requeue", "@last/1", "--set", "wait_for_completion=true"], usage, "cannot be changed"),
        (["requeue", "@last/1", "--set", "verbose=3"], usage, "must be true or false"),
        (["requeue", "@last/1", "--set", "timeout_min"], usage, "sets no option"),
        (["requeue", "@last/1", "--override", "a=1,2"], usage, "has several values"),
        (["requeue", "@last/1", "--override", "]"], usage, "is no override"),
        (["requeue", "--state", "COMPLETED"], usage, "7 COMPLETED runs: 7 in a new job. That is more than 5 runs"),
        (["cancel"], usage, "Say what to cancel"),
        (["cancel", "--job", "12345678"], absent, "No sweep of this ledger has a job 12345678"),
        (["cancel", "@last/1", "--grace", "-1"], usage, "is no number of seconds"),
        (["drain", "../x"], absent, "has a job ../x"),
        (["wait", "nosuch"], absent, "No sweep 'nosuch'"),
    ]:
        assert in_this_process(*arguments) == code, arguments
        output, errors = capsys.readouterr()
        assert words in errors, arguments
        assert (output, len(errors.splitlines())) == ("", 1), arguments
    assert project.run("requeue", "--failed")[0] == "no run was sent again\n"
    assert project.run("cancel", "@last")[0] == "there is nothing to cancel\n"
    assert sorted((project.root / "acts").iterdir()) == acts
    (project.folder / "out").rename(project.folder / "moved")
    for arguments in (["requeue", "@last/1"], ["cancel", "@last"], ["wait", "@last"]):
        _, errors = project.run(*arguments, code=ExitCode.NOT_FOUND)
        assert "it was moved or deleted" in errors.splitlines()[-1]
