"""Which runs are sent again, where they go, and that nothing is lost or doubled wherever it is interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from acts_sweep import ActsSweep, Cluster, fake_slurm

from clusterduck import events, identity, requeue
from clusterduck.errors import ConfigError, DoubtfulSubmissionError, NotFoundError, SubmissionError
from clusterduck.inbox import take
from clusterduck.launch import again, owner
from clusterduck.ledger import queries
from clusterduck.ledger.replica import Replica
from clusterduck.model import AgentId, Attempt
from clusterduck.queue import Claims, Queue
from clusterduck.requeue import RequeuePlan, RequeueReport, Wish
from clusterduck.requeue_plan import Room


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica of the test's own, and no Slurm."""
    fake_slurm(tmp_path, monkeypatch, squeue="exit 0", scancel="exit 0")
    monkeypatch.setattr(requeue, "ACKNOWLEDGE_S", 0.3)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(again, "_submit", made.submit)
    return made


@pytest.fixture
def sweep(tmp_path: Path) -> ActsSweep:
    return ActsSweep(tmp_path)


@pytest.fixture
def replica(sweep: ActsSweep) -> Iterator[Replica]:
    with Replica.open(sweep.ledger) as opened:
        yield opened


def plan(sweep: ActsSweep, replica: Replica, **wish: Any) -> RequeuePlan:
    replica.catch_up(look_at=[sweep.id])
    if "runs" in wish:
        wish["runs"] = {sweep.id: wish["runs"]}
    return requeue.plan(replica.connection, [sweep.id], Wish(**wish), {})


def send(sweep: ActsSweep, replica: Replica, **wish: Any) -> RequeueReport:
    return requeue.carry_out(replica.connection, sweep.ledger, plan(sweep, replica, **wish))


FAILED = ("FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED")


def test_the_plan_is_told_in_a_sentence(sweep: ActsSweep, replica: Replica, cluster: Cluster) -> None:
    assert plan(sweep, replica, states=FAILED).describe() == "2 failed runs: 2 in a new job"
    assert plan(sweep, replica, states=("FAILED", "CANCELLED")).describe() == (
        "3 runs (1 CANCELLED, 2 FAILED): 3 in 2 new jobs"
    )
    assert plan(sweep, replica, states=("CANCELLED",)).describe() == "1 CANCELLED run: 1 in a new job"
    assert plan(sweep, replica, states=("TIMEOUT",)).describe() == "no run is to be sent again"
    sweep.live_agent(6)  # one slot is empty, but five runs of its own wait for it
    assert plan(sweep, replica, states=FAILED).describe() == "2 failed runs: 2 in a new job"
    assert cluster.agents == []


def test_room_in_a_live_agent_is_used_first_but_not_where_options_change(
    tmp_path: Path, replica: Replica, sweep: ActsSweep
) -> None:
    at = time.time() - 30
    builder = sweep.builder
    done = [event for run in range(6, 12) for event in (builder.started(at, run), builder.ended(at + 1, run))]
    told = [builder.agent_started(at, "node7", slots=2, job_id="9001"), *done]
    builder.write(builder.agent_journal("0-1"), told, close=False)
    sweep.claim("0-1/0.0", *range(6, 12))
    assert plan(sweep, replica, states=(*FAILED, "CANCELLED")).describe() == (
        "3 runs (1 CANCELLED, 2 FAILED): 2 to a running job on node7, 1 in a new job"
    )
    changed = plan(sweep, replica, states=FAILED, changes={"timeout_min": 120})
    assert changed.describe() == "2 failed runs: 2 in a new job"


