"""What cancelling does to runs that wait, to runs that agents have, and to jobs that nobody needs any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from acts_sweep import ActsSweep, fake_slurm

from clusterduck import cancel, events, identity, standing
from clusterduck.cancel import CancelReport, Wanted
from clusterduck.drain import drain
from clusterduck.errors import NotFoundError
from clusterduck.inbox import Request, take
from clusterduck.ledger import queries
from clusterduck.ledger.replica import Replica
from clusterduck.model import AgentId, Attempt
from clusterduck.queue import Claims

LIVE = AgentId("0-1", 0, 0)
ME = identity.user_at_host()


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What scancel was told so far; and a replica of the test's own."""
    log = tmp_path / "bin" / "said"
    fake_slurm(tmp_path, monkeypatch, squeue="exit 0", scancel=f'echo "$@" >> {log}')
    monkeypatch.setattr(cancel, "ACKNOWLEDGE_S", 5.0)

    def lines() -> list[str]:
        for thread in threading.enumerate():
            if thread.name == "signal":  # nobody waits for it who was heard of without
                thread.join(10)
        return log.read_text().splitlines() if log.exists() else []

    return lines


@pytest.fixture
def sweep(tmp_path: Path, said: object) -> ActsSweep:
    return ActsSweep(tmp_path)


@pytest.fixture
def replica(sweep: ActsSweep) -> Iterator[Replica]:
    with Replica.open(sweep.ledger) as opened:
        yield opened


def do(sweep: ActsSweep, replica: Replica, *runs: int, job: str | None = None, grace_s: float = 0.0) -> CancelReport:
    replica.catch_up(look_at=[sweep.id])
    wanted = Wanted({sweep.id: set(runs) or None}) if job is None else Wanted({}, (job,))
    return cancel.carry_out(replica, cancel.plan(replica.connection, wanted, {}), grace_s)


def requests(sweep: ActsSweep) -> list[Request]:
    return take(sweep.paths.agent(LIVE) / "inbox")[0]


def answer(sweep: ActsSweep, *new: events.Event) -> threading.Thread:
    """Be the agent: as soon as it is asked, write these events."""

    def wait() -> None:
        inbox = sweep.paths.agent(LIVE) / "inbox"
        until = time.monotonic() + 10
        while not (inbox.is_dir() and any(inbox.iterdir())) and time.monotonic() < until:
            time.sleep(0.02)
        sweep.builder.write(sweep.builder.agent_journal("0-1"), new, close=False)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def ended(run: int, state: str = "CANCELLED") -> events.AttemptEnded:
    return events.AttemptEnded(run=run, attempt=1, state=state, reason=f"cancelled by {ME}")


def test_what_waits_is_claimed_so_that_nobody_starts_it(sweep: ActsSweep, replica: Replica) -> None:
    report = do(sweep, replica, 7, 8)
    assert report.describe() == "2 runs cancelled"
    assert {Attempt(7, 1), Attempt(8, 1)} <= Claims(sweep.paths.claims, "").taken()
    assert Claims(sweep.paths.claims, "").owner(Attempt(7, 1)) == f"cancel/{ME}"
    assert sweep.states(replica)[7] == ("CANCELLED", 1)
    assert sweep.states(replica)[9] == ("PENDING", 0)
    (act,) = queries.acts(replica.connection, sweep.id)
    assert (act.kind, act.user, act.host) == ("cancel", identity.user(), identity.host())
    assert act.reason == f"cancelled by {ME} before it started"


def test_what_runs_is_asked_for_and_the_agent_is_woken(
    sweep: ActsSweep, replica: Replica, said: Callable[[], list[str]]
) -> None:
    sweep.live_agent(6)
    agent = answer(sweep, ended(6))
    report = do(sweep, replica, 6, 7, grace_s=3.0)
    agent.join()
    assert report.describe() == "2 runs cancelled"
    (request,) = requests(sweep)
    assert (request.kind, request.attempts, request.grace_s, request.by) == ("cancel", (Attempt(6, 1),), 3.0, ME)
    assert said() == ["--signal=USR1 9001"]
    assert sorted(act.kind for act in queries.acts(replica.connection, sweep.id)) == ["ask_cancel", "cancel"]


