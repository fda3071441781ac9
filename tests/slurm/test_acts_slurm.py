"""Requeue, cancel, drain, and launchers that were killed half-way, on a real Slurm cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cluster import wait_until
from project import Project

pytestmark = pytest.mark.slurm

NOT_WAITED = "hydra.launcher.wait_for_completion=false"


def command(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return project.run([str(Path(sys.executable).with_name("clusterduck")), *arguments])


def said(project: Project, *arguments: str, code: int = 0) -> str:
    done = command(project, *arguments)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def attempts(project: Project) -> dict[int, str]:
    """Which attempt of each run wrote last."""
    return {number: one["environ"]["CLUSTERDUCK_ATTEMPT"] for number, one in project.told().items()}


def test_failed_runs_go_to_a_live_agent_or_into_new_jobs(project: Project) -> None:
    gate = project.folder / "open"
    project.launch(
        "+number=range(4)", "+die=[raise,no,raise,raise]", "hydra.launcher.parallel_runs_per_node=2", NOT_WAITED
    )
    assert project.wait_until_over() == ["FAILED", "COMPLETED", "FAILED", "FAILED"]
    project.cluster.wait_for_no_jobs()
    ways = ("--override", "++die=[no,no,no,no]", "--override", f"+gate={gate}")
    plan = said(project, "requeue", "--failed", "--dry-run", *ways, "--set", "total_runs_per_node=2")
    assert plan == "3 failed runs: 3 in 2 new jobs\n"
    sent = project.clusterduck(
        "requeue", "--failed", *ways, "--set", "total_runs_per_node=2", "--set", "timeout_min=7", "--set", "name=again"
    )
    assert Counter(one["batch"] for one in sent) == {"r1-0": 2, "r1-1": 1}
    wait_until(lambda: Counter(project.states())["RUNNING"] == 3, "three runs running")
    for job in {one["job_id"] for one in sent}:
        shown = project.cluster.command("scontrol", "--oneliner", "show", "job", job)
        assert "TimeLimit=00:07:00" in shown
        assert "JobName=again" in shown

    # The second of the new jobs has an empty slot: what is sent again now needs no job of its own.
    (sent_again,) = project.clusterduck("requeue", "@last/1")
    assert sent_again["agent"] == "r1-1/0.0"
    gate.touch()
    assert "all 4 runs completed" in said(project, "wait", "@last", "--timeout", "60")
    assert attempts(project) == dict.fromkeys(range(4), "2")
    acts = project.query("SELECT * FROM act WHERE kind = 'requeue' ORDER BY at")
    assert [act["user"] for act in acts] == ["root", "root"]
    assert "++die" in acts[0]["detail"]


def test_cancelled_runs_end_at_once_and_jobs_nobody_needs_leave_the_queue(project: Project) -> None:
    gate = project.folder / "never"
    # Agents that would not look into their inboxes for an hour: it is Slurm's signal that brings them requests.
    (project.folder / "sitecustomize.py").write_text(
        "from clusterduck.agent import supervisor\nsupervisor.INBOX_S = 3600.0\n"
    )
    project.launch(
        "+number=range(4)",
        f"+gate={gate}",
        f'hydra.launcher.setup=["export PYTHONPATH={project.folder}"]',
        "hydra.launcher.total_runs_per_node=2",
        "hydra.launcher.array_parallelism=1",
        NOT_WAITED,
    )
    wait_until(lambda: project.states()[0] == "RUNNING", "the first run running")
    assert said(project, "cancel", "@last/0") == "1 run cancelled\n"
    wait_until(lambda: project.states()[1] == "RUNNING", "the slot goes to the next run")
    report = said(project, "cancel", "@last")
    assert report.startswith("3 runs cancelled, job "), report
    assert "ended in Slurm's queue" in report
    project.cluster.wait_for_no_jobs()
    assert project.states() == ["CANCELLED"] * 4
    assert "4 of 4 runs did not complete" in said(project, "wait", "@last", code=4)
    assert project.told() == {}
    states = {batch["batch"]: batch["state"] for batch in project.batches()}
    assert states["0-1"] == "CANCELLED"


def test_a_job_is_cancelled_or_drained_by_its_id(project: Project) -> None:
    gate = project.folder / "open"
    project.launch("+number=range(6)", f"+gate={gate}", "hydra.launcher.total_runs_per_node=3", NOT_WAITED)
    wait_until(lambda: Counter(project.states())["RUNNING"] == 2, "a run of each job running")
    first, second = (str(batch["job_id"]) for batch in project.batches())
    assert said(project, "cancel", "--job", first) == "3 runs cancelled\n"
    assert "finishes what runs and takes nothing more" in said(project, "drain", second)
    gate.touch()
    stuck = said(project, "wait", "@last", "--timeout", "60", code=6)
    assert "2 runs wait, and no live job will take them" in stuck
    assert project.states() == [*["CANCELLED"] * 3, "COMPLETED", "PENDING", "PENDING"]
    assert said(project, "requeue", "--unfinished").startswith("2 runs in job ")
    assert "3 of 6 runs did not complete" in said(project, "wait", "@last", "--timeout", "60", code=4)
    assert sorted(project.told()) == [3, 4, 5]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("moment", ["before", "after", "queued"])
def test_a_launcher_killed_around_sbatch_loses_nothing(project: Project, moment: str, jobs: int) -> None:
    real = shutil.which("sbatch", path=project.cluster.environ["PATH"])
    folder = project.folder / "bin"
    folder.mkdir()
    submit = {"before": "", "after": f'{real} "$@"', "queued": f'{real} --hold "$@"'}[moment]
    (folder / "sbatch").write_text(f"#!/bin/sh\n{submit}\nkill -KILL $PPID\n")
    (folder / "sbatch").chmod(0o755)
    environ = project.environ
    killed = subprocess.run(
        [
            *[sys.executable, "tell.py", "--multirun", "hydra/launcher=clusterduck_slurm", "+number=range(4)"],
            *[f"hydra.launcher.total_runs_per_node={4 // jobs}", NOT_WAITED],
        ],
        cwd=project.folder,
        env={**environ, "PATH": f"{folder}{os.pathsep}{environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=180,
        check=False,
    )
    assert killed.returncode == -9
    assert project.states() == ["PENDING"] * 4
    if moment == "queued":  # adopted, and given what submitit would have given it
        found = [str(batch["job_id"]) for batch in project.batches()]
        assert sorted(found) == sorted(project.cluster.jobs())
        project.cluster.command("scontrol", "release", found[0].partition("_")[0])
    elif moment == "after":  # Slurm ends a job whose folder has not been made, if nobody looks before it begins
        if command(project, "wait", "@last", "--timeout", "60").returncode != 0:
            assert " in job" in said(project, "requeue", "--unfinished")
        assert [batch["job_id"] for batch in project.batches()][:jobs] != [None] * jobs, "they are on record"
    else:
        assert [batch["job_id"] for batch in project.batches()] == [None] * jobs
        assert "4 runs wait, and no live job will take them" in said(project, "wait", "@last", code=6)
        assert said(project, "requeue", "--unfinished").startswith("4 runs in job")
    assert "all 4 runs completed" in said(project, "wait", "@last", "--timeout", "60")
    assert attempts(project) == dict.fromkeys(range(4), "1")
