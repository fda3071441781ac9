"""Waiting for runs: the journals decide when it ends and what each run's answer is. No agent is needed for that."""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus

from clusterduck import events
from clusterduck.errors import RunFailedError
from clusterduck.events import Event
from clusterduck.journal import JournalWriter, encode
from clusterduck.launch import collect, plan
from clusterduck.launch.collect import Collector
from clusterduck.launch.watch import Watch
from clusterduck.model import AgentId, Attempt, ReturnValueLost
from clusterduck.paths import SweepPaths
from clusterduck.result import write_result

HERE = socket.gethostname()


class Numbers:
    """A progress reporter that writes down what it is told, and lets the next thing happen."""

    def __init__(self, *then: Callable[[], object]) -> None:
        self.told: list[tuple[int, int, int, int]] = []
        self.closed = False
        self._then = list(then)

    def update(self, done: int, total: int, running: int, failed: int) -> None:
        if not self.told or self.told[-1] != (done, total, running, failed):
            self.told.append((done, total, running, failed))
        if self._then:
            self._then.pop(0)()

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    found = SweepPaths.of(tmp_path, "train-aaaaa")
    found.create()
    found.launch(0).mkdir()
    return found


@pytest.fixture
def agent(paths: SweepPaths) -> JournalWriter:
    """The journal of the one agent of batch 0-0."""
    folder = paths.agent(AgentId("0-0", 0, 0))
    folder.mkdir(parents=True)
    return JournalWriter(folder, paths.sweep, "agent")


def say(journal: JournalWriter, *what: Event) -> None:
    journal.append(what)
    journal.flush(sync=False)


def submitted(paths: SweepPaths, job: int | None = None, cluster: str = "local") -> None:
    planned = events.BatchPlanned(batch="0-0", launch=0, first=0, stop=9, nodes=1, slots_per_node=1, share_runs=False)
    taken = events.BatchSubmitted(batch="0-0", cluster=cluster, job_id=str(job or os.getpid()), host=HERE, log_dir="")
    (paths.launch(0) / "journal-0.jsonl").write_bytes(encode(planned) + encode(taken))


def started(run: int, attempt: int = 1) -> events.AttemptStarted:
    return events.AttemptStarted(run=run, attempt=attempt, slot=0, pid=1, log="")


def ended(paths: SweepPaths, run: int, value: Any, attempt: int = 1, **more: Any) -> events.AttemptEnded:
    """What a run leaves: its result, and the agent's word."""
    answer = JobReturn(overrides=[f"a={run}"], status=JobStatus.COMPLETED, _return_value=value)
    if isinstance(value, BaseException):
        answer.status = JobStatus.FAILED
    path = paths.result(Attempt(run, attempt))
    write_result(path, lambda file: pickle.dump(answer, file), {})
    more = {"state": "COMPLETED" if answer.status is JobStatus.COMPLETED else "FAILED", **more}
    return events.AttemptEnded(run=run, attempt=attempt, result=str(path), **more)


def collector(paths: SweepPaths, progress: Numbers, runs: int, first: int = 0) -> Collector:
    return Collector(
        watch=Watch(paths),
        sweep=paths.sweep,
        launch=0,
        first=first,
        overrides=[[f"a={number}"] for number in range(first, first + runs)],
        batches=[plan.Batch("0-0", first, first + runs)],
        ledger=paths.root.parent / "ledger.db",
        progress=progress,
    )


def test_results_come_in_the_order_of_the_overrides(paths: SweepPaths, agent: JournalWriter) -> None:
    submitted(paths)
    progress = Numbers(
        lambda: say(agent, started(7), started(5)),
        lambda: say(agent, ended(paths, 7, "seven")),
        lambda: say(agent, started(6), ended(paths, 6, "six")),
        lambda: say(agent, ended(paths, 5, "five")),
    )
    answers = collector(paths, progress, 3, first=5).wait()
    assert [answer.return_value for answer in answers] == ["five", "six", "seven"]
    assert progress.told == [(0, 3, 0, 0), (0, 3, 2, 0), (1, 3, 1, 0), (2, 3, 1, 0), (3, 3, 0, 0)]
    assert progress.closed