def test_only_agents_that_would_take_something_are_counted_on(sweep: ActsSweep, replica: Replica) -> None:
    """One that drains, or was not heard of for a while, is not; nor does one take more than it has room for."""
    builder = sweep.builder
    sweep.claim("0-1/0.0", *range(6, 12))
    done = [event for run in range(6, 12) for event in (builder.started(1, run), builder.ended(2, run))]
    at = time.time() - 1000

    def room_after(*new: events.Event) -> str:
        if new:
            builder.write(builder.agent_journal("0-1"), new, close=False)
        return plan(sweep, replica, states=FAILED).describe()

    nowhere = "2 failed runs: 2 in a new job"
    path = builder.write(
        builder.agent_journal("0-1"), [builder.agent_started(at, "node7", slots=1, job_id="9001"), *done], close=False
    )
    os.utime(path, (at, at))
    assert room_after() == nowhere, "it is silent"
    here = "2 failed runs: 1 to a running job on node7, 1 in a new job"
    assert room_after(events.Heartbeat(busy=0)) == here
    assert room_after(events.Heartbeat(busy=0, draining=True)) == nowhere
    assert room_after(events.Heartbeat(busy=0)) == here


def test_what_is_meant_for_a_new_job_is_left_to_it(
    tmp_path: Path, replica: Replica, sweep: ActsSweep, cluster: Cluster
) -> None:
    planned = plan(sweep, replica, states=(*FAILED, "CANCELLED"))
    room = Room(AgentId("0-1", 0, 0), "node1", 1)
    planned = replace(planned, sweeps=(replace(planned.sweeps[0], rooms=(room,)),))
    report = requeue.carry_out(replica.connection, sweep.ledger, planned)
    assert report.describe() == ("3 runs in jobs 101, 102 (planned: 1 to a running job on node1, 2 in a new job)"), (
        "nobody took what was offered"
    )
    queue = Queue(sweep.paths.queue)
    assert [queue.read(attempt).reserved for attempt in queue.listing()] == [False, True, True]


def test_code_that_cannot_be_had_today_is_said_beforehand(sweep: ActsSweep, replica: Replica, tmp_path: Path) -> None:
    (remark,) = plan(sweep, replica, states=FAILED).remarks
    script = tmp_path / "train.py"
    assert remark == f"{script} is not there today. The code as it was submitted will run instead."
    for text, words in [
        ("import os\n", "has no main today"),
        ("def main(:\n", "is no Python today"),
        ("def main(): ...\n", ""),
        ("from x import *\n", ""),
        ("if True:\n    main = 1\n", ""),
        ("def other():\n    main = 1\n", "has no main today"),
    ]:
        script.write_text(text)
        remarks = plan(sweep, replica, states=FAILED).remarks
        assert [words in remark for remark in remarks] == ([True] if words else []), text
        assert plan(sweep, replica, states=FAILED, as_submitted=True).remarks == ()


def test_runs_whose_job_was_cancelled_under_them_are_unfinished(sweep: ActsSweep, replica: Replica) -> None:
    sweep.live_agent(6, 7)
    at = sweep.builder.start + 300
    by_hand = replace(sweep.builder.ended(at, 6, state="CANCELLED"), by_job_end=True)
    by_wish = sweep.builder.ended(at, 7, state="CANCELLED")
    over = events.AgentEnded(time=at + 1, reason="SIGTERM", exit_code=1, state="CANCELLED")
    sweep.builder.write(sweep.builder.agent_journal("0-1"), [by_hand, by_wish, over])
    (part,) = plan(sweep, replica, unfinished=True).sweeps
    assert [one.run.number for one in part.chosen] == [1, 4, 6, 8, 9, 10, 11]
    (part,) = plan(sweep, replica, unfinished=True, runs=[6, 7]).sweeps
    assert [one.run.number for one in part.chosen] == [6]


