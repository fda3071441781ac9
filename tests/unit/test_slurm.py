"""What we make of Slurm's commands, asked as real processes that imitate Slurm 22.05: well, badly, and not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clusterduck.errors import SlurmError
from clusterduck.slurm import command
from clusterduck.slurm.acts import scancel
from clusterduck.slurm.jobs import (
    ABSENT,
    UNKNOWN,
    JobStatus,
    exit_words,
    is_denied,
    is_job_id,
    job_end_time,
    look_up,
    still_listed,
)

Fake = Callable[[str, str], Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Make a command that runs a shell script, and notes its arguments in ``<name>.calls``, one call a line."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in ("squeue", "sacct", "scontrol"):
        _script(folder, name, "echo 'should not have been called' >&2; exit 9")

    def make(name: str, script: str) -> Path:
        return _script(folder, name, script)

    return make


def _script(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    calls = folder / f"{name}.calls"
    path.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{script}\n')
    path.chmod(0o755)
    return calls


def lines(*rows: str) -> str:
    return "cat <<'END'\n" + "\n".join(rows) + "\nEND\n"


NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


def test_one_call_answers_for_all_jobs(fake: Fake) -> None:
    calls = fake(
        "squeue",
        lines(
            "2_1|PENDING|1795528078|N/A|3:00|1|JobArrayTaskLimit",
            "3|PENDING|1795528078|N/A|UNLIMITED|5|PartitionNodeLimit",
            "4|PENDING|1795528078|1795528258|1:00|1|Resources",
            "1|RUNNING|1795528078|1795528078|1-02:03:04|2|None",
            "5|FAILED|1795528078|1795528078|4:20|1|NonZeroExitCode",
            "6|COMPLETED|1795528078|1795528078|4:20|1|JobArrayTaskLimit",
        ),
    )
    answer = look_up({"1": 1795528079.0, "2_1": 1795528080.5, "3": None, "4": None, "5": None, "6": None})
    assert len(calls.read_text().splitlines()) == 1
    assert "--jobs=1,2,3,4,5,6 " in calls.read_text()
    assert answer["1"] == JobStatus("1", "RUNNING", "", None, 26 * 3600 + 184, 2, 1795528078)
    assert answer["2_1"] == JobStatus("2_1", "PENDING", "JobArrayTaskLimit", None, 180, 1, 1795528078)
    assert (answer["3"].reason, answer["3"].time_left_s) == ("PartitionNodeLimit", None)
    assert answer["4"].start_estimate == 1795528258
    assert answer["5"].is_over and answer["5"].reason == "NonZeroExitCode"
    assert answer["6"].is_over and answer["6"].reason == ""  # what it once waited for says nothing about its end


def test_a_waiting_array_in_one_row_is_all_its_tasks(fake: Fake) -> None:
    fake("squeue", lines("7_[0-2,8,10-20:5%4]|PENDING|1795528078|N/A|3:00|1|Resources"))
    fake("sacct", NO_ACCOUNTING)
    answer = look_up({f"7_{index}": None for index in (0, 2, 3, 8, 15, 16)} | {"7": None, "77_1": None})
    assert [job for job, status in answer.items() if status.state == "PENDING"] == ["7_0", "7_2", "7_8", "7_15"]


def test_what_squeue_does_not_list_is_asked_of_sacct_once(fake: Fake) -> None:
    fake("squeue", lines("1|RUNNING|1795528078|1795528078|4:58|1|None"))
    calls = fake(
        "sacct",
        lines(
            "2_0|TIMEOUT|1795528078|1795528079|1|None",
            "3|CANCELLED by 1000|1795528078|None|5|PartitionNodeLimit",
            "3.batch|CANCELLED|1795528078|None|5|None",
        ),
    )
    answer = look_up({"1": None, "2_0": None, "3": None, "4": None})
    assert [status.state for status in answer.values()] == ["RUNNING", "TIMEOUT", "CANCELLED", ABSENT]
    assert answer["3"].reason == "CANCELLED by 1000"
    (call,) = calls.read_text().splitlines()
    assert "--jobs=2,3,4 " in call


def test_a_single_unknown_job_is_absent_and_not_an_error(fake: Fake) -> None:
    fake("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    fake("sacct", NO_ACCOUNTING)
    assert look_up({"99": None})["99"].state == ABSENT


def test_what_is_no_job_id_reaches_no_command(fake: Fake) -> None:
    hostile = {"": None, "-j": None, "1;reboot": None, "$(reboot)": None, "\u0661": None, "1_": None, "1\n2": None}
    assert {status.state for status in look_up(hostile).values()} == {UNKNOWN}
    assert not any(is_job_id(job) for job in hostile)
    with pytest.raises(SlurmError, match="not the id"):
        job_end_time("1 --all")


def test_an_older_job_of_the_same_id_is_not_ours(fake: Fake) -> None:
    fake("squeue", lines("1|RUNNING|1700000000|1700000000|4:58|1|None"))
    fake("sacct", lines("1|COMPLETED|1600000000|1600000001|1|None"))
    assert look_up({"1": 1795528078.0})["1"] == JobStatus("1", ABSENT, "its id belongs to another job")


@pytest.mark.parametrize(("restarts", "state"), [("0", ABSENT), ("2", "PENDING")])
def test_a_later_job_of_the_same_id_is_ours_only_if_it_was_requeued(fake: Fake, restarts: str, state: str) -> None:
    fake("squeue", lines("1|PENDING|1795540000|1795540130|5:00|1|BeginTime"))
    fake("scontrol", f"echo 'JobId=1 JobName=x Requeue=1 Restarts={restarts} BatchFlag=1'")
    fake("sacct", NO_ACCOUNTING)
    assert look_up({"1": 1795528078.0})["1"].state == state


def test_records_are_followed_through_requeues_and_no_further(fake: Fake) -> None:
    fake("squeue", "exit 0")
    fake(
        "sacct",
        lines(
            "1|COMPLETED|1600000000|1600000000|1|None",  # years ago
            "1|NODE_FAIL|1795528078|1795528079|1|None",
            "1|TIMEOUT|1795540000|1795540001|1|None",  # after the requeue
            "1|COMPLETED|1900000000|1900000001|1|None",  # years later
        ),
    )
    assert look_up({"1": 1795528078.0})["1"].state == "TIMEOUT"


RUBBISH = (
    "head -c 3000 /dev/urandom; echo; printf 'CLUSTER: big\\n1|RUNNING\\n1|running|x|y|z|w|v\\n'\n"
    "printf '1|RUN\\033[31mNING|never|N/A|soon|many|\\033]0;owned\\007No\\tpe\\n'\n"
    "head -c 100000 /dev/zero | tr '\\0' 'x'; echo\n"
)


def test_rubbish_says_nothing_of_a_job_that_it_does_not_list(fake: Fake) -> None:
    fake("squeue", RUBBISH)
    with pytest.raises(SlurmError, match="squeue printed what is no list of jobs") as caught:
        look_up({"1": None})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_rubbish_beside_rows_is_passed_over(fake: Fake) -> None:
    fake("squeue", RUBBISH + lines("CLUSTER: other", "1|RUNNING|1795528078|1795528078|4:58|1|None", "2|odd"))
    assert look_up({"1": None})["1"].state == "RUNNING"


def test_the_heading_of_a_cluster_is_no_rubbish(fake: Fake) -> None:
    fake("squeue", lines("CLUSTER: big", "1|RUNNING|1795528078|1795528078|4:58|1|None"))
    fake("sacct", NO_ACCOUNTING)
    assert [status.state for status in look_up({"1": None, "2": None}).values()] == ["RUNNING", ABSENT]


def test_one_that_did_not_answer_in_time_is_given_a_pause(fake: Fake) -> None:
    calls = fake("squeue", "exec sleep 60")
    for _ in range(2):
        with pytest.raises(SlurmError, match=r"squeue did not answer within 0\.3 s"):
            look_up({"1": None}, timeout_s=0.3)
    with pytest.raises(SlurmError):
        still_listed(["1"])
    assert len(calls.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "denied"),
    [
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", True),
        ("echo 'Job 8_1 not found'; exit 1", True),
        ("echo 'Job 9_1 not found'; exit 1", False),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1", False),
        ("echo 'JobId=8 ArrayTaskId=1'", False),
        ("exit 0", False),
    ],
)
def test_only_the_controllers_own_no_is_one(fake: Fake, script: str, denied: bool) -> None:
    fake("scontrol", script)
    assert is_denied("8_1") is denied


def test_control_characters_are_removed(fake: Fake) -> None:
    fake("squeue", "printf '1|PENDING|1795528078|N/A|5:00|1|\\033]0;owned\\007Wait\\302\\233ing\\r\\n'")
    assert look_up({"1": None})["1"].reason == "]0;ownedWaiting"


def test_a_command_that_hangs_is_killed_with_its_children(fake: Fake, tmp_path: Path) -> None:
    fake("squeue", f"sleep 600 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(SlurmError, match=r"squeue did not answer within 1 s"):
        command.run("squeue", [], timeout_s=1)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 60
    while _runs(child):
        assert time.monotonic() < deadline, "the command's child outlived it"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_that_prints_without_end_is_stopped(fake: Fake) -> None:
    fake("squeue", "exec yes 0123456789012345678901234567890123456789")
    with pytest.raises(SlurmError, match="more than anybody asked for"):
        look_up({"1": None})


def test_a_failing_command_is_one_sentence_with_its_own_words(fake: Fake) -> None:
    fake(
        "squeue",
        "echo 'squeue: error: fetch failed' >&2; echo 'slurm_load_jobs error: Unable to contact' >&2; echo >&2; exit 1",
    )
    with pytest.raises(SlurmError) as caught:
        look_up({"1": None})
    assert str(caught.value) == ("Slurm's command squeue failed: slurm_load_jobs error: Unable to contact.")


def test_an_absent_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="squeue is not on this host's PATH"):
        look_up({"1": None})


def test_the_users_own_settings_do_not_reach_the_commands(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SQUEUE_STATES": "R",
        "SACCT_FORMAT": "jobname",
        "LC_ALL": "de_DE.UTF-8",
        "SLURM_CONF": "/x",
    }.items():
        monkeypatch.setenv(name, value)
    fake(
        "scontrol", 'echo "JobId=1 EndTime=12345 |$SQUEUE_STATES$SACCT_FORMAT|$LC_ALL|$SLURM_CONF|$SLURM_TIME_FORMAT|"'
    )
    answer = command.run("scontrol", [])
    assert answer.lines == ("JobId=1 EndTime=12345 ||C|/x|%s|",)
    assert os.environ["SQUEUE_STATES"] == "R"


@pytest.mark.parametrize(("text", "end"), [("EndTime=1795528757", 1795528757.0), ("EndTime=Unknown", None), ("", None)])
def test_the_end_of_a_job(fake: Fake, text: str, end: float | None) -> None:
    calls = fake("scontrol", f"echo 'JobId=8 StartTime=5 SuspendTime=None XEndTime=3 {text} Deadline=N/A'")
    assert job_end_time("8_1") == end
    assert calls.read_text() == "--oneliner show job 8_1\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("0:0", ""),
        ("3:0", "exit code 3"),
        ("137:0", "exit code 137, killed by SIGKILL"),
        ("0:9", "killed by SIGKILL"),
        ("0:99", "killed by signal 99"),
        ("0:53", "its output file could not be opened"),
        ("", ""),
    ],
)
def test_how_a_job_ended_in_words(fake: Fake, code: str, words: str) -> None:
    fake("scontrol", f"echo 'JobId=8 JobState=FAILED DerivedExitCode=1:0 ExitCode={code} RunTime=00:00:10'")
    assert exit_words("8") == words


def test_how_a_job_ended_is_left_out_where_slurm_does_not_say(fake: Fake) -> None:
    fake("scontrol", "exit 1")
    assert exit_words("8") == "" == exit_words("no job")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1",
            "failed: scancel: error: Unable",
        ),
        ("echo Welcome", "printed what nobody asked for: 'Welcome'"),
        ("exec sleep 60", "did not answer within 0.3 s"),
    ],
)
def test_a_scancel_that_may_not_have_been_one(fake: Fake, script: str, words: str) -> None:
    fake("scancel", script)
    with pytest.raises(SlurmError, match=f"scancel {words}"):
        scancel(["8"], timeout_s=0.3)


def test_a_scancel_of_what_is_over_is_no_failure(fake: Fake) -> None:
    fake("scancel", "echo 'Kill job error on job id 8: Job/step already completing or completed' >&2; exit 1")
    scancel(["8"])
