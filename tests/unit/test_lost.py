"""What is put back by itself, what is left for good, and which ends are final."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from acts_sweep import ActsSweep, Cluster, fake_slurm

from clusterduck import events, lost, standing
from clusterduck.launch import again
from clusterduck.ledger import queries
from clusterduck.ledger.replica import Replica
from clusterduck.model import Attempt
from clusterduck.queue import Queue


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Takes every job; squeue lists none."""
    fake_slurm(tmp_path, monkeypatch, squeue="exit 0", sbatch="exit 0")
    made = Cluster()
    monkeypatch.setattr(again, "_submit", made.submit)
    return made


@pytest.fixture
def sweep(tmp_path: Path, cluster: Cluster) -> ActsSweep:
    return ActsSweep(tmp_path, max_retries=3, retry_on=["FAILED"])


@pytest.fixture
def replica(sweep: ActsSweep) -> Iterator[Replica]:
    with Replica.open(sweep.ledger) as opened:
        yield opened


def lose(sweep: ActsSweep, replica: Replica, batch: str, *started: Any) -> None:
    """An agent that begins some attempts and is never heard of again; somebody notices, and puts back."""
    if started:
        told = [sweep.builder.agent_started(time.time(), "node1", slots=2, job_id="9001")]
        sweep.builder.write(sweep.builder.agent_journal(batch), [*told, *started], close=False)
    sweep.close(batch)
    replica.catch_up(look_at=[sweep.id])
    lost.put_back(sweep.ledger, replica, {})


def homes(cluster: Cluster) -> list[tuple[str, ...]]:
    return [agent.attempts for agent in cluster.agents]


def test_the_other_runs_of_a_job_go_on_when_one_kills_it_again_and_again(
    sweep: ActsSweep, replica: Replica, cluster: Cluster
) -> None:
    now = time.time()
    lose(sweep, replica, "0-1", sweep.builder.started(now, 6))
    assert sorted(sum(homes(cluster), ())) == ["10.1", "11.1", "6.2", "7.1", "8.1", "9.1"]
    job = next(agent for agent in cluster.agents if "6.2" in agent.attempts)
    (other,) = {int(attempt.partition(".")[0]) for attempt in job.attempts} - {6}
    lose(sweep, replica, job.batch, sweep.builder.started(now, 6, attempt=2))
    assert set(homes(cluster)[3:]) == {("6.3",), (f"{other}.2",)}
    alone = next(agent for agent in cluster.agents if "6.3" in agent.attempts)
    lose(sweep, replica, alone.batch, sweep.builder.started(now, 6, attempt=3))
    run = queries.run(replica.connection, sweep.id, 6)
    assert (run.state, "lost 3 times" in str(run.reason)) == ("FAILED", True)
    lost.put_back(sweep.ledger, replica, {})
    assert len(cluster.agents) == 5, "once"
    (first, _) = queries.attempts(replica.connection, sweep.id, other)
    assert (first.state, "never started" in str(first.reason)) == ("CANCELLED", True)
    states = sweep.states(replica)
    assert {run: states[run] for run in range(7, 12)} == {run: ("PENDING", 1 + (run == other)) for run in range(7, 12)}


def test_the_more_often_runs_were_lost_the_fewer_are_sent_together_and_what_never_began_was_not_lost(
    tmp_path: Path, cluster: Cluster
) -> None:
    sweep, now = (
        ActsSweep(tmp_path / "other", max_retries=4, parallel_runs_per_node=8, total_runs_per_node=8),
        time.time(),
    )
    with Replica.open(sweep.ledger) as replica:
        lose(sweep, replica, "0-1", *(sweep.builder.started(now, run) for run in (6, 7, 8)))
        (first,) = cluster.agents
        lose(sweep, replica, first.batch, *(sweep.builder.started(now, run, attempt=2) for run in (6, 7, 8)))
        assert set(homes(cluster)[1:]) == {("6.3", "7.3"), ("8.3",), ("9.2", "10.2", "11.2")}
        queue = Queue(sweep.paths.queue)
        replica.catch_up(look_at=[sweep.id])
        waits = queries.run(replica.connection, sweep.id, 6)
        assert (waits.state, waits.reason) == ("PENDING", queue.read(Attempt(6, 3)).reason)
        assert "lost 2 times in a row" in str(waits.reason)
        second = next(agent for agent in cluster.agents if "6.3" in agent.attempts)
        lose(sweep, replica, second.batch, sweep.builder.started(now, 6, attempt=3))
        assert set(homes(cluster)[4:]) == {("6.4",), ("7.4",)}
        assert [queue.read(Attempt(run, 4)).losses for run in (6, 7)] == [3, 2]


