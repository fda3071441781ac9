"""The commands as people and programs call them: in a process of their own, on projects made of journals."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from journals_builder import SweepBuilder
from made_project import HOSTILE, Project, make

from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.main import parser
from clusterduck.events import BatchClosed
from clusterduck.wording import iso

COMMANDS = ["status", "nodes", "runs", "show", "logs", "timeline", "tui", "requeue", "cancel", "drain", "wait"]
COMMANDS += ["rebuild", "export", "prune", "doctor"]


# --- what programs read


def test_status_for_programs(project: Project) -> None:
    live, old = project.json("status")
    assert project.json("status", "bb")[0]["sweep"] == live["sweep"] == "train-bb3fg"
    assert set(live) == {
        *("sweep", "folder", "job_name", "user", "host", "cwd", "command", "launcher", "created_at", "launches"),
        *("git_commit", "git_dirty", "runs", "counts", "batches"),
    }
    assert live["runs"] == 13
    assert {state: n for state, n in live["counts"].items() if n} == {"PENDING": 8, "RUNNING": 4, "FAILED": 1}
    assert [batch["state"] for batch in old["batches"]] == ["COMPLETED", "COMPLETED"]
    running, pending = live["batches"]
    assert set(running) == {
        *("batch", "launch", "state", "reason", "cluster", "job_id", "job_state", "job_reason", "start_estimate"),
        *("time_left_s", "host", "agent_pid", "restart", "nodes", "slots_per_node", "share_runs", "first_run"),
        *("stop_run", "planned_at", "submitted_at", "started_at", "ended_at", "heartbeat_at", "submit_host"),
        *("log_folder", "job_state_as_of"),
    }
    assert (running["job_id"], running["host"], running["agent_pid"]) == ("9000", "node1", 700)
    assert (running["state"], running["job_state"], running["time_left_s"]) == ("RUNNING", "RUNNING", 3723)
    assert (pending["state"], pending["job_reason"], pending["host"]) == ("PENDING", "Priority", None)
    assert pending["job_state_as_of"] is None  # it was just asked
    assert pending["start_estimate"].endswith("Z")


def test_runs_for_programs(project: Project) -> None:
    rows = project.json("runs", "--sweep", "@last")
    assert [row["run"] for row in rows] == [f"train-bb3fg/{number}" for number in range(13)]
    assert set(rows[0]) == {
        *("run", "sweep", "number", "state", "attempt", "reason", "overrides", "return_value", "exception_type"),
        *("started_at", "ended_at", "duration_s", "host", "slot", "launch", "batch", "folder", "log"),
    }
    assert (rows[0]["state"], rows[0]["attempt"], rows[0]["exception_type"]) == ("FAILED", 1, "ValueError")
    assert rows[0]["reason"] == "It ended FAILED." and rows[0]["overrides"] == ["model=convnet", "lr=0.001", "+seed=0"]
    assert (rows[5]["state"], rows[5]["attempt"], rows[5]["reason"], rows[5]["started_at"]) == (
        "PENDING",
        0,
        None,
        None,
    )
    assert rows[12]["overrides"] == HOSTILE
    assert project.json("runs", "--sweep", "aa", "--limit", "1")[0]["return_value"] == 0.0


def test_runs_are_chosen_and_sorted(project: Project) -> None:
    def numbers(*arguments: str) -> list[str]:
        return [row["run"].removeprefix("train-") for row in project.json("runs", *arguments)]

    assert numbers("--failed") == ["bb3fg/0", "aa2de/6", "aa2de/13", "aa2de/20"]
    assert numbers("--failed", "--state", "FAILED", "--state", "TIMEOUT", "--sweep", "b") == ["bb3fg/0"]
    assert numbers("--failed", "--state", "TIMEOUT") == [], "both must hold"
    assert numbers("--state", "running", "--state", "FAILED", "--sweep", "b", "--limit", "2") == ["bb3fg/0", "bb3fg/1"]
    assert numbers("--sweep", "aa", "--sort", "return_value", "--reverse", "--limit", "2") == ["aa2de/23", "aa2de/22"]
    assert numbers("--sweep", "aa", "--sort", "seed", "--limit", "3") == ["aa2de/0", "aa2de/1", "aa2de/2"]
    assert numbers("--sweep", "aa", "--sort", "seed", "--reverse", "--limit", "2") == ["aa2de/23", "aa2de/22"]
    assert numbers("--sort", "return_value", "--limit", "2") == ["aa2de/0", "aa2de/1"]  # sweeps together
    assert numbers("--sort", "seed", "--limit", "3") == numbers("--sort", "seed")[:3]
    values = [row["return_value"] for row in project.json("runs", "--sort", "return_value", "--reverse")]
    assert values[:21] == sorted(values[:21], reverse=True) and set(values[21:]) == {None}  # those without come last


def test_nodes_for_programs(project: Project) -> None:
    (node,) = project.json("nodes")
    assert (node["host"], node["agent_pid"], node["cpu_percent"], node["time_left_s"]) == ("node1", 700, 55.0, 3723)
    slots = node["slots"]
    assert [slot["run"] for slot in slots] == [f"train-bb3fg/{run}" for run in (4, 1, 2, 3)]
    assert (slots[1]["cpus"], slots[1]["gpus"], slots[1]["gpu_percent"]) == ([2, 3], ["1"], 40.0)
    assert slots[1]["overrides"] == ["model=convnet", "lr=0.0001", "+seed=0"]
    assert project.json("nodes", "aa") == []


def test_show_for_programs(project: Project) -> None:
    (run,) = project.json("show", "train-bb3fg/0")
    assert run["run"] == "train-bb3fg/0"
    (attempt,) = run["attempts"]
    assert attempt["traceback"].endswith("ValueError: a loss of nan\n")
    assert (attempt["attempt"], attempt["state"], attempt["slot"], attempt["cpus"]) == (1, "FAILED", 0, [0, 1])
    assert attempt["log"].endswith("0.1.log")


# --- what people read


@pytest.mark.parametrize("arguments", [("status",), ("status", "@last"), ("nodes",), ("runs",), ("show", "@last/12")])
def test_nothing_of_a_sweep_reaches_a_terminal_as_a_command(project: Project, arguments: tuple[str, ...]) -> None:
    output, errors = project.run(*arguments)
    assert not [c for c in output + errors if c != "\n" and not c.isprintable()]


def test_hostile_overrides_are_shown_as_they_are(project: Project) -> None:
    output, _ = project.run("show", "@last/12")
    assert r"x=\x1b]0;owned\x07\x1b[31mred\n[/oops]\u202e" in output and "lr=漢字" in output
    assert r"\x1b[31mred\n[/oops]\u202e" in project.run("runs", "--sweep", "@last")[0]


def test_status_for_people(project: Project) -> None:
    output, _ = project.run("status", "bb")
    lines = [line.split() for line in output.splitlines()]
    assert lines[0] == ["sweep", "started", "runs", "pending", "running", "failed"]
    assert lines[1][0] == "train-bb3fg" and lines[1][3:] == ["13", "8", "4", "1"]
    assert lines[-2][:5] == ["train-bb3fg", "0-0", "9000", "RUNNING", "1:02:03"]
    assert lines[-1][:4] == ["train-bb3fg", "0-1", "9001", "PENDING"] and lines[-1][-1] == "Priority"


def test_show_for_people(project: Project) -> None:
    output, _ = project.run("show", "bb/0")
    for words in ("FAILED", "It ended FAILED.", "ValueError: a loss of nan", "node1", "slot 0", "0.1.log", "0.1.pkl"):
        assert words in output


def dead(own: Project, said: str) -> SweepBuilder:
    """A sweep whose job was cancelled before it had begun its last two runs; Slurm lists nothing of it."""
    lost = SweepBuilder(own.folder, "train-cc4gh", start=time.time() - 60)
    lost.write(lost.launch_journal(), lost.launch(4), close=False)
    at = time.time() - 50
    ended = [lost.started(at, 0), lost.ended(at + 1, 0, state="FAILED"), lost.started(at, 1), lost.ended(at + 1, 1)]
    lost.write(lost.agent_journal(), [lost.agent_started(at, "node1"), *ended], close=False)
    (own.folder / "bin" / "squeue").write_text("#!/bin/sh\nexit 0\n")
    closed = BatchClosed(time=at + 2, batch="0-0", state="CANCELLED", reason=said)
    lost.write(lost.paths.acts / "close.jsonl", [closed])
    return lost


def test_a_run_that_no_job_will_take_says_why_and_what_to_do(own: Project) -> None:
    dead(own, "Slurm says of job 9000: CANCELLED.")
    remedy = "`clusterduck requeue --unfinished --sweep train-cc4gh`"
    said = "its batch 0-0 ended CANCELLED (Slurm says of job 9000: CANCELLED)"
    why = f"No job will take it: {said}. Send it with {remedy}."
    rows = own.json("runs", "--sweep", "cc")
    assert [row["reason"] for row in rows] == ["It ended FAILED.", None, why, why]
    assert [row["number"] for row in own.json("runs", "--sweep", "cc", "--sort", "reason")][1:] == [2, 3, 1]
    by_reason = own.json("runs", "--sweep", "cc", "--sort", "reason")
    assert own.json("runs", "--sweep", "cc", "--sort", "reason", "--limit", "2") == by_reason[:2]
    back = own.json("runs", "--sweep", "cc", "--sort", "reason", "--reverse")
    assert [row["number"] for row in back] == [3, 2, 0, 1]
    assert own.json("runs", "--sweep", "cc", "--sort", "reason", "--reverse", "--limit", "1") == back[:1]
    assert own.json("runs", "--sweep", "cc", "--sort", "reason", "--failed") == [
        row for row in by_reason if row["state"] in ("FAILED", "NODE_FAIL")
    ]
    assert own.run("runs", "--sweep", "cc")[0].count(remedy) == 2
    assert own.json("show", "cc/2")[0]["reason"] == why
    shown, _ = own.run("show", "cc/2")
    assert why in shown and "waits for" not in shown
    hint = f"train-cc4gh: 2 runs wait, and no job will take them: {remedy} sends them"
    assert hint in own.run("status")[0] and hint in own.run("status", "cc")[0]


def test_a_sweep_whose_folder_is_gone_is_shown_with_a_word_on_that(own: Project) -> None:
    lost = dead(own, "Slurm says so.")
    own.run("status")
    shutil.rmtree(lost.paths.sweep_dir)
    for command in (["status"], ["status", "cc"], ["runs", "--sweep", "cc"], ["show", "cc/0"]):
        output, errors = own.run(*command)
        assert "train-cc4gh" in output
        assert (errors.count("was moved or deleted"), "clusterduck rebuild FOLDER" in errors) == (1, True), command
    output, errors = own.run("logs", "cc/0", code=ExitCode.NOT_FOUND)
    assert (output, errors.count("was moved or deleted"), errors.count("\n")) == ("", 1, 1)


def test_a_run_that_a_live_job_will_take_says_only_which(project: Project) -> None:
    assert project.json("show", "bb/5")[0]["reason"] is None
    assert "waits for  batch 0-0" in project.run("show", "bb/5")[0]
    assert "no job will take" not in project.run("status")[0]


def test_a_completed_run_with_a_reason_says_it(own: Project) -> None:
    reason = "its return value, a _thread.lock, could not be pickled"
    done = replace(own.live.ended(time.time() - 5, 1), reason=reason)
    own.live.write(own.live.agent_journal(), [done], close=False)
    (row,) = own.json("show", "bb/1")
    assert (row["state"], row["reason"], row["attempts"][0]["reason"]) == ("COMPLETED", reason, reason)
    assert own.run("show", "bb/1")[0].count(reason) == 2
    assert reason in own.run("runs", "--state", "COMPLETED", "--sweep", "bb")[0]


def test_colours_are_for_terminals(project: Project) -> None:
    assert b"\x1b[31mFAILED" in project.on_terminal("runs")
    plain = project.on_terminal("runs", NO_COLOR="1")
    assert b"\x1b" not in plain and b"FAILED" in plain
    assert "\x1b" not in project.run("runs")[0]
    assert max(map(len, project.on_terminal("runs", COLUMNS="60", NO_COLOR="1").decode().splitlines())) <= 60


# --- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ("status", "nothing"),
            ExitCode.NOT_FOUND,
            "No sweep 'nothing' in this ledger; it has train-bb3fg, train-aa2de.",
        ),
        (("status", "train"), ExitCode.NOT_FOUND, "may mean any of these sweeps"),
        (("show", "@last/99"), ExitCode.NOT_FOUND, "Sweep train-bb3fg has no run 99; it has 13"),
        (("show", "@last"), ExitCode.USAGE, "'@last' does not name a run: write <sweep>/<number>"),
        (("show", "@last/1\x1b[31m"), ExitCode.USAGE, r"\x1b[31m"),
        (("logs", "@last/5"), ExitCode.NOT_FOUND, "Run train-bb3fg/5 is PENDING and has printed nothing yet."),
        (("logs", "@last/1"), ExitCode.NOT_FOUND, "The log of run train-bb3fg/1 is not there: "),
        (("logs", "@last/0", "--attempt", "7"), ExitCode.NOT_FOUND, "has no attempt 7; it has 1"),
        (("logs", "@last/0", "--attempt", "0"), ExitCode.USAGE, "attempts are counted from 1"),
        (("logs", "@last/0", "-f", "--json"), ExitCode.USAGE, "leave out -f or --json"),
        (("runs", "--state", "DONE"), ExitCode.USAGE, "'DONE' is no state; the states are PENDING, RUNNING"),
        (("runs", "--failed", "--state", "RUNNING"), ExitCode.USAGE, "no run is one of these and RUNNING"),
        (("runs", "--sort", "colour"), ExitCode.USAGE, "Runs cannot be sorted by 'colour'"),
        (("runs", "--limit", "-1"), ExitCode.USAGE, "'-1' is not a whole number"),
        (("runs", "--limit", "1" * 20), ExitCode.USAGE, "is more than 999999999"),
        (("status", "--ledger", "nowhere/x.db"), ExitCode.NOT_FOUND, "No ledger at "),
        (("status", "--ledger", "/etc/passwd"), ExitCode.NOT_FOUND, "No sweeps are recorded beside /etc/passwd"),
        (("frobnicate",), ExitCode.USAGE, "invalid choice: 'frobnicate'"),
        ((), ExitCode.USAGE, "COMMAND"),
    ],
)
def test_mistakes_are_one_sentence_and_an_exit_code(
    project: Project, arguments: tuple[str, ...], code: ExitCode, words: str
) -> None:
    output, errors = project.run(*arguments, code=code)
    assert output == "" and words in errors and errors.count("\n") == 1 and "\x1b" not in errors


def test_a_folder_without_a_project_says_what_to_do(project: Project, tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "clusterduck.cli.main", "status"],
        cwd=tmp_path,
        env=project.environment,
        capture_output=True,
        timeout=180,
        check=False,
    )
    assert process.returncode == ExitCode.NOT_FOUND
    assert b"No ledger in" in process.stderr and b"--ledger FILE" in process.stderr


def test_a_folder_that_somebody_else_could_write_is_refused_and_the_rest_shown(own: Project) -> None:
    own.live.paths.root.chmod(0o777)
    output, errors = own.run("status")
    assert "train-aa2de" in output and "can be written by other users" in errors and errors.count("\n") == 1


NO_CONTACT = "#!/bin/sh\necho 'slurm_load_jobs error: no contact' >&2; exit 1\n"
NO_CONTACT_SAID = (
    "clusterduck: Slurm's command squeue failed: slurm_load_jobs error: no contact. "
    "Jobs are shown as they were when they were last heard of.\n"
)


def test_slurm_that_never_answered_is_said_where_it_matters(own: Project) -> None:
    (own.folder / "bin" / "squeue").write_text(NO_CONTACT)
    output, errors = own.run("status")
    assert errors == NO_CONTACT_SAID
    running, pending = (line.split() for line in output.splitlines()[-2:])
    assert running[3] == "RUNNING"  # its agent was just heard of
    assert pending[3] == "PENDING"  # as it was submitted
    assert re.search(r"as of \S+ (s|min|h|days) ago; Slurm has not told of it yet", " ".join(pending))
    assert own.json("status", "@last")[0]["batches"][1]["job_state"] == "UNKNOWN"
    assert own.run("runs")[1] == ""


def test_what_slurm_said_last_is_shown_with_its_age(own: Project) -> None:
    own.run("status")
    (looks,) = (own.folder / "tmp").rglob("looks.json")
    data = json.loads(looks.read_text())
    data["asked_at"] -= 7 * 60
    for job in data["jobs"]:
        job[3] -= 7 * 60
    looks.write_text(json.dumps(data))
    (own.folder / "bin" / "squeue").write_text(NO_CONTACT)
    output, errors = own.run("status")
    assert errors == NO_CONTACT_SAID
    running, pending = own.json("status", "@last")[0]["batches"]
    assert (running["job_state"], pending["job_state"], pending["job_reason"]) == ("RUNNING", "PENDING", "Priority")
    assert pending["job_state_as_of"] == iso(data["jobs"][1][3])
    assert 3723 - 7 * 60 - 60 < running["time_left_s"] <= 3723 - 7 * 60
    assert re.search("as of [78] min ago; Priority", output) and "UNKNOWN" not in output


ABSENT = ""
BAD_COMMANDS = {
    "absent": (ABSENT, "is not on this host's PATH"),
    "failing": ("echo 'slurm_load_jobs error: no contact' >&2; exit 1", "failed: slurm_load_jobs error: no contact."),
    "rubbish": ("echo Welcome to the cluster", "'Welcome to the cluster'"),
}


@pytest.mark.parametrize("how", BAD_COMMANDS)
def test_without_slurms_word_commands_say_so_in_one_sentence_and_lose_nothing(own: Project, how: str) -> None:
    """Scripts stand for all of Slurm's commands."""
    script, words = BAD_COMMANDS[how]
    if script is ABSENT:
        own.environment["PATH"] = str(own.folder / "bin")  # here real ones may be elsewhere
    for name in ("squeue", "scancel", "scontrol", "sacct"):
        path = own.folder / "bin" / name
        path.unlink(missing_ok=True)
        if script is not ABSENT:
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
    output, errors = own.run("status")
    assert words in errors and errors.count("\n") == 1
    assert [line.split()[3] for line in output.splitlines()[-2:]] == ["RUNNING", "PENDING"]
    output, errors = own.run("wait", "bb", "--timeout", "0.1", code=ExitCode.TIMEOUT)
    assert "not all runs had ended" in output and words in errors and errors.count("\n") <= 2
    acts = len(list(own.live.paths.acts.glob("*.jsonl")))
    output, errors = own.run("cancel", "bb/6-11", "--yes")
    assert "6 runs cancelled" in output and words in errors
    assert len(list(own.live.paths.acts.glob("*.jsonl"))) == acts + 1
    (sweep,) = own.json("status", "bb")
    assert sweep["counts"]["RUNNING"] == 4 and [batch["state"] for batch in sweep["batches"]] == ["RUNNING", "PENDING"]


