"""Jobs of two nodes: one agent may have nothing left while the other still works, and the job is one all the same."""

from __future__ import annotations

import pytest
from cluster import wait_until
from project import Project

pytestmark = pytest.mark.slurm


def test_a_job_short_of_time_starts_again_once_its_last_agent_has_ended(project: Project) -> None:
    project.launch(
        "+number=range(4)",
        f"+gate='{project.folder}/gate-${{number}}'",
        "hydra.launcher.nodes=2",
        "hydra.launcher.timeout_min=1",
        "hydra.launcher.signal_delay_s=10",
        "hydra.launcher.max_num_timeout=1",
    )
    wait_until(lambda: claims(project) >= {f"{run}.1" for run in range(4)}, "each node has claimed its next run, too")
    for number in (0, 1, 3):
        (project.folder / f"gate-{number}").touch()
    left = ["COMPLETED", "COMPLETED", "RUNNING", "PENDING"]
    wait_until(lambda: project.states() == left, "the first node has nothing left to do")
    ended = "SELECT node FROM agent WHERE restart = 0 AND exit_code IS NOT NULL"
    wait_until(lambda: project.runs() and project.query(ended) == [{"node": 0}], "its agent has ended")
    (job,) = project.cluster.jobs()
    project.cluster.command("scancel", "--signal=USR2", job)  # the warning, which Slurm may send a minute early
    wait_until(lambda: "3.1" not in claims(project), "the second node gives back what it has not begun")
    (project.folder / "gate-2").touch()
    wait_until(lambda: project.states() == ["COMPLETED"] * 4, "the second start did the rest", 90)
    project.cluster.wait_for_no_jobs()
    project.runs()
    rows = project.query("SELECT run, number, restart FROM attempt ORDER BY run, number")
    assert [tuple(row.values()) for row in rows] == [(0, 1, 0), (1, 1, 0), (2, 1, 0), (3, 1, 1)]
    agents = project.query("SELECT restart, node FROM agent ORDER BY restart, node")
    assert [tuple(agent.values()) for agent in agents] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def claims(project: Project) -> set[str]:
    """What is claimed."""
    return {path.name for path in project.folder.glob("multirun/*/*/.clusterduck/*/claims/*")}