def test_what_an_agent_claims_first_is_asked_for_too(
    sweep: ActsSweep, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.live_agent(6)
    real = Claims.claim

    def claim(self: Claims, attempt: Attempt) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(Claims, "claim", real)
            sweep.claim("0-1/0.0", 7)
        return real(self, attempt)

    monkeypatch.setattr(Claims, "claim", claim)
    agent = answer(sweep, sweep.builder.started(time.time(), 7), ended(7, "COMPLETED"))
    report = do(sweep, replica, 7)
    agent.join()
    assert report.describe() == "1 run ended otherwise first"
    assert requests(sweep)[0].attempts == (Attempt(7, 1),)
    assert sweep.states(replica)[7] == ("COMPLETED", 1)


def test_an_agent_that_does_not_answer_is_not_waited_for_for_ever(
    sweep: ActsSweep, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel, "ACKNOWLEDGE_S", 0.2)
    sweep.live_agent(6)
    report = do(sweep, replica, 6)
    assert report.describe() == "1 run asked to end, not heard of yet"
    assert [run.run for run in report.unanswered] == [6]
    assert sweep.states(replica)[6] == ("RUNNING", 1)


def test_a_job_that_waits_in_the_queue_ends_with_its_last_run(
    sweep: ActsSweep, replica: Replica, said: Callable[[], list[str]]
) -> None:
    do(sweep, replica, *range(6, 11))
    assert said() == [], "one of its runs is left"
    report = do(sweep, replica, 11)
    assert report.jobs == ("9001",)
    assert report.describe() == "1 run cancelled, job 9001 ended in Slurm's queue"
    assert said() == ["9001"]
    batch = queries.batches(replica.connection, sweep.id)[1]
    assert (batch.state, batch.reason) == ("CANCELLED", f"cancelled by {ME}: none of its runs was left")


def test_where_scancel_fails_the_job_finds_nothing_to_do(sweep: ActsSweep, replica: Replica, tmp_path: Path) -> None:
    (tmp_path / "bin" / "scancel").write_text("#!/bin/sh\necho 'scancel: error: no controller' >&2; exit 1\n")
    report = do(sweep, replica)
    assert report.jobs == ()
    assert "no controller. The jobs 9001 will start, find nothing to do, and end." in report.trouble[0]
    assert set(Claims(sweep.paths.claims, "").taken()) >= {Attempt(run, 1) for run in range(6, 12)}


def test_cancelling_a_job_keeps_its_agents_from_taking_anything_else(sweep: ActsSweep, replica: Replica) -> None:
    sweep.live_agent(6, 7)
    agent = answer(sweep, ended(6), ended(7))
    report = do(sweep, replica, job="9001")
    agent.join()
    assert report.describe() == "6 runs cancelled"
    assert sorted(request.kind for request in requests(sweep)) == ["cancel", "drain"]
    with pytest.raises(NotFoundError, match="Job 9000 has ended already"):
        do(sweep, replica, job="9000")


def test_what_a_dead_agent_had_claimed_is_on_record_as_cancelled(sweep: ActsSweep, replica: Replica) -> None:
    sweep.claim("0-1/0.0", 6)
    sweep.close("0-1")
    report = do(sweep, replica, 6)
    assert report.describe() == "1 run cancelled"
    assert requests(sweep) == []


def test_over_is_over(sweep: ActsSweep, replica: Replica) -> None:
    replica.catch_up()
    plan = cancel.plan(replica.connection, Wanted({sweep.id: {0, 1, 7}}), {})
    assert (plan.count, plan.describe()) == (1, "1 run will never start, 2 runs have ended already")
    assert do(sweep, replica, 0).describe() == "nothing was cancelled"
    assert list(sweep.paths.acts.iterdir()) == []


def test_draining_asks_every_agent_of_the_job(
    sweep: ActsSweep, replica: Replica, said: Callable[[], list[str]]
) -> None:
    sweep.live_agent(6)
    replica.catch_up(look_at=[sweep.id])
    agent = answer(sweep, events.Heartbeat(time=time.time(), busy=1, draining=True))
    assert drain(replica, "9001") == "job 9001 on node1 finishes what runs and takes nothing more"
    agent.join()
    assert [request.kind for request in requests(sweep)] == ["drain"]
    assert said() == ["--signal=USR1 9001"]
    replica.catch_up(look_at=[sweep.id])
    (act,) = queries.acts(replica.connection, sweep.id)
    assert (act.kind, act.job_id, act.user) == ("ask_drain", "9001", identity.user())


def test_what_a_drained_job_has_not_claimed_waits_for_nobody(
    sweep: ActsSweep, replica: Replica, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.live_agent(6)
    sweep.claim("0-1/0.0", 7)
    replica.catch_up(look_at=[sweep.id])
    assert standing.of_sweep(replica.connection, sweep.id, {}).unattended == []
    monkeypatch.setattr("clusterduck.drain.ACKNOWLEDGE_S", 0.1)
    assert drain(replica, "9001") == (
        "job 9001 on node1 is asked to finish what runs and to take nothing more, and has not answered yet"
    )
    replica.catch_up(look_at=[sweep.id])
    now = standing.of_sweep(replica.connection, sweep.id, {})
    assert now.unattended == [8, 9, 10, 11]
    assert now.waiting[7] == "0-1", "it is about to begin it"
    told = standing.neglected(replica.connection, [sweep.id], {})[sweep.id]
    why = told.why(queries.run(replica.connection, sweep.id, 8))
    assert str(why).startswith("No job will take it: its job was drained and takes nothing more. Send it with")


def test_draining_a_job_that_has_not_begun_takes_it_out_of_the_queue(
    sweep: ActsSweep, replica: Replica, said: Callable[[], list[str]]
) -> None:
    replica.catch_up()
    assert drain(replica, "9001") == (
        "job 9001 had not begun and was taken out of Slurm's queue; its runs stay PENDING until "
        "`clusterduck requeue --unfinished` sends them"
    )
    assert said() == ["--state=PENDING 9001"]
    assert {state for run, (state, _) in sweep.states(replica).items() if run > 5} == {"PENDING"}
    (batch,) = (batch for batch in queries.batches(replica.connection, sweep.id) if batch.id == "0-1")
    assert (batch.state, batch.reason) == ("CANCELLED", f"drained by {ME} before it began")
    with pytest.raises(NotFoundError, match="Job 9001 has ended already"):
        drain(replica, "9001")


def test_a_job_that_begins_while_it_is_drained_is_not_taken_for_gone(
    sweep: ActsSweep, replica: Replica, said: Callable[[], list[str]], tmp_path: Path
) -> None:
    row = "9001|RUNNING|1|1|1:00|1|None"
    (tmp_path / "bin" / "squeue").write_text(f"#!/bin/sh\necho '{row}'\n")
    replica.catch_up()
    with pytest.raises(NotFoundError, match="Job 9001 has just begun"):
        drain(replica, "9001")
    replica.catch_up(look_at=[sweep.id])
    assert [batch.state for batch in queries.batches(replica.connection, sweep.id)] == ["FAILED", "PENDING"]


def test_a_signal_that_hangs_holds_nobody_up_who_was_heard_of(
    sweep: ActsSweep, replica: Replica, said: Callable[[], list[str]], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "bin" / "scancel").write_text(f"#!/bin/sh\nwhile ! [ -e {gate} ]; do sleep 0.05; done; exit 1\n")
    sweep.live_agent(6, 7)
    agent = answer(sweep, ended(6))
    report = do(sweep, replica, 6)
    agent.join()
    assert (report.describe(), report.trouble) == ("1 run cancelled", ())
    gate.touch()
    said()


def test_a_signal_that_failed_is_told_where_nobody_was_heard_of(
    sweep: ActsSweep, replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin" / "scancel").write_text("#!/bin/sh\necho 'no controller' >&2; exit 1\n")
    monkeypatch.setattr(cancel, "ACKNOWLEDGE_S", 5.0)
    sweep.live_agent(6, 7)
    report = do(sweep, replica, 6)
    assert [run.state for run in report.unanswered] == ["RUNNING"]
    assert "scancel" in report.trouble[0]