def test_a_closed_standard_output_is_said(project: Project) -> None:
    command = f'"{sys.executable}" -m clusterduck.cli.main status >&-'
    done = subprocess.run(["sh", "-c", command], cwd=project.folder, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.FAILED, 1)
    assert "standard output is closed" in done.stderr


def test_a_reader_that_stops_reading_ends_it_quietly(project: Project) -> None:
    process = project.start("runs", stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == ExitCode.BROKEN_PIPE


def test_looking_publishes_what_it_found(own: Project) -> None:
    own.live.ledger.unlink(missing_ok=True)
    own.run("runs", "--limit", "1")
    with sqlite3.connect(f"file:{own.live.ledger}?mode=ro", uri=True) as connection:
        assert connection.execute("SELECT sum(runs) FROM sweep").fetchone() == (37,)
    connection.close()
    before = own.live.ledger.stat().st_mtime_ns
    own.run("runs", "--limit", "1")
    assert own.live.ledger.stat().st_mtime_ns == before  # nothing new: nothing written


# --- help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example_and_the_exit_codes(project: Project, command: str) -> None:
    output, _ = project.run(*command.split(), "--help")
    assert f"clusterduck {command}".strip() in output.split("example", 1)[1]
    for code in ExitCode:
        assert f"  {code.value:<3} {code.meaning}" in output


def test_only_what_exists_is_offered(project: Project) -> None:
    (choices,) = [a.choices for a in parser()._actions if a.dest == "command"]
    assert choices is not None and list(choices) == COMMANDS


def test_help_and_a_look_load_nothing_that_takes_long() -> None:
    script = "import sys; from clusterduck.cli.main import parser; parser(); "
    script += "heavy = {'hydra', 'omegaconf', 'submitit', 'rich', 'textual', 'sqlite_utils', 'psutil', 'numpy'}; "
    script += "light = heavy | {'sqlite3', 'clusterduck.ledger'}; print(sorted(light & set(sys.modules))); "
    script += "import clusterduck.cli.status, clusterduck.cli.logs; print(sorted(heavy & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=180, check=True).stdout
    assert output == b"[]\n[]\n"


def test_a_file_name_that_pythons_settings_have_no_letters_for_is_said(tmp_path: Path) -> None:
    own = make(tmp_path / "é")
    settings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "clusterduck.cli.main", "status"]
    done = subprocess.run(command, cwd=own.folder, env=os.environ | settings, capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (ExitCode.FAILED, 1)
    assert b"'\\xe9'" in done.stderr and b"set PYTHONUTF8=1" in done.stderr
