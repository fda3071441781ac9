"""The dashboard in a real terminal over a real sweep on a real Slurm cluster, from an empty folder to the last run."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from cluster import SlurmCluster
from project import Project
from terminals import Terminal, dashboard

pytestmark = pytest.mark.slurm

APP = """
import pathlib, time
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    here = pathlib.Path(__file__).parent
    while not (here / f"go{config.x}").exists():
        time.sleep(0.05)
    if config.x == 1 and not (here / "mended").exists():
        raise ValueError("x is one")
    return config.x / 2

main()
"""


@pytest.fixture
def terminal(project: Project) -> Iterator[Terminal]:
    opened = Terminal(project.folder, 100, 30, environ=project.environ)
    yield opened
    opened.close()


def job_of(project: Project, batch: str) -> str:
    (job,) = (str(one["job_id"]) for one in project.batches() if one["batch"] == batch)
    return job


def test_a_sweep_from_an_empty_folder_to_a_sane_terminal(
    project: Project, terminal: Terminal, slurm_cluster: SlurmCluster
) -> None:
    folder = project.folder
    (folder / "app.py").write_text(APP)
    terminal.type(f"{dashboard()}; echo over-$?")
    terminal.see("No ledger here")
    launch(project)

    terminal.see("app-", "R RUNNING", "Jobs of app-", "2 of 2 alive", "4/4 slots")
    terminal.keys("2")
    text = terminal.see("2 nodes", "4 of 4 slots busy", "run 0", "run 1", "run 3", "run 4")
    assert "node1" in text and "node2" in text and "gpu 2,3" in text
    (folder / "go1").touch()
    terminal.see("run 2")  # it takes the slot of the one that failed
    terminal.keys("4")
    terminal.see("F FAILED", "F 1", "R 4")

    (folder / "mended").touch()
    terminal.keys("f")
    terminal.see("1 of 6 runs", "/ state:trouble")
    terminal.keys("Space")
    terminal.see("1 marked")
    terminal.keys("r")
    terminal.see("Requeue run app-", "1 failed run: 1 in a new job.")
    terminal.keys("Enter")
    terminal.see("1 run in job")
    terminal.see("C 1")
    terminal.keys("Escape")
    terminal.see("C COMPLETED", "0.5", "R 4")

    terminal.keys("g", "c")  # run 0
    terminal.see("Cancel run app-", "1 run that agents have is asked to end.")
    terminal.keys("Enter")
    terminal.see("1 run cancelled.")
    terminal.see("X CANCELLED", "X 1")

    job = job_of(project, "0-1")
    terminal.keys("1")
    terminal.see("Jobs of app-")
    terminal.keys("b")
    ask_to_drain(terminal, job)
    terminal.keys("Enter")
    terminal.see(f"Job {job} on node", "finishes what runs")
    for number in (2, 3, 4):
        (folder / f"go{number}").touch()
    slurm_cluster.wait_for_no_jobs()
    terminal.see("0 of 3 alive", "5/6")  # what the drained job left waits

    terminal.keys("b", "c")
    terminal.see("Cancel the whole sweep app-", "1 run will never start")
    terminal.keys("Enter")
    terminal.see("1 run cancelled.")
    terminal.see("6/6")
    terminal.keys("6")
    text = terminal.see("requeue", "cancel", "drain")
    assert "root@" in text
    terminal.keys("q")
    terminal.see("over-0")
    terminal.require_sane()
    states = project.states()
    assert states == ["CANCELLED", "COMPLETED", "COMPLETED", "COMPLETED", "COMPLETED", "CANCELLED"]


def launch(project: Project) -> None:
    """Six runs in two jobs of two slots; each waits for its ``go``."""
    done = project.run(
        [
            *[sys.executable, "app.py", "--multirun", "hydra/launcher=clusterduck_slurm", "+x=range(6)"],
            *["hydra.launcher.parallel_runs_per_node=2", "hydra.launcher.total_runs_per_node=3"],
            *["hydra.launcher.gpus_per_node=4", "hydra.launcher.resources_config={cuda: null}"],
            "hydra.launcher.wait_for_completion=false",
        ]
    )
    assert done.returncode == 0, done.stderr


def ask_to_drain(terminal: Terminal, job: str) -> None:
    """Press ``d`` on the row of the job, wherever it stands: the question names the job."""
    for _ in range(3):
        terminal.keys("d")
        if f"Drain job {job} " in terminal.see("Drain job "):
            return
        terminal.keys("n")
        terminal.miss("Drain job ")
        terminal.keys("j")
    raise AssertionError(f"no row is about job {job}:\n{terminal.text}")