def test_one_failed_run_does_not_keep_the_others_back(paths: SweepPaths, agent: JournalWriter) -> None:
    submitted(paths)
    say(
        agent,
        ended(paths, 0, 1),
        ended(paths, 1, ValueError("no duck"), traceback="Traceback: in the pond\n"),
        ended(paths, 2, 3),
    )
    progress = Numbers()
    answers = collector(paths, progress, 3).wait()
    assert [answers[0].return_value, answers[2].return_value] == [1, 3]
    with pytest.raises(ValueError, match="no duck") as caught:
        answers[1].return_value  # noqa: B018
    assert "in the pond" in str(caught.value.__cause__)
    assert progress.told[-1] == (3, 3, 0, 1)


@pytest.mark.parametrize("broken", ["result that does not unpickle", "no result", "result of another user"])
def test_a_failed_run_whose_exception_is_lost(paths: SweepPaths, agent: JournalWriter, broken: str) -> None:
    submitted(paths)
    end = ended(paths, 0, KeyError("x"), state="FAILED", reason="Awkward: odd", traceback="Traceback: awkward\n")
    assert end.result is not None
    if broken == "result that does not unpickle":
        Path(end.result).write_bytes(b"garbage")
    elif broken == "no result":
        Path(end.result).unlink()
    else:
        Path(end.result).chmod(0o666)
    say(agent, end)
    (answer,) = collector(paths, Numbers(), 1).wait()
    with pytest.raises(RunFailedError, match=r"Run train-aaaaa/0 ended as FAILED: Awkward: odd") as caught:
        answer.return_value  # noqa: B018
    assert "awkward" in str(caught.value.__cause__)
    assert (caught.value.run, caught.value.state) == (0, "FAILED")


def test_a_completed_run_whose_value_is_lost(paths: SweepPaths, agent: JournalWriter) -> None:
    submitted(paths)
    end = ended(paths, 0, 1)
    assert end.result is not None
    Path(end.result).unlink()
    say(agent, end)
    (answer,) = collector(paths, Numbers(), 1).wait()
    assert isinstance(answer.return_value, ReturnValueLost)
    assert "cannot be read here" in repr(answer.return_value)


def test_a_later_attempt_decides(paths: SweepPaths, agent: JournalWriter) -> None:
    submitted(paths)
    say(agent, started(0), ended(paths, 0, ValueError("first")), started(0, 2))
    progress = Numbers(lambda: say(agent, ended(paths, 0, "second", attempt=2)))
    (answer,) = collector(paths, progress, 1).wait()
    assert answer.return_value == "second"


def test_runs_that_were_closed_end_the_waiting(paths: SweepPaths, agent: JournalWriter) -> None:
    submitted(paths)
    say(agent, started(0))
    act = JournalWriter(paths.acts, paths.sweep, "cancel", name="cancel-1")
    say(act, events.RunsClosed(ranges=[(0, 2)], state="CANCELLED", reason="somebody cancelled it"))
    progress = Numbers(lambda: say(agent, ended(paths, 0, "it had begun")))
    first, second = collector(paths, progress, 2).wait()
    assert first.return_value == "it had begun"
    with pytest.raises(RunFailedError, match="1 never began: somebody cancelled it"):
        second.return_value  # noqa: B018


def test_a_batch_that_was_closed_ends_its_running_attempts(paths: SweepPaths, agent: JournalWriter) -> None:
    submitted(paths)
    say(agent, started(0))
    closed = events.BatchClosed(batch="0-0", state="NODE_FAIL", reason="the node burnt")
    progress = Numbers(lambda: say(JournalWriter(paths.acts, paths.sweep, "close", name="close-1"), closed))
    running, waiting = collector(paths, progress, 2).wait()
    with pytest.raises(RunFailedError, match="ended as NODE_FAIL: the node burnt"):
        running.return_value  # noqa: B018
    with pytest.raises(RunFailedError, match="1 never began: the job that was to execute it is over"):
        waiting.return_value  # noqa: B018


def test_an_agent_that_could_not_begin_says_why(
    paths: SweepPaths, agent: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "RESTART_PATIENCE_S", 0.0)
    submitted(paths)
    say(agent, events.AgentEnded(reason="no GPU was found", exit_code=1))
    (answer,) = collector(paths, Numbers(), 1).wait()
    with pytest.raises(RunFailedError, match="never began: the job that was to execute it is over: no GPU was found"):
        answer.return_value  # noqa: B018


