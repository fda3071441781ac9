"""What goes wrong on a real Slurm cluster is told in plain words and takes nothing else with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from cluster import SlurmCluster, wait_until
from project import Project

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("hydra.launcher.partition=nosuch", "invalid partition specified"),
        ("hydra.launcher.gpus_per_node=9", "Requested node configuration is not available"),
    ],
)
def test_what_sbatch_refuses_is_said_in_its_own_words(project: Project, override: str, words: str) -> None:
    done = project.launch("+number=range(4)", override, refused=True)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert project.cluster.jobs() == []
    assert "PENDING" not in project.states()
    assert project.told() == {}


def test_a_killed_run_ends_alone(project: Project) -> None:
    project.launch(
        "+number=range(6)",
        "+die=[no,kill,no,exit,no,raise]",
        "hydra.launcher.parallel_runs_per_node=2",
        "hydra.launcher.wait_for_completion=false",
    )
    assert project.wait_until_over() == ["COMPLETED", "FAILED", "COMPLETED", "FAILED", "COMPLETED", "FAILED"]
    rows = project.runs()
    assert "SIGKILL" in rows[1]["reason"]
    attempts = project.query("SELECT * FROM attempt ORDER BY run")
    assert attempts[1]["signal"] == 9
    assert attempts[3]["exit_code"] == 3
    assert attempts[5]["exception_type"].endswith("RuntimeError")
    assert "this run was told to fail" in attempts[5]["traceback"]
    assert sorted(project.told()) == list(range(6)), "a failed run holds nothing up"
    project.cluster.wait_for_no_jobs()
    (batch,) = project.query("SELECT * FROM batch")
    shown = project.cluster.command("scontrol", "--oneliner", "show", "job", batch["job_id"])
    assert "JobState=FAILED" in shown, "the job's exit code says that not all of its runs completed"


def test_a_cancelled_job_leaves_no_run_pending_for_ever(project: Project) -> None:
    gate = project.folder / "never"
    project.launch("+number=range(4)", f"+gate={gate}", "hydra.launcher.wait_for_completion=false")
    wait_until(lambda: project.states()[0] == "RUNNING", "the first run running")
    project.cluster.command("scancel", *project.cluster.jobs())
    project.cluster.wait_for_no_jobs()
    wait_until(lambda: project.states()[0] == "CANCELLED", "the first run cancelled")
    assert "RUNNING" not in project.states()


def test_a_job_that_is_killed_with_its_agent_is_closed_by_what_slurm_says(project: Project) -> None:
    end_with_its_agent(project)
    states = wait_for_first_end(project)
    assert states == ["FAILED", "PENDING", "PENDING"]
    (batch,) = project.query("SELECT * FROM batch")
    assert batch["state"] == "FAILED"
    assert batch["reason"]


def test_a_job_that_slurm_has_forgotten_is_closed_by_what_its_accounting_says(
    accounting_cluster: SlurmCluster, tmp_path: Path
) -> None:
    project = Project.create(tmp_path, accounting_cluster)
    end_with_its_agent(project)
    wait_until(lambda: "FAILED" in accounting_cluster.command("sacct", "-X", "-n", "-o", "State"), "an entry in sacct")
    accounting_cluster.forget_jobs()
    assert accounting_cluster.jobs("--states=all") == []
    assert wait_for_first_end(project) == ["FAILED", "PENDING", "PENDING"]
    (batch,) = project.query("SELECT * FROM batch")
    assert batch["state"] == "FAILED"
    assert batch["reason"]


def end_with_its_agent(project: Project) -> None:
    """Launch three runs, the first of which kills its agent: nobody is left to report."""
    project.launch("+number=range(3)", "+die=[agent,no,no]")
    project.cluster.wait_for_no_jobs()
    assert project.states()[0] == "RUNNING", "one look proves nothing"


def wait_for_first_end(project: Project) -> list[str]:
    """Wait until the first run is known to be over; all states then."""
    wait_until(lambda: project.states()[0] not in ("PENDING", "RUNNING"), "the first run over")
    return project.states()


def test_a_node_dies_and_the_requeued_job_does_the_rest(project: Project) -> None:
    gate = project.folder / "open"
    project.launch(
        "+number=range(6)",
        f"+gate={gate}",
        "hydra.launcher.parallel_runs_per_node=2",
        "hydra.launcher.wait_for_completion=false",
    )
    wait_until(lambda: Counter(project.states())["RUNNING"] == 2, "two runs running")
    (agent,) = project.query("SELECT * FROM agent")
    project.cluster.kill_node(agent["host"])
    gate.touch()
    assert project.wait_until_over(seconds=120) == ["COMPLETED"] * 6
    project.cluster.wait_for_no_jobs()
    attempts = project.query("SELECT * FROM attempt ORDER BY run, number")
    lost = [attempt for attempt in attempts if attempt["state"] == "NODE_FAIL"]
    assert [(attempt["run"], attempt["number"], attempt["host"]) for attempt in lost] == [
        (0, 1, agent["host"]),
        (1, 1, agent["host"]),
    ]
    assert all(attempt["reason"] for attempt in lost)
    done = [attempt for attempt in attempts if attempt["state"] == "COMPLETED"]
    assert [(attempt["run"], attempt["restart"]) for attempt in done] == [(run, 1) for run in range(6)]
    assert len(attempts) == 8
    assert sorted(project.told()) == list(range(6))
    assert agent["host"] not in {one["host"] for one in project.told().values()}
