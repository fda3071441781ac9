"""Slurm's real commands, behind scripts that lose or spoil their answers; and ids that Slurm has used before."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import SlurmCluster, wait_until
from project import Project

from clusterduck.slurm import jobs
from clusterduck.slurm.jobs import ABSENT, OF_ANOTHER, is_denied, look_up

LOST = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


@pytest.fixture
def spoil(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder before all others in the project's PATH: scripts there stand before Slurm's commands."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    monkeypatch.setitem(project.cluster.environ, "PATH", f"{folder}:{project.cluster.environ['PATH']}")
    return folder


def put(folder: Path, command: str, script: str) -> None:
    path = folder / command
    path.write_text(f"#!/bin/sh\nPATH=${{PATH#{folder}:}}\n{script}\n")
    path.chmod(0o755)


def test_a_job_that_slurm_took_although_sbatch_said_otherwise_is_executed_once(project: Project, spoil: Path) -> None:
    # Slurm ends a job whose folder has not been made when it begins.
    put(spoil, "sbatch", f'sbatch --begin=now+5 "$@" > /dev/null; echo "{LOST}" >&2; exit 1')
    said = project.launch("+number=range(3)", "hydra.launcher.total_runs_per_node=1").stdout
    assert f"{LOST}. Slurm is asked" in said and "Submitted jobs" in said
    assert project.wait_until_over() == ["COMPLETED"] * 3
    assert len(project.told()) == 3
    assert len(project.cluster.jobs("--states=all", f"--jobs={project.batches()[0]['job_id'].partition('_')[0]}")) == 3


def test_a_job_in_doubt_is_taken_over_by_whoever_looks_once_slurm_answers(project: Project, spoil: Path) -> None:
    put(spoil, "sbatch", 'sbatch --begin=now+1hour "$@" > /dev/null; kill -9 $$')
    put(spoil, "squeue", "echo Welcome")
    command = [sys.executable, "-u", "tell.py", "--multirun", "hydra/launcher=clusterduck_slurm", "+number=range(2)"]
    with subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as launch:
        assert launch.stdout is not None
        asked = next((line for line in launch.stdout if "Slurm is asked" in line), "")
        assert "sbatch failed without a word (killed by signal 9)" in asked
        launch.send_signal(signal.SIGINT)  # nobody has to wait until all tries are done
        said, _ = launch.communicate(timeout=180)
    assert "Nobody knows whether Slurm has taken the job" in said and "Traceback" not in said and launch.returncode == 1
    (batch,) = project.batches()
    assert (batch["state"], batch["job_id"]) == ("PENDING", None)
    assert batch["reason"].startswith("Nobody knows whether Slurm has taken the job")
    (spoil / "squeue").unlink()
    wait_until(lambda: project.batches()[0]["job_id"] is not None, "the job is taken over")
    project.cluster.command("scontrol", "update", f"jobid={project.batches()[0]['job_id']}", "starttime=now")
    assert project.wait_until_over() == ["COMPLETED"] * 2
    assert len(project.told()) == 2


def test_a_real_job_of_the_same_id_is_told_apart_by_its_time(
    slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm_cluster.environ[name])
    now = time.time()
    job, requeued = (
        slurm_cluster.command("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600").strip() for _ in "ab"
    )
    wait_until(lambda: look_up({requeued: None})[requeued].state == "RUNNING", f"job {requeued} running")
    slurm_cluster.command("scontrol", "requeue", requeued)
    wait_until(lambda: "Restarts=1" in slurm_cluster.command("scontrol", "show", "job", requeued), "requeued")
    for off, whose in ((0, "RUNNING"), (-7200, ABSENT), (7200, ABSENT)):  # an earlier one's id, a later one's
        found = look_up({job: now + off})[job]
        assert (found.state, found.reason) == (whose, OF_ANOTHER if whose == ABSENT else "")
    # A requeue moves the time that Slurm tells forward; the job is the same.
    monkeypatch.setattr(jobs, "SUBMIT_SLACK_S", 0.0)
    assert look_up({requeued: now - 7200})[requeued].state != ABSENT
    assert is_denied("999999") and not is_denied(job)