def test_a_job_that_was_started_again_is_waited_for(
    paths: SweepPaths, agent: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(paths)
    say(agent, started(0), events.AgentEnded(reason="preempted", exit_code=1))
    folder = paths.agent(AgentId("0-0", 1, 0))
    folder.mkdir()
    again = JournalWriter(folder, paths.sweep, "agent")
    progress = Numbers(
        lambda: say(again, events.AgentStarted(host=HERE, pid=1, cluster="local", job_id="1", slots=[])),
        lambda: say(again, started(1), ended(paths, 1, "again")),
    )
    first, second = collector(paths, progress, 2).wait()
    assert second.return_value == "again"
    with pytest.raises(RunFailedError, match="The agent ended without a word"):
        first.return_value  # noqa: B018


def test_a_local_job_that_dies_without_a_word_does_not_make_it_wait_for_ever(
    paths: SweepPaths, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No agent ever wrote: the job's process is gone, which two looks find."""
    import subprocess

    from clusterduck import reconcile
    from clusterduck.launch import register

    monkeypatch.setattr(reconcile, "CONFIRM_S", 0.2)
    monkeypatch.setattr(collect, "ASK_LOCAL_EVERY_S", 0.2)
    monkeypatch.setattr(collect, "LOOK_AT_ALL_EVERY_S", 0.2)
    monkeypatch.setattr(collect, "LOOK_AT_MOST_EVERY_S", 0.2)
    process = subprocess.Popen(["true"])
    process.wait()
    submitted(paths, job=process.pid)
    register.enter(own_ledger, paths)
    waiting = Collector(
        watch=Watch(paths),
        sweep=paths.sweep,
        launch=0,
        first=0,
        overrides=[["a=0"]],
        batches=[plan.Batch("0-0", 0, 1)],
        ledger=own_ledger,
        progress=Numbers(),
    )
    (answer,) = waiting.wait()
    with pytest.raises(RunFailedError, match="0 never began"):
        answer.return_value  # noqa: B018


def test_a_slurm_job_that_is_over_is_found_by_two_looks_and_only_ours_is_spoken_of(
    paths: SweepPaths, own_ledger: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two sweeps' jobs failed; the launcher of one of them asks at once when its agent is silent, then once more."""
    from clusterduck import reconcile
    from clusterduck.launch import register
    from clusterduck.slurm import looks

    monkeypatch.setattr(collect, "SILENCE_S", 0.3)
    monkeypatch.setattr(collect, "ASK_EVERY_S", 120.0)
    monkeypatch.setattr(collect, "LOOK_AT_ALL_EVERY_S", 0.2)
    monkeypatch.setattr(collect, "LOOK_AT_MOST_EVERY_S", 0.2)
    monkeypatch.setattr(reconcile, "CONFIRM_S", 0.3)
    monkeypatch.setattr(looks, "INTERVAL_S", 0.1)
    programs = paths.root / "bin"
    programs.mkdir()
    now = int(time.time())
    for name, script in {
        "squeue": f"echo '1|FAILED|{now}|N/A|0:00|1|None'; echo '2|FAILED|{now}|N/A|0:00|1|None'",
        "sacct": "exit 1",
        "scontrol": "exit 1",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    other = SweepPaths.of(paths.sweep_dir, "other-bbbbb")
    other.create()
    other.launch(0).mkdir()
    for each, job in ((paths, 1), (other, 2)):
        submitted(each, job=job, cluster="slurm")
        register.enter(own_ledger, each)
    began = time.monotonic()
    waiting = Collector(
        watch=Watch(paths),
        sweep=paths.sweep,
        launch=0,
        first=0,
        overrides=[["a=0"]],
        batches=[plan.Batch("0-0", 0, 1)],
        ledger=own_ledger,
        progress=Numbers(),
    )
    (answer,) = waiting.wait()
    assert time.monotonic() - began < collect.ASK_EVERY_S
    with pytest.raises(RunFailedError, match="0 never began"):
        answer.return_value  # noqa: B018
    assert "train-aaaaa 0-0" in caplog.text and "other-bbbbb" not in caplog.text
    closed = Watch(other)
    closed.look()
    assert closed.batches["0-0"].closed is not None, "it is on record all the same"
