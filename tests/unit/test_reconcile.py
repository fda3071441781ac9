"""Jobs that ended without their agents' word: what is put on record, when, and when it is not."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from journals_builder import SweepBuilder

from clusterduck.events import AgentEnded, BatchSubmitted
from clusterduck.ledger.replica import Replica
from clusterduck.model import AgentId, Attempt
from clusterduck.paths import LedgerPaths
from clusterduck.queue import Claims
from clusterduck.reconcile import close_dead_batches, look_at_jobs
from clusterduck.result import write_result
from clusterduck.slurm.looks import Looks

Slurm = Callable[[str], None]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepBuilder:
    """Eight runs in one job, four of them running (0 to 3), in a project whose replica is its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    built = SweepBuilder(tmp_path)
    built.write(built.launch_journal(), built.launch(8))
    at = built.start + 100
    running = [built.started(at + 1, run, slot=run) for run in range(4)]
    built.write(
        built.agent_journal(), [built.agent_started(at, "node1"), *running, built.beat(at + 20, 4)], close=False
    )
    return built


@pytest.fixture
def replica(sweep: SweepBuilder) -> Iterator[Replica]:
    with Replica.open(sweep.ledger) as opened:
        opened.catch_up()
        yield opened


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Decide what squeue says; there is no accounting, and the controller knows no job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    denial = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"

    def say(script: str) -> None:
        said = {"squeue": f"echo x >> {folder}/calls\n{script}", "sacct": "exit 1", "scontrol": denial}
        for name, text in said.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)

    return say


def row(sweep: SweepBuilder, state: str, reason: str = "None", job: str = "9000") -> str:
    return f"echo '{job}|{state}|{int(sweep.start) + 3}|N/A|0:00|1|{reason}'"


def age(sweep: SweepBuilder, seconds: float) -> None:
    """Let the last look be so many seconds older."""
    path = LedgerPaths(sweep.ledger).replica_folder / "looks.json"
    data = json.loads(path.read_text())
    data["asked_at"] -= seconds
    for job in data["jobs"]:
        job[2:4] = [None if at is None else at - seconds for at in job[2:4]]
    path.write_text(json.dumps(data))


def states(replica: Replica) -> list[str]:
    return [state for (state,) in replica.connection.execute("SELECT state FROM run ORDER BY number").fetchall()]


def batch(replica: Replica) -> tuple[str, str]:
    found: tuple[str, str] = replica.connection.execute("SELECT state, reason FROM batch WHERE id = '0-0'").fetchone()
    return found


def acts(sweep: SweepBuilder) -> list[Path]:
    return sorted(sweep.paths.acts.iterdir())


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("NODE_FAIL", "NODE_FAIL"),
        ("BOOT_FAIL", "NODE_FAIL"),
        ("TIMEOUT", "TIMEOUT"),
        ("CANCELLED", "CANCELLED"),
        ("PREEMPTED", "PREEMPTED"),
        ("OUT_OF_MEMORY", "OUT_OF_MEMORY"),
        ("FAILED", "FAILED"),
        ("COMPLETED", "FAILED"),
    ],
)
def test_two_looks_that_agree_close_a_job(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm, said: str, state: str
) -> None:
    slurm(row(sweep, said))
    assert close_dead_batches(sweep.ledger, replica) == []
    assert acts(sweep) == [] and states(replica) == ["RUNNING"] * 4 + ["PENDING"] * 4
    age(sweep, 6)
    assert close_dead_batches(sweep.ledger, replica) == [f"{sweep.sweep} 0-0"]
    assert states(replica) == [state] * 4 + ["PENDING"] * 4
    assert batch(replica) == (state, f"Slurm says of job 9000: {said}. Its agent did not say how it ended.")
    age(sweep, 100)
    assert close_dead_batches(sweep.ledger, replica) == []
    assert len(acts(sweep)) == 1


