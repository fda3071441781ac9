"""What a cluster does to jobs in good order: time limits, preemption, requeueing. Nothing is lost, nothing repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import wait_until
from project import Project

pytestmark = pytest.mark.slurm


def attempts(project: Project) -> list[tuple[int, int, str]]:
    """Run, attempt number and state of every attempt, after another look at the journals."""
    project.runs()
    rows = project.query("SELECT run, number, state FROM attempt ORDER BY run, number")
    return [(row["run"], row["number"], row["state"]) for row in rows]


def launch(project: Project, *overrides: str) -> Path:
    """Two runs at a time of four: the first is over at once, the others wait at the gate; returns the gate."""
    gate = project.folder / "gate"
    project.launch(
        "+number=range(4)",
        f"+gate={gate}",
        "hydra.launcher.parallel_runs_per_node=2",
        *overrides,
    )
    wait_until(lambda: project.states()[:2] == ["RUNNING", "RUNNING"], "two runs running")
    return gate


def test_a_job_that_its_time_limit_ends_is_started_again_and_goes_on(project: Project) -> None:
    gate = launch(
        project,
        "+hydra.launcher.additional_parameters.time='0:30'",
        "hydra.launcher.signal_delay_s=10",
        "hydra.launcher.max_num_timeout=1",
    )
    wait_until(lambda: attempts(project)[:1] == [(0, 1, "TIMEOUT")], "the first start timed out", 120)  # after a minute
    gate.touch()
    wait_until(lambda: project.states() == ["COMPLETED"] * 4, "the second start did the rest", 90)
    assert attempts(project) == [
        (0, 1, "TIMEOUT"),
        (0, 2, "COMPLETED"),
        (1, 1, "TIMEOUT"),
        (1, 2, "COMPLETED"),
        (2, 1, "COMPLETED"),
        (3, 1, "COMPLETED"),
    ]
    project.cluster.wait_for_no_jobs()
    assert {row["restart"] for row in project.query("SELECT restart FROM agent WHERE exit_code = 0")} == {1}


def test_a_job_that_is_sent_back_by_hand_goes_on_with_what_was_unfinished(project: Project) -> None:
    gate = launch(project)
    (job,) = project.cluster.jobs()
    project.cluster.command("scontrol", "requeue", job)
    wait_until(lambda: "CANCELLED" in str(attempts(project)) or "PREEMPTED" in str(attempts(project)), "runs ended")
    gate.touch()
    wait_until(lambda: project.states() == ["COMPLETED"] * 4, "the second start did the rest", 90)
    found = attempts(project)
    assert found[:2] == [(0, 1, "PREEMPTED"), (0, 2, "COMPLETED")], "a restart tells that it was not cancelled"
    assert [state for _, number, state in found if number == 1].count("COMPLETED") == 2
    reasons = project.query("SELECT reason FROM attempt WHERE state = 'PREEMPTED'")
    assert all(row["reason"] for row in reasons)


@pytest.mark.parametrize("partition", ["humble", "brief"])
def test_a_preempted_job_gives_way_warned_or_not_and_goes_on_later(project: Project, partition: str) -> None:
    gate = launch(project, f"hydra.launcher.partition={partition}")
    blocker = project.folder / "blocker.sh"
    blocker.write_text(f"#!/bin/sh\nwhile ! [ -e {gate} ]; do sleep 0.2; done\n")
    nodes = str(len(project.cluster.nodes))
    project.cluster.command("sbatch", "--nodes", nodes, "--exclusive", "--output=/dev/null", str(blocker))
    wait_until(lambda: attempts(project)[0][2] in ("PREEMPTED", "CANCELLED"), "the runs gave way")
    if partition == "humble":
        assert attempts(project)[0] == (0, 1, "PREEMPTED"), "the warning tells it from a cancellation, else the restart"
    gate.touch()
    wait_until(lambda: project.states() == ["COMPLETED"] * 4, "the job came back and did the rest", 120)
    assert attempts(project) == [
        (0, 1, "PREEMPTED"),
        (0, 2, "COMPLETED"),
        (1, 1, "PREEMPTED"),
        (1, 2, "COMPLETED"),
        (2, 1, "COMPLETED"),
        (3, 1, "COMPLETED"),
    ]