def test_what_a_live_agent_claims_needs_no_job(
    sweep: ActsSweep, replica: Replica, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.live_agent()
    sweep.claim("0-1/0.0", *range(6, 12))
    planned = plan(sweep, replica, states=FAILED)
    agent = AgentId("0-1", 0, 0)
    room = Room(agent, "node1", 2)
    planned = replace(planned, sweeps=(replace(planned.sweeps[0], rooms=(room,)),))
    real = Queue.put

    def put_and_claim(self: Queue, entry: Any) -> bool:
        done = real(self, entry)
        if entry.attempt.run == 1:
            Claims(sweep.paths.claims, "0-1/0.0").claim(entry.attempt)
        return done

    monkeypatch.setattr(Queue, "put", put_and_claim)
    report = requeue.carry_out(replica.connection, sweep.ledger, planned)
    assert [(sent.run, sent.agent, sent.job_id) for sent in report.sent] == [(1, agent, None), (4, None, "101")]
    assert report.describe() == "1 run taken by node1, 1 run in job 101 (planned: 2 to a running job on node1)"
    (request,), _ = take(sweep.paths.agent(agent) / "inbox")
    assert request.kind == "look"


def test_new_jobs_are_like_the_first_ones_but_for_what_is_changed(
    sweep: ActsSweep, replica: Replica, cluster: Cluster
) -> None:
    report = send(sweep, replica, states=(*FAILED, "CANCELLED"), changes={"timeout_min": 120, "partition": "long"})
    assert [(sent.run, sent.attempt, sent.batch) for sent in report.sent] == [
        (1, 2, "r1-0"),
        (5, 2, "r1-0"),
        (4, 2, "r1-1"),  # dealt in turn: runs that took long do not all go into one job
    ]
    assert [agent.attempts for agent in cluster.agents] == [("1.2", "5.2"), ("4.2",)]
    first = cluster.agents[0]
    assert (first.first_run, first.stop_run, first.share_runs, first.parallel_runs_per_node) == (0, 0, False, 2)
    assert (first.timeout_min, cluster.options[0].submitit["partition"]) == (120, "long")
    queue = Queue(sweep.paths.queue)
    assert all(queue.read(attempt).reserved for attempt in queue.listing())
    assert sweep.states(replica)[1] == ("PENDING", 2)
    batches = {batch.id: (batch.job_id, batch.attempts) for batch in queries.batches(replica.connection, sweep.id)}
    assert batches["r1-0"] == ("101", [(1, 2), (5, 2)])


def test_the_entry_says_where_and_how_the_run_goes_on(sweep: ActsSweep, replica: Replica, cluster: Cluster) -> None:
    send(sweep, replica, runs=[1], overrides=("lr=1",), fresh=True)
    entry = Queue(sweep.paths.queue).read(Attempt(1, 2))
    assert (entry.folder, entry.overrides, entry.fresh) == (str(sweep.paths.sweep_dir / "1"), ("lr=1",), True)
    assert (entry.as_submitted, entry.kind, entry.reserved) == (False, "person", True)
    sweep.states(replica)
    (act,) = queries.acts(replica.connection, sweep.id)
    assert (act.kind, act.run, act.attempt) == ("requeue", 1, 2)
    assert '"overrides": ["lr=1"]' in str(act.detail)


def test_runs_that_wait_for_nobody_are_sent_only_when_asked_for(
    sweep: ActsSweep, replica: Replica, cluster: Cluster
) -> None:
    assert plan(sweep, replica, runs=[7]).skipped[0].why == "it waits for batch 0-1 already"
    assert plan(sweep, replica, unfinished=True).count == 2, "the job of the others is alive"
    sweep.claim("0-1/0.0", 6)  # by an agent that died before it could begin
    sweep.close("0-1")
    assert plan(sweep, replica, states=FAILED).count == 2
    assert plan(sweep, replica, states=FAILED, runs=[7]).skipped[0].why == (
        "it waits for nobody; --unfinished sends such runs"
    )
    report = send(sweep, replica, unfinished=True)
    assert sorted((sent.run, sent.attempt) for sent in report.sent) == [
        *[(1, 2), (4, 2), (6, 2)],
        *[(run, 1) for run in range(7, 12)],
    ]
    assert sweep.states(replica) == {
        **{0: ("COMPLETED", 1), 1: ("PENDING", 2), 2: ("COMPLETED", 1), 3: ("COMPLETED", 1), 4: ("PENDING", 2)},
        **{5: ("CANCELLED", 1), 6: ("PENDING", 2)},
        **dict.fromkeys(range(7, 12), ("PENDING", 1)),
    }
    (first, _) = queries.attempts(replica.connection, sweep.id, 6)
    assert (first.state, "never started" in str(first.reason)) == ("CANCELLED", True)
    assert plan(sweep, replica, unfinished=True).count == 0, "they wait for the new jobs now"


def test_who_comes_second_is_told_by_whom(sweep: ActsSweep, replica: Replica, cluster: Cluster) -> None:
    first, second = plan(sweep, replica, states=FAILED), plan(sweep, replica, states=FAILED)
    assert len(requeue.carry_out(replica.connection, sweep.ledger, first).sent) == 2
    report = requeue.carry_out(replica.connection, sweep.ledger, second)
    assert report.sent == ()
    assert [one.why for one in report.skipped] == [f"already requeued by {identity.user_at_host()}"] * 2
    assert len(cluster.agents) == 1


def test_who_loses_at_the_last_moment_is_told_too(
    sweep: ActsSweep, replica: Replica, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another shell puts the same attempts into the queue after this one has looked."""
    first, second = plan(sweep, replica, states=FAILED), plan(sweep, replica, states=FAILED)
    real = Queue.listing
    requeue.carry_out(replica.connection, sweep.ledger, first)
    monkeypatch.setattr(Queue, "listing", lambda self: [])
    report = requeue.carry_out(replica.connection, sweep.ledger, second)
    monkeypatch.setattr(Queue, "listing", real)
    assert report.sent == ()
    assert len(report.skipped) == 2
    assert len(cluster.agents) == 1
    assert sweep.states(replica)[1] == ("PENDING", 2)


def test_a_refused_job_leaves_its_runs_in_the_queue(sweep: ActsSweep, replica: Replica, cluster: Cluster) -> None:
    cluster.failure = SubmissionError("sbatch refused the job: no such partition")
    report = send(sweep, replica, states=FAILED)
    assert report.trouble == ("sbatch refused the job: no such partition",)
    assert report.describe() == "2 runs left in the queue: send them with --unfinished"
    cluster.failure = None
    assert sweep.states(replica)[1] == ("PENDING", 2)
    batch = next(batch for batch in queries.batches(replica.connection, sweep.id) if batch.id == "r1-0")
    assert (batch.state, batch.reason) == ("FAILED", "sbatch refused the job: no such partition")
    report = send(sweep, replica, unfinished=True)
    assert [(sent.run, sent.attempt, sent.job_id) for sent in report.sent] == [(1, 3, "101"), (4, 3, "101")]
    taken = Claims(sweep.paths.claims, "").taken()
    assert {Attempt(1, 2), Attempt(4, 2)} <= taken, "what was replaced can never begin"


def test_runs_whose_job_is_in_doubt_are_not_sent_again(sweep: ActsSweep, replica: Replica, cluster: Cluster) -> None:
    cluster.failure = DoubtfulSubmissionError("Nobody knows whether Slurm has taken the job.", 1)
    assert send(sweep, replica, states=FAILED).trouble == ("Nobody knows whether Slurm has taken the job.",)
    cluster.failure = None
    replica.catch_up()
    batch = next(batch for batch in queries.batches(replica.connection, sweep.id) if batch.id == "r1-0")
    assert (batch.state, batch.reason) == ("PENDING", "Nobody knows whether Slurm has taken the job.")
    assert send(sweep, replica, unfinished=True).sent == ()


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("step", range(5))
def test_killed_at_any_step_nothing_is_lost_or_executed_twice(
    sweep: ActsSweep, replica: Replica, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    sweep.close("0-1")
    done = 0

    def may_die(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done >= step:
                raise Killed
            done += 1
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "put", may_die(Queue.put))
        patch.setattr(again.Again, "record", may_die(again.Again.record))
        patch.setattr(Claims, "claim", may_die(Claims.claim))
        patch.setattr(again.Again, "close", lambda self: None)
        with pytest.raises(Killed):
            send(sweep, replica, runs=[1, 7])
    monkeypatch.setattr("clusterduck.standing.SUBMITTING_S", 0.0)
    monkeypatch.setattr("clusterduck.requeue_plan.SENDING_S", 0.0)
    send(sweep, replica, unfinished=True)
    states = sweep.states(replica)
    assert {states[run][0] for run in (1, 7)} == {"PENDING"}
    latest = {run: Attempt(run, max(1, states[run][1])) for run in (1, 7)}
    sent = [Attempt.parse(text) for agent in cluster.agents for text in agent.attempts]
    assert set(latest.values()) <= set(sent)
    queued = set(Queue(sweep.paths.queue).listing())
    taken = Claims(sweep.paths.claims, "").taken()
    for run, attempt in latest.items():
        assert attempt in queued
        earlier = [Attempt(run, number) for number in range(1, attempt.number)]
        assert set(earlier) <= taken, "no earlier attempt can begin"
        assert attempt not in taken


@pytest.mark.parametrize("put", [0, 1])
def test_what_somebody_is_just_sending_is_left_to_them_for_some_seconds(
    sweep: ActsSweep, replica: Replica, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, put: int
) -> None:
    """On record, or even in the queue, and in no job's list yet."""

    def stop(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*((Queue, "put", stop) if not put else (requeue._Act, "_offer", stop)))
        patch.setattr(again.Again, "close", lambda self: None)
        with pytest.raises(Killed):
            send(sweep, replica, runs=[1])
    for wish in ({"runs": [1]}, {"unfinished": True}):
        report = send(sweep, replica, **wish)
        assert 1 not in [one.run for one in report.sent]
        whose = identity.user_at_host() if put else "somebody else"
        assert f"already requeued by {whose}" in [each.why for each in report.skipped if each.run == 1]
    monkeypatch.setattr("clusterduck.requeue_plan.SENDING_S", 0.0)
    assert [one.run for one in send(sweep, replica, runs=[1]).sent] == [1]


def test_what_cannot_be_carried_out_is_said_before_anything_is_done(
    sweep: ActsSweep, replica: Replica, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wish, words in [
        ({"changes": {"nosuch": 1}}, "nosuch is no option"),
        ({"changes": {"timeout_min": 0}}, "timeout_min must be"),
        ({"changes": {"resources_config.nosuch": None}}, "nosuch"),
        ({"changes": {"timeout_min.x": 1}}, "has no entries"),
        ({"overrides": ("a=[1", "b=2")}, "is no override"),
    ]:
        with pytest.raises(ConfigError, match=words):
            plan(sweep, replica, states=FAILED, **wish)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="no run 99"):
        plan(sweep, replica, runs=[99])
    assert requeue.parse_changes(["timeout_min=5", "hydra.launcher.name=x", "resources_config={cpu: null}"]) == {
        "timeout_min": 5,
        "name": "x",
        "resources_config": {"cpu": None},
    }
    other = owner.take(sweep.paths.sweep_dir, "other-abcde")
    with monkeypatch.context() as patch:
        patch.setattr(owner, "_why_live", lambda *_: "it is running")
        with pytest.raises(ConfigError, match="The sweep other-abcde uses the folder"):
            plan(sweep, replica, states=FAILED)
    assert plan(sweep, replica, states=FAILED).count == 2
    other.give_back()
    sweep.paths.payload(0).unlink()
    with pytest.raises(NotFoundError, match="What launch 0 of sweep"):
        plan(sweep, replica, states=FAILED)
    assert list(sweep.paths.queue.iterdir()) == []
    assert list(sweep.paths.acts.iterdir()) == []