def test_one_look_is_one_look_however_long_the_process_is_held_up_after_it(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(row(sweep, "FAILED"))
    look, now = Looks.look, time.time

    def held_up(self: Looks, *arguments: Any) -> str | None:
        said = look(self, *arguments)
        monkeypatch.setattr(time, "time", lambda: now() + 60)
        return said

    monkeypatch.setattr(Looks, "look", held_up)
    assert close_dead_batches(sweep.ledger, replica) == []
    assert states(replica) == ["RUNNING"] * 4 + ["PENDING"] * 4


def test_the_reason_says_with_which_exit_code_a_job_failed(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm, tmp_path: Path
) -> None:
    slurm(row(sweep, "FAILED", "NonZeroExitCode"))
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho 'JobId=9000 ExitCode=137:0'\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    close_dead_batches(sweep.ledger, replica)
    age(sweep, 6)
    close_dead_batches(sweep.ledger, replica)
    said = "FAILED, NonZeroExitCode, exit code 137, killed by SIGKILL"
    assert batch(replica) == ("FAILED", f"Slurm says of job 9000: {said}. Its agent did not say how it ended.")


def test_a_sweep_whose_folder_is_gone_is_passed_over(sweep: SweepBuilder, replica: Replica, slurm: Slurm) -> None:
    slurm(row(sweep, "NODE_FAIL"))
    close_dead_batches(sweep.ledger, replica)
    age(sweep, 6)
    shutil.rmtree(sweep.paths.root)
    assert close_dead_batches(sweep.ledger, replica) == []
    assert states(replica) == ["RUNNING"] * 4 + ["PENDING"] * 4, "what was last heard of it"


def test_a_job_that_lives_again_at_the_second_look_is_not_over(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm
) -> None:
    for state in ("NODE_FAIL", "PENDING", "NODE_FAIL", "RUNNING"):
        slurm(row(sweep, state))
        assert close_dead_batches(sweep.ledger, replica) == []
        age(sweep, 600)
    assert acts(sweep) == []


def test_what_slurm_merely_does_not_list_takes_longer(sweep: SweepBuilder, replica: Replica, slurm: Slurm) -> None:
    slurm("exit 0")
    for seconds in (6, 30, 20):
        assert close_dead_batches(sweep.ledger, replica) == []
        age(sweep, seconds)
    assert close_dead_batches(sweep.ledger, replica) == []
    age(sweep, 10)
    assert close_dead_batches(sweep.ledger, replica) == [f"{sweep.sweep} 0-0"]
    assert batch(replica) == ("FAILED", "Slurm no longer knows job 9000, and its agent fell silent.")


def test_an_agent_that_was_just_heard_of_outweighs_a_missing_row(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm
) -> None:
    slurm("exit 0")
    sweep.write(sweep.agent_journal(), [sweep.beat(time.time() - 30, 4)], close=False)
    for _ in range(3):
        replica.catch_up()
        assert close_dead_batches(sweep.ledger, replica) == []
        age(sweep, 600)


FAILURES = {
    "fails": ("echo 'Unable to contact slurm controller' >&2; exit 1", "squeue failed: Unable to contact slurm contr"),
    "fails silently": ("exit 4", "squeue failed: exit code 4"),
    "prints rubbish": ("echo 'have a nice day'", "squeue printed what is no list of jobs: 'have a nice day'"),
    "prints half a row": ("echo '9000|RUN'", "squeue printed what is no list of jobs: '9000|RUN'"),
    "prints no state": ("echo '9000|?|1|N/A|0:00|1|None'", "squeue printed what is no list of jobs: '9000|?|1|N/A|0:"),
    "hangs": ("exec sleep 60", "squeue did not answer within 0.3 s"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_what_was_heard_last_holds_while_slurm_cannot_be_asked(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm, how: str
) -> None:
    script, words = FAILURES[how]
    slurm(row(sweep, "RUNNING"))
    heard = look_at_jobs(sweep.ledger, replica).jobs[sweep.sweep, "0-0"]
    assert (heard.state, heard.as_of) == ("RUNNING", None)
    age(sweep, 600)
    slurm(script)
    for _ in range(2):  # a failure is not tried again at once, and what was heard is not forgotten
        outlook = look_at_jobs(sweep.ledger, replica, patience_s=0.3)
        assert outlook.trouble is not None and words in outlook.trouble and outlook.trouble.count(".") <= 2
        job = outlook.jobs[sweep.sweep, "0-0"]
        assert job.state == "RUNNING" and job.as_of is not None and 599 < time.time() - job.as_of < 700
        assert close_dead_batches(sweep.ledger, replica, outlook) == []
    slurm(row(sweep, "COMPLETING"))
    age(sweep, 20)
    if how != "hangs":  # one that hung is given a pause
        outlook = look_at_jobs(sweep.ledger, replica)
        assert (outlook.trouble, outlook.jobs[sweep.sweep, "0-0"].as_of) == (None, None)


@pytest.mark.parametrize("how", ["fails", "prints rubbish"])
def test_an_end_that_was_heard_of_is_none_while_slurm_cannot_be_asked(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm, how: str
) -> None:
    slurm(row(sweep, "NODE_FAIL"))
    close_dead_batches(sweep.ledger, replica)
    slurm(FAILURES[how][0])
    for _ in range(3):
        age(sweep, 600)
        outlook = look_at_jobs(sweep.ledger, replica)
        job = outlook.jobs[sweep.sweep, "0-0"]
        assert job.state == "NODE_FAIL" and job.as_of is not None and not job.is_over
        assert close_dead_batches(sweep.ledger, replica, outlook) == []
    slurm(row(sweep, "NODE_FAIL"))
    age(sweep, 600)
    assert close_dead_batches(sweep.ledger, replica) == [f"{sweep.sweep} 0-0"]  # the earlier look still counts


def test_a_job_that_slurm_never_told_of_is_unknown(sweep: SweepBuilder, replica: Replica, slurm: Slurm) -> None:
    slurm("exit 1")
    job = look_at_jobs(sweep.ledger, replica).jobs[sweep.sweep, "0-0"]
    assert (job.state, job.is_over) == ("UNKNOWN", False)


@pytest.mark.parametrize("script", ["echo 'Unable to contact slurm controller' >&2; exit 1", "exit 0", "echo rubbish"])
def test_a_squeue_that_lists_nothing_proves_nothing(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm, tmp_path: Path, script: str
) -> None:
    slurm("exit 0")
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
    for _ in range(3):
        assert close_dead_batches(sweep.ledger, replica) == []
        age(sweep, 600)
    assert acts(sweep) == []


def test_who_waits_for_another_process_that_asks_goes_on_with_what_was_heard(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm
) -> None:
    slurm(row(sweep, "RUNNING"))
    look_at_jobs(sweep.ledger, replica)
    age(sweep, 10)
    before = (LedgerPaths(sweep.ledger).replica_folder / "looks.json").read_text()
    lock = os.open(LedgerPaths(sweep.ledger).replica_folder / "looks.json.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    outlook = look_at_jobs(sweep.ledger, replica, patience_s=0.2)
    os.close(lock)
    job = outlook.jobs[sweep.sweep, "0-0"]
    assert job.state == "RUNNING" and job.as_of is not None
    assert outlook.trouble is not None and "another process of this host" in outlook.trouble
    assert (LedgerPaths(sweep.ledger).replica_folder / "looks.json").read_text() == before
    assert look_at_jobs(sweep.ledger, replica).trouble is None


def test_slurm_is_asked_once_by_all_who_look_at_the_same_time(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm, tmp_path: Path
) -> None:
    slurm(row(sweep, "RUNNING"))
    with Replica.open(sweep.ledger) as other:
        answers = [look_at_jobs(sweep.ledger, each).jobs for each in (replica, other, replica)]
    assert answers[0] == answers[1] == answers[2]
    assert (tmp_path / "bin" / "calls").read_text() == "x\n"
    age(sweep, 10)
    look_at_jobs(sweep.ledger, replica)
    assert (tmp_path / "bin" / "calls").read_text() == "x\nx\n"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"jobs": [[1, 2, "x", {}]], "trouble": 3, "asked_at": "soon"}'])
def test_a_damaged_note_of_the_last_look_costs_one_question(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm, content: str
) -> None:
    slurm(row(sweep, "RUNNING"))
    (LedgerPaths(sweep.ledger).replica_folder / "looks.json").write_text(content)
    assert look_at_jobs(sweep.ledger, replica).jobs[sweep.sweep, "0-0"].state == "RUNNING"


def leave_result(sweep: SweepBuilder, attempt: Attempt, report: dict[str, Any]) -> Path:
    path = sweep.paths.result(attempt)
    write_result(path, functools.partial(pickle.dump, None), report)
    os.utime(path, (sweep.start + 130, sweep.start + 130))
    return path


def test_results_that_were_left_say_how_their_attempts_ended(
    sweep: SweepBuilder, replica: Replica, slurm: Slurm
) -> None:
    result = leave_result(sweep, Attempt(0, 1), {"state": "COMPLETED", "return_value": "0.25", "unheard_of": 1})
    failed = {"state": "FAILED", "reason": "ValueError: no", "exception_type": "ValueError", "traceback": "T"}
    leave_result(sweep, Attempt(1, 1), failed)
    sweep.paths.result(Attempt(2, 1)).write_bytes(b"torn")
    leave_result(sweep, Attempt(3, 1), {"state": "RUNNING"})  # says nothing about an end
    Claims(sweep.paths.claims, str(AgentId("0-0", 0, 0))).claim(Attempt(4, 1))  # claimed, and never reported
    leave_result(sweep, Attempt(4, 1), {"state": "COMPLETED"})
    Claims(sweep.paths.claims, str(AgentId("0-1", 0, 0))).claim(Attempt(5, 1))  # another batch's
    leave_result(sweep, Attempt(5, 1), {"state": "COMPLETED"})
    leave_result(sweep, Attempt(6, 1), {"state": "COMPLETED"})  # nobody's
    slurm(row(sweep, "NODE_FAIL"))
    close_dead_batches(sweep.ledger, replica)
    age(sweep, 10)
    assert close_dead_batches(sweep.ledger, replica)
    assert states(replica) == ["COMPLETED", "FAILED", "NODE_FAIL", "NODE_FAIL", "COMPLETED"] + ["PENDING"] * 3
    rows = replica.connection.execute(
        "SELECT reason, return_value, result, exception_type, traceback, duration_s, slot FROM attempt ORDER BY run"
    ).fetchall()
    assert rows[0] == (None, "0.25", str(result), None, None, 29.0, 0)
    assert rows[1][:2] == ("ValueError: no", None) and rows[1][3:5] == ("ValueError", "T")
    kept = replica.connection.execute("SELECT completed, failed, node_fail, pending, running FROM sweep").fetchone()
    assert kept == (2, 1, 2, 3, 0)


def test_the_agents_own_word_outranks_what_was_found(sweep: SweepBuilder, replica: Replica, slurm: Slurm) -> None:
    leave_result(sweep, Attempt(0, 1), {"state": "COMPLETED"})
    slurm(row(sweep, "NODE_FAIL"))
    close_dead_batches(sweep.ledger, replica)
    age(sweep, 10)
    close_dead_batches(sweep.ledger, replica)
    at = sweep.start + 140
    late = [sweep.ended(at, 0, state="TIMEOUT"), sweep.ended(at, 1), AgentEnded(time=at, reason="done", exit_code=1)]
    sweep.write(sweep.agent_journal(), late)
    with Replica.open(sweep.ledger) as again:
        again.catch_up(look_at=[sweep.sweep])
        assert states(again)[:4] == ["TIMEOUT", "COMPLETED", "FAILED", "FAILED"]


def test_two_who_find_it_at_once_say_the_same(sweep: SweepBuilder, replica: Replica, slurm: Slurm) -> None:
    leave_result(sweep, Attempt(0, 1), {"state": "COMPLETED"})
    slurm(row(sweep, "TIMEOUT", "TimeLimit"))
    look_at_jobs(sweep.ledger, replica)
    age(sweep, 10)
    outlook = look_at_jobs(sweep.ledger, replica)
    script = "import sys; from pathlib import Path; from clusterduck.ledger.replica import Replica\n"
    script += "from clusterduck.reconcile import close_dead_batches\n"
    script += "with Replica.open(Path(sys.argv[1])) as r: print(close_dead_batches(Path(sys.argv[1]), r))"
    others = [subprocess.Popen([sys.executable, "-c", script, str(sweep.ledger)], stdout=subprocess.PIPE) for _ in "ab"]
    close_dead_batches(sweep.ledger, replica, outlook)
    for other in others:
        assert other.communicate(timeout=180)[0] in (b"[]\n", f"['{sweep.sweep} 0-0']\n".encode())
        assert other.returncode == 0
    replica.catch_up(look_at=[sweep.sweep])
    assert len(acts(sweep)) >= 1
    assert states(replica) == ["COMPLETED"] + ["TIMEOUT"] * 3 + ["PENDING"] * 4
    said = "Slurm says of job 9000: TIMEOUT, TimeLimit. Its agent did not say how it ended."
    assert batch(replica) == ("TIMEOUT", said)


def test_a_job_cancelled_before_it_began_leaves_its_runs_pending(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sweep = SweepBuilder(tmp_path)
    sweep.write(sweep.launch_journal(), sweep.launch(8, batches=2))
    slurm(f"{row(sweep, 'CANCELLED')}; {row(sweep, 'PENDING', 'Priority', job='9001')}")
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        close_dead_batches(sweep.ledger, replica)
        age(sweep, 10)
        assert close_dead_batches(sweep.ledger, replica) == [f"{sweep.sweep} 0-0"]
        assert batch(replica) == ("CANCELLED", "Slurm says of job 9000: CANCELLED. It never began its work.")
        assert states(replica) == ["PENDING"] * 8


# --- local jobs


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as started:
        yield started
        started.kill()


def local(sweep: SweepBuilder, pid: int, host: str, submitted_at: float) -> None:
    submitted = BatchSubmitted(time=submitted_at, batch="0-0", cluster="local", job_id=str(pid), host=host, log_dir="")
    sweep.write(sweep.launch_journal(launch=9), [submitted])


def test_a_local_job_lives_as_long_as_its_process(
    sweep: SweepBuilder, replica: Replica, process: subprocess.Popen[bytes]
) -> None:
    local(sweep, process.pid, socket.gethostname(), time.time())
    replica.catch_up()
    assert look_at_jobs(sweep.ledger, replica).jobs[sweep.sweep, "0-0"].state == "RUNNING"
    age(sweep, 600)
    assert close_dead_batches(sweep.ledger, replica) == []
    process.kill()  # a zombie until its parent, we, asks for it: no less dead
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert close_dead_batches(sweep.ledger, replica) == []
    age(sweep, 10)
    assert close_dead_batches(sweep.ledger, replica) == [f"{sweep.sweep} 0-0"]
    assert batch(replica)[0] == "FAILED" and f"process {process.pid} on" in batch(replica)[1]
    assert states(replica) == ["FAILED"] * 4 + ["PENDING"] * 4


def test_a_process_that_began_later_is_another_one(
    sweep: SweepBuilder, replica: Replica, process: subprocess.Popen[bytes]
) -> None:
    local(sweep, process.pid, socket.gethostname(), time.time() - 3600)
    replica.catch_up()
    assert look_at_jobs(sweep.ledger, replica).jobs[sweep.sweep, "0-0"].state == "ABSENT"
    age(sweep, 10)
    assert close_dead_batches(sweep.ledger, replica)


def test_another_hosts_local_job_is_unknown_here(
    sweep: SweepBuilder, replica: Replica, process: subprocess.Popen[bytes]
) -> None:
    local(sweep, process.pid, "elsewhere", time.time() - 3600)
    replica.catch_up()
    for _ in range(3):
        outlook = look_at_jobs(sweep.ledger, replica)
        assert outlook.jobs[sweep.sweep, "0-0"].state == "UNKNOWN"
        assert close_dead_batches(sweep.ledger, replica, outlook) == []
        age(sweep, 600)


def test_a_local_agent_that_outlived_its_controller_is_alive(
    sweep: SweepBuilder, replica: Replica, process: subprocess.Popen[bytes]
) -> None:
    here = socket.gethostname()
    local(sweep, 2**22 - 1, here, time.time())  # a process that is not there
    agent = sweep.agent_started(time.time(), here)
    sweep.write(sweep.agent_journal(restart=1), [type(agent)(**{**vars(agent), "pid": process.pid})], close=False)
    replica.catch_up()
    assert look_at_jobs(sweep.ledger, replica).jobs[sweep.sweep, "0-0"].state == "RUNNING"