@pytest.mark.parametrize("listed", [False, True])
def test_what_was_preempted_for_good_is_put_back_and_what_slurm_starts_again_is_not(
    sweep: ActsSweep, replica: Replica, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    sweep.live_agent(6, 7, slots=2)
    at = time.time()
    told = [replace(sweep.builder.ended(at, run, state="PREEMPTED"), by_job_end=True) for run in (6, 7)]
    end = events.AgentEnded(time=at, reason="the job was preempted", exit_code=1)
    sweep.builder.write(sweep.builder.agent_journal("0-1"), [*told, end])
    replica.catch_up(look_at=[sweep.id])
    monkeypatch.setattr(standing, "still_listed", lambda jobs: set(jobs) if listed else set())
    for _ in range(2):
        lost.put_back(sweep.ledger, replica, {})
    assert sorted(sum(homes(cluster), ())) == ([] if listed else ["10.1", "11.1", "6.2", "7.2", "8.1", "9.1"])


def test_a_job_that_replaces_a_dead_one_shares_the_runs_of_the_launch(tmp_path: Path, cluster: Cluster) -> None:
    sweep = ActsSweep(tmp_path / "other", max_retries=1, share_runs=True)
    with Replica.open(sweep.ledger) as replica:
        lose(sweep, replica, "0-1", sweep.builder.started(time.time(), 6))
        plans = {(agent.share_runs, agent.plan_first, agent.plan_stop, agent.jobs) for agent in cluster.agents}
        assert plans == {(True, 0, 12, 6)}
        replica.catch_up(look_at=[sweep.id])
        shared = {batch.id: batch.share_runs for batch in queries.batches(replica.connection, sweep.id)}
        assert {shared[agent.batch] for agent in cluster.agents} == {True}
        other = again.launched(replica.connection, sweep.paths, 0, {"timeout_min": 5})
        assert other.shared == (0, 0), "with other settings, only what it was sent for"


def test_nothing_is_put_back_that_nobody_asked_for(tmp_path: Path, cluster: Cluster) -> None:
    sweep = ActsSweep(tmp_path / "other")
    with Replica.open(sweep.ledger) as replica:
        lose(sweep, replica, "0-1", sweep.builder.started(time.time(), 6))
        assert sweep.states(replica)[6] == ("NODE_FAIL", 1)
    assert cluster.agents == []


def ends(sweep: ActsSweep, replica: Replica, *alive: str) -> lost.Ends:
    replica.catch_up(look_at=[sweep.id])
    return lost.ends(replica.connection, standing.paths_of(replica.connection, sweep.id), set(alive))


def test_an_end_is_final_only_if_nobody_brings_the_run_back(sweep: ActsSweep, replica: Replica) -> None:
    assert ends(sweep, replica) == lost.Ends(frozenset(), frozenset({1, 4}), frozenset()), "retry_on says FAILED"
    sweep.live_agent(6, 7, 8, 9, slots=4)
    at = time.time()
    told = [
        replace(sweep.builder.ended(at, 6, state="CANCELLED"), by_job_end=True),
        replace(sweep.builder.ended(at, 7, state="TIMEOUT"), by_job_end=True),
        sweep.builder.ended(at, 8, state="CANCELLED"),
        sweep.builder.ended(at, 9, state="TIMEOUT"),
        events.AgentEnded(time=at, reason="its time is up", exit_code=1, timed_out=True),
    ]
    sweep.builder.write(sweep.builder.agent_journal("0-1"), told)
    found = ends(sweep, replica, "0-1")
    assert (found.final, found.restarting) == (frozenset({9}), frozenset({6, 7}))
    found = ends(sweep, replica)
    assert (found.final, found.restarting) == (frozenset({6, 7, 9}), frozenset())
