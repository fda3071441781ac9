"""What happens to agents: killed, cut off, told to end, out of time; and what people ask of them while they work."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection
from typing import Any

import psutil
import pytest
from agent_bench import APP, PATIENCE_S, Bench, fork_server_of, until

from clusterduck import journal
from clusterduck.agent import fence
from clusterduck.events import (
    AgentEnded,
    Asked,
    AttemptEnded,
    AttemptLocated,
    AttemptsRequeued,
    AttemptStarted,
    FolderSetAside,
    RunsClosed,
)
from clusterduck.inbox import Request, post
from clusterduck.journal import JournalWriter
from clusterduck.model import AgentId, Attempt
from clusterduck.queue import Claims, Queue, Requeued


def test_runs_survive_their_fork_server_and_others_are_started_by_a_new_one(bench: Bench) -> None:
    bench.plan("waits", "waits", "returns", "returns")
    agent = bench.start(slots=2)
    pids = [bench.running(0), bench.running(1)]
    server = fork_server_of(agent)
    server.kill()
    until(lambda: "a new one is started" in bench.log(), "the death of the fork server is noticed")
    assert all(psutil.pid_exists(pid) for pid in pids)
    bench.go()
    assert bench.wait(agent) == 0
    assert {bench.ended(run).state for run in range(4)} == {"COMPLETED"}
    assert all((bench.folder / f"done-{run}").read_text() == "begun 1\n" for run in range(4))


#: Kills the fork server, once, when it is about to tell the agent something that has the words given.
DIES_BEFORE_TELLING = """
import os, signal, socket, sys
if "clusterduck.agent.forkserver" in open("/proc/self/cmdline").read().split("\\0"):
    def send(self, data, *flags, real=socket.socket.send):
        if os.environ["DIES_AT"].encode() in data and not os.path.exists("has-died"):
            open("has-died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, data, *flags)
    socket.socket.send = send
"""


@pytest.mark.parametrize("moment", ["started", "ended"])
def test_a_fork_server_that_dies_between_doing_and_telling(bench: Bench, moment: str) -> None:
    bench.plan("returns", "returns")
    (bench.folder / "sitecustomize.py").write_text(DIES_BEFORE_TELLING)
    environ = {"PYTHONPATH": str(bench.folder), "DIES_AT": f'"did": "{moment}"'}
    assert bench.wait(bench.start(slots=1, environ=environ)) == 0
    assert (bench.folder / "has-died").exists()
    assert [bench.ended(run).state for run in range(2)] == ["COMPLETED", "COMPLETED"]
    assert [(bench.folder / f"done-{run}").read_text() for run in range(2)] == ["begun 1\n"] * 2


def stand_still_while_the_first_run_fails(bench: Bench, **settings: Any) -> int:
    """An agent's exit code that was stopped while a run failed, so long that it doubts whether its job is its own."""
    agent = bench.start(slots=1, **settings)
    bench.running(0)
    agent.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    bench.go()
    until(bench.sweep.result(Attempt(0, 1)).exists, "the run fails")
    until(lambda: time.monotonic() > stopped + fence.LAPSE_S + 0.5, "it stands still for that long")
    agent.send_signal(signal.SIGCONT)
    return bench.wait(agent)


def test_a_failure_that_is_heard_of_in_doubt_is_retried(bench: Bench) -> None:
    bench.plan("waits_and_fails_once")
    assert stand_still_while_the_first_run_fails(bench, max_retries=1, retry_on=["FAILED"]) == 1
    assert "stood still" in bench.log()
    assert bench.ended(0, 2).state == "COMPLETED"


def test_a_failure_that_is_heard_of_in_doubt_counts_before_another_run_is_started(bench: Bench) -> None:
    bench.plan("waits_and_fails_once", "returns", "returns")
    assert stand_still_while_the_first_run_fails(bench, max_failures=1) == 1
    assert "stood still" in bench.log()
    assert [e.run for e in bench.events(AttemptStarted)] == [0]


def test_no_run_outlives_an_agent_that_is_killed_after_its_fork_server(bench: Bench) -> None:
    bench.plan("waits", "stubborn")
    agent = bench.start(slots=2)
    pids = [bench.running(0), bench.running(1)]
    fork_server_of(agent).kill()
    until(lambda: "a new one is started" in bench.log(), "the death of the fork server is noticed")
    agent.kill()
    agent.wait(PATIENCE_S)
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the runs are gone")


def test_a_fork_server_that_cannot_start_is_no_endless_loop(bench: Bench) -> None:
    bench.plan("returns")
    (bench.folder / "broken").mkdir()
    (bench.folder / "broken" / "hydra.py").write_text("raise ImportError('broken on purpose')")
    agent = bench.start(slots=1, environ={"PYTHONPATH": str(bench.folder / "broken")})
    assert bench.wait(agent) == 1
    (end,) = bench.events(AgentEnded)
    assert "fork server ends as soon as it is started" in end.reason
    assert "broken on purpose" in bench.log()


def test_no_run_outlives_an_agent_that_is_killed(bench: Bench) -> None:
    bench.plan("waits", "stubborn")
    agent = bench.start(slots=2)
    pids = [bench.running(0), bench.running(1)]
    agent.kill()
    agent.wait(PATIENCE_S)
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the runs are gone")
    assert bench.events(AttemptEnded) == []


def test_a_job_that_is_told_to_end_ends_its_runs_and_gives_back_the_rest(bench: Bench) -> None:
    bench.plan("waits", "stubborn", "returns", "returns")
    agent = bench.start(slots=2)
    bench.running(0)
    bench.running(1)
    until((bench.folder / "deaf-1").exists, "run 1 is deaf to SIGTERM")
    until(lambda: len(list(bench.sweep.claims.iterdir())) == 4, "two attempts are held ready")
    agent.send_signal(signal.SIGTERM)
    assert bench.wait(agent) == 1
    for run, number in ((0, signal.SIGTERM), (1, signal.SIGKILL)):
        end = bench.ended(run)
        assert (end.state, end.signal, end.by_job_end) == ("CANCELLED", number, True)
        assert "SIGTERM" in end.reason
    assert {path.name for path in bench.sweep.claims.iterdir()} == {"0.1", "1.1"}
    again = bench.start(slots=2, batch="0-1")
    bench.go()
    assert bench.wait(again) == 0
    assert [bench.ended(run).state for run in (2, 3)] == ["COMPLETED", "COMPLETED"]


def test_a_started_again_job_goes_on_with_what_it_left_unfinished_and_repeats_nothing(bench: Bench) -> None:
    bench.plan("returns", "waits", "waits", "returns")
    first = bench.start(slots=2)
    bench.ended(0)
    bench.running(1)
    bench.running(2)
    first.send_signal(signal.SIGTERM)
    assert bench.wait(first) == 1
    bench.go()
    second = bench.start(slots=2)  # the same batch: a restart
    assert bench.wait(second) == 0
    states = {(end.run, end.attempt): end.state for end in bench.events(AttemptEnded)}
    assert states[0, 1] == "COMPLETED"
    assert (states[1, 1], states[1, 2]) == ("CANCELLED", "COMPLETED")
    assert (states[2, 1], states[2, 2]) == ("CANCELLED", "COMPLETED")
    assert states[3, 1] == "COMPLETED"
    assert len(states) == 6
    assert (bench.folder / "done-0").read_text() == "begun 1\n"
    assert {e.kind for e in bench.events(AttemptsRequeued)} == {"restart"}


def test_what_kills_its_agent_again_and_again_is_found_out_and_the_runs_beside_it_complete(bench: Bench) -> None:
    bench.plan("waits", "waits", "waits", "kills_agent", "returns")

    def begin(attempt: int, runs: Collection[int], **settings: Any) -> int:
        """The exit code of an agent that is killed once it has reported that these have begun."""
        agent = bench.start(slots=4, **settings)
        for run in runs:
            bench.running(run, attempt)
        (bench.folder / f"known-{attempt}").touch()
        return bench.wait(agent)

    for attempt in (1, 2):
        assert begin(attempt, range(4), stop_run=4) == -signal.SIGKILL
    bench.go()
    assert begin(3, [3]) == -signal.SIGKILL, "once more, alone"
    assert bench.wait(bench.start(slots=4)) == 0
    end = bench.ended(3, 3)
    assert (end.state, "lost 3 times" in end.reason) == ("FAILED", True)
    ends = sorted((e.run, e.state) for e in bench.events(AttemptEnded))
    assert ends == [*((run, "COMPLETED") for run in (0, 1, 2)), (3, "FAILED"), (4, "COMPLETED")]
    apart = [e for e in bench.events(AttemptsRequeued) if "lost 2 times in a row" in e.reason]
    assert sorted(run for e in apart for run, _ in e.attempts) == [0, 1, 2, 3]
    journals = bench.sweep.agent_journals("0-0")
    third, fourth = (
        [event for path in journals[AgentId("0-0", restart, 0)] for event in journal.read_all(path)]
        for restart in (2, 3)
    )
    assert next(e.run for e in third if isinstance(e, AttemptStarted)) == 4, "what is not set apart comes first"
    busy = 0
    for event in fourth:
        busy += isinstance(event, AttemptStarted) - isinstance(event, AttemptEnded)
        assert busy <= 1


def test_a_result_that_was_written_counts_though_its_agent_died(bench: Bench) -> None:
    bench.plan("waits", "waits")
    agent = bench.start(slots=2)
    bench.running(0)
    bench.running(1)
    agent.send_signal(signal.SIGSTOP)
    bench.go()
    results = [bench.sweep.result(Attempt(run, 1)) for run in (0, 1)]
    until(lambda: all(path.exists() for path in results), "both results are written")
    agent.kill()
    agent.wait(PATIENCE_S)
    second = bench.start(slots=2)
    assert bench.wait(second) == 0
    assert [bench.ended(run).state for run in (0, 1)] == ["COMPLETED", "COMPLETED"]
    assert [bench.ended(run).return_value for run in (0, 1)] == ["1", "1"]
    assert (bench.folder / "done-0").read_text() == "begun 1\n"


def test_a_cut_off_agent_ends_when_its_job_was_started_again(bench: Bench) -> None:
    bench.plan("waits")
    agent = bench.start(slots=1)
    bench.running(0)
    (bench.sweep.batch("0-0") / "1.0").mkdir()
    agent.send_signal(signal.SIGUSR1)
    assert bench.wait(agent) == 1
    assert bench.ended(0).state == "PREEMPTED"


def test_a_cancelled_run_ends_within_its_grace_and_the_others_do_not_notice(bench: Bench) -> None:
    bench.plan("waits", "stubborn", "returns", "returns")
    agent = bench.start(slots=2)
    bench.running(0)
    bench.running(1)
    until((bench.folder / "deaf-1").exists, "run 1 is deaf to SIGTERM")
    until(lambda: len(list(bench.sweep.claims.iterdir())) == 4, "two attempts are held ready")
    inbox = bench.sweep.agent(AgentId("0-0", 0, 0)) / "inbox"
    post(inbox, Request(kind="cancel", by="me@host", attempts=(Attempt(1, 1), Attempt(3, 1)), grace_s=0.2))
    agent.send_signal(signal.SIGUSR1)
    end = bench.ended(1)
    assert (end.state, end.signal, end.reason) == ("CANCELLED", signal.SIGKILL, "cancelled by me@host")
    assert not end.by_job_end
    assert bench.ended(3).state == "CANCELLED"
    assert bench.ended(2).state == "COMPLETED"
    bench.go()
    assert bench.wait(agent) == 1
    assert bench.ended(0).state == "COMPLETED"
    assert not (bench.folder / "done-3").exists()


def test_a_drained_agent_finishes_what_runs_and_takes_no_more(bench: Bench) -> None:
    bench.plan("waits", "returns", "returns")
    agent = bench.start(slots=1)
    bench.running(0)
    post(bench.sweep.agent(AgentId("0-0", 0, 0)) / "inbox", Request(kind="drain", by="me@host"))
    agent.send_signal(signal.SIGUSR1)
    until(lambda: "me@host asks to drain" in bench.log(), "the request is taken")
    bench.go()
    assert bench.wait(agent) == 0
    assert bench.ended(0).state == "COMPLETED"
    assert not (bench.folder / "done-1").exists()
    assert {path.name for path in bench.sweep.claims.iterdir()} == {"0.1"}
    assert bench.events(AgentEnded)[0].drained, "else its time limit would have the job started again"


def test_a_drained_job_that_slurm_starts_again_takes_no_more_either(bench: Bench) -> None:
    bench.plan("waits", "returns")
    agent = bench.start(slots=1)
    bench.running(0)
    act = JournalWriter(bench.sweep.acts, bench.sweep.sweep, "drain", name="drain-1")
    act.append([Asked(kind="drain", user="me", host="host", batches=["0-0"])])
    act.close()
    agent.kill()
    agent.wait(PATIENCE_S)
    again = bench.start(slots=1)
    assert bench.wait(again) == 0
    assert "me@host asks to drain" in bench.log()
    assert bench.events(AgentEnded)[0].drained
    assert [e.run for e in bench.events(AttemptStarted)] == [0], "what it left is put back, and left alone"
    other = bench.start(slots=1, batch="0-1")
    bench.go()
    assert bench.wait(other) == 0
    assert {e.run for e in bench.events(AttemptEnded) if e.state == "COMPLETED"} == {0, 1}


def test_slurms_warning_reaches_the_runs_that_handle_it_and_nothing_more_is_started(bench: Bench) -> None:
    bench.plan("saves", "waits", "returns")
    agent = bench.start(slots=2)
    bench.running(0)
    bench.running(1)
    until((bench.folder / "listening-0").exists, "run 0 listens")
    agent.send_signal(signal.SIGUSR2)
    until((bench.folder / "saved-0").exists, "run 0 saves its work")
    bench.go()
    bench.wait(agent)
    assert [bench.ended(run).state for run in (0, 1)] == ["COMPLETED", "COMPLETED"]
    assert not (bench.folder / "done-2").exists()


def test_a_run_that_saves_its_work_on_the_warning_and_ends_itself_goes_on_with_its_job(bench: Bench) -> None:
    bench.plan("saves_and_exits")
    agent = bench.start(slots=1)
    bench.running(0)
    until((bench.folder / "listening-0").exists, "run 0 listens")
    agent.send_signal(signal.SIGUSR2)
    end = bench.ended(0)
    assert (end.state, end.exit_code, end.by_job_end) == ("PREEMPTED", 7, True)  # long before the end: no time limit
    assert "sys.exit(7)" in end.reason
    assert bench.wait(agent) == 1


def test_what_a_run_started_does_not_outlive_an_agent_that_is_killed(bench: Bench) -> None:
    bench.plan("leaves")
    agent = bench.start(slots=1)
    bench.running(0)
    told = bench.folder / "child-0"
    until(lambda: told.exists() and told.read_text(), "the run has a child in a session of its own")
    agent.kill()
    agent.wait(PATIENCE_S)
    until(lambda: not psutil.pid_exists(int(told.read_text())), "the child is gone")


def test_what_the_time_limit_does_not_let_end_is_timed_out(bench: Bench) -> None:
    bench.plan("waits", "returns")
    agent = bench.start(slots=1, timeout_min=0.5, signal_delay_s=4)  # 25 seconds are left of thirty
    bench.running(0)
    assert bench.wait(agent) == 1
    end = bench.ended(0)
    assert (end.state, end.by_job_end) == ("TIMEOUT", True)
    assert bench.events(AgentEnded)[0].timed_out
    assert not (bench.folder / "done-1").exists()


def test_a_timed_out_job_asks_to_be_started_again_as_often_as_it_may_and_goes_on(bench: Bench) -> None:
    bench.plan("waits", "returns")
    limits: dict[str, Any] = {"timeout_min": 0.4, "signal_delay_s": 4, "max_num_timeout": 1}
    first = bench.start(slots=1, **limits)
    bench.running(0)
    assert bench.wait(first) == 144  # submitit's local executor starts it again
    second = bench.start(slots=1, **limits)
    bench.running(0, 2)
    assert bench.wait(second) == 1
    assert (bench.ended(0).state, bench.ended(0, 2).state) == ("TIMEOUT", "TIMEOUT")
    assert "max_num_timeout=1" in bench.log()


def test_no_run_is_started_that_cannot_end_in_time(bench: Bench) -> None:
    bench.plan("returns", "returns")
    agent = bench.start(slots=1, timeout_min=2, expected_run_min=3.0)
    bench.wait(agent)
    assert bench.events(AttemptStarted) == []
    assert "expected_run_min" in bench.log()
    assert bench.events(AgentEnded)[0].timed_out


def test_a_run_has_a_time_limit_of_its_own(bench: Bench) -> None:
    bench.plan("waits", "returns")
    agent = bench.start(slots=2, run_timeout_min=0.01)
    assert bench.wait(agent) == 1
    end = bench.ended(0)
    assert (end.state, end.reason, end.by_job_end) == ("TIMEOUT", "it ran longer than run_timeout_min=0.01", False)


def test_failed_attempts_are_tried_again_as_often_as_asked(bench: Bench) -> None:
    bench.plan("fails_once", "fails", "returns")
    agent = bench.start(slots=1, max_retries=1, retry_on=["FAILED"])
    assert bench.wait(agent) == 1
    states = {(end.run, end.attempt): end.state for end in bench.events(AttemptEnded)}
    assert states == {
        (0, 1): "FAILED",
        (0, 2): "COMPLETED",
        (1, 1): "FAILED",
        (1, 2): "FAILED",
        (2, 1): "COMPLETED",
    }
    assert {(e.kind, e.attempts[0][0]) for e in bench.events(AttemptsRequeued)} == {("retry", 0), ("retry", 1)}
    folder = bench.folder / "out" / "0"
    assert (folder / "attempt-1.log").exists()
    assert (folder / "attempt-2.log").exists()
    assert (folder / ".hydra.attempt-1" / "config.yaml").exists()


def test_the_last_run_is_tried_again_too(bench: Bench) -> None:
    bench.plan("fails_once")
    agent = bench.start(slots=2, max_retries=1, retry_on=["FAILED"])
    assert bench.wait(agent) == 1
    assert (bench.ended(0).state, bench.ended(0, 2).state) == ("FAILED", "COMPLETED")


def test_after_too_many_failures_nothing_more_is_started(bench: Bench) -> None:
    bench.plan("fails", "fails", "returns", "returns", "returns")
    agent = bench.start(slots=1, max_failures=2)
    assert bench.wait(agent) == 1
    closed = [run for event in bench.events(RunsClosed) for first, stop in event.ranges for run in range(first, stop)]
    started = [event.run for event in bench.events(AttemptStarted)]
    assert sorted(started + closed) == [0, 1, 2, 3, 4]
    assert started == [0, 1]
    assert "max_failures=2" in bench.events(RunsClosed)[0].reason


def test_a_requeued_run_gets_todays_code_in_the_same_folder(bench: Bench) -> None:
    bench.plan("fails", "waits")
    agent = bench.start(slots=2)
    bench.ended(0)
    bench.running(1)
    (bench.folder / "app.py").write_text(APP.replace("VALUE = 1", "VALUE = 2"))
    folder = str(bench.folder / "out" / "0")
    queue = Queue(bench.sweep.queue)
    entry = Requeued(
        Attempt(0, 2), 0, "person", "fixed", "me@host", ("how=returns",), as_submitted=False, folder=folder
    )
    queue.put(entry)
    end = bench.ended(0, 2)
    assert (end.state, end.return_value) == ("COMPLETED", "2")
    (located,) = [event for event in bench.events(AttemptLocated) if (event.run, event.attempt) == (0, 2)]
    assert bench.sweep.place(located.run_dir) == folder
    queue.put(Requeued(Attempt(0, 3), 0, "person", "as it was", "me@host", ("how=returns",), folder=folder, fresh=True))
    assert bench.ended(0, 3).return_value == "1"
    assert (bench.folder / "out" / "0.attempt-2" / "attempt-2.log").exists()
    (moved,) = bench.events(FolderSetAside)
    assert (moved.run, moved.attempt, moved.run_dir, moved.new_dir) == (0, 3, "0", "0.attempt-2")
    (bench.folder / "app.py").write_text("this is no Python")
    queue.put(
        Requeued(Attempt(0, 4), 0, "person", "again", "me@host", ("how=returns",), as_submitted=False, folder=folder)
    )
    end = bench.ended(0, 4)
    assert (end.state, end.return_value) == ("COMPLETED", "1")
    assert end.reason.startswith("the code as it was submitted ran: ")
    assert "as it was submitted runs instead" in (bench.folder / "out" / "0" / "attempt-4.log").read_text()
    bench.go()
    bench.wait(agent)
    assert Claims(bench.sweep.claims, "x").owner(Attempt(0, 2)) == "0-0/0.0"


def test_two_agents_share_a_plan_and_no_run_is_executed_twice(bench: Bench) -> None:
    bench.plan(*["returns"] * 12)
    agents = [
        bench.start(slots=2, batch=f"0-{k}", first_run=6 * k, stop_run=6 * k + 6, share_runs=True, jobs=2)
        for k in (0, 1)
    ]
    assert [bench.wait(agent) for agent in agents] == [0, 0]
    assert sorted(event.run for event in bench.events(AttemptStarted)) == list(range(12))
    assert all((bench.folder / f"done-{run}").read_text() == "begun 1\n" for run in range(12))
