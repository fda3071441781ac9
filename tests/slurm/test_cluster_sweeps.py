"""Sweeps on a real Slurm cluster: packed into slots, on resources of their own, and all of it in the ledger."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import pytest
from cluster import wait_until
from project import Project

pytestmark = pytest.mark.slurm

RESOURCES = "hydra.launcher.resources_config={cpu: null, cuda: null}"


def overlapping(told: Iterable[dict[str, Any]]) -> int:
    """The largest number of these runs that were there at one moment."""
    moments = sorted([(one["started"], 1) for one in told] + [(one["ended"], -1) for one in told])
    now = most = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


def test_sixty_runs_in_three_jobs_of_four_slots(project: Project) -> None:
    project.launch(
        "+number=range(60)",
        "+seconds=0.4",
        "hydra.launcher.gpus_per_node=4",
        "hydra.launcher.parallel_runs_per_node=4",
        "hydra.launcher.total_runs_per_node=20",
        "hydra.launcher.wait_for_completion=true",
        RESOURCES,
    )
    told = project.told()
    assert sorted(told) == list(range(60))

    # No two at once on one GPU or CPU, and each node was shared by up to four.
    by_gpu, by_cpu, by_host = defaultdict(list), defaultdict(list), defaultdict(list)
    for one in told.values():
        by_host[one["host"]].append(one)
        by_gpu[one["host"], one["environ"]["CUDA_VISIBLE_DEVICES"]].append(one)
        assert len(one["cpus"]) == 1
        by_cpu[one["host"], one["cpus"][0]].append(one)
    hosts = {"node1", "node2", "node3"}
    assert {host: len(ones) for host, ones in by_host.items()} == dict.fromkeys(hosts, 20)
    assert set(by_gpu) == {(host, str(gpu)) for host in hosts for gpu in range(4)}
    assert set(by_cpu) == {(host, cpu) for host in hosts for cpu in range(4)}
    assert all(overlapping(ones) == 1 for ones in (*by_gpu.values(), *by_cpu.values()))
    assert all(2 <= overlapping(ones) <= 4 for ones in by_host.values())
    assert overlapping(told.values()) > 4

    # A run is told who it is, and not that it would be a rank of a parallel program.
    for number, one in told.items():
        environ = one["environ"]
        assert environ["CLUSTERDUCK_RUN"] == str(number)
        assert environ["CLUSTERDUCK_ATTEMPT"] == "1"
        assert environ["SLURM_JOB_ID"]
        assert (environ["RANK"], environ["LOCAL_RANK"], environ["WORLD_SIZE"]) == ("0", "0", "1")
        hidden = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_", "PMI")
        assert [name for name in environ if name.startswith((*hidden, "SLURM_TASKS_PER_NODE"))] == []
        assert environ["OMP_NUM_THREADS"] == "1"

    # The command line and the ledger say the same.
    project.cluster.wait_for_no_jobs()
    rows = project.runs()
    assert [row["return_value"] for row in rows] == [2 * number for number in range(60)]
    assert {(row["state"], row["attempt"]) for row in rows} == {("COMPLETED", 1)}
    assert all(f"+number={number}" in row["overrides"] for number, row in enumerate(rows))
    attempts = project.query("SELECT * FROM attempt ORDER BY run")
    for attempt in attempts:
        one = told[attempt["run"]]
        assert attempt["host"] == one["host"]
        assert json.loads(attempt["cpus"]) == one["cpus"]
        assert json.loads(attempt["gpus"]) == [one["environ"]["CUDA_VISIBLE_DEVICES"]]
        assert attempt["exit_code"] == 0
        assert attempt["started_at"] < attempt["ended_at"]
    assert [attempt["run"] for attempt in attempts] == list(range(60))
    (sweep,) = project.query("SELECT * FROM sweep")
    assert (sweep["runs"], sweep["completed"], sweep["pending"], sweep["running"]) == (60, 60, 0, 0)
    batches = project.query("SELECT * FROM batch ORDER BY first_run")
    assert [(batch["first_run"], batch["stop_run"]) for batch in batches] == [(0, 20), (20, 40), (40, 60)]
    array = {batch["job_id"].partition("_")[0] for batch in batches}
    assert len(array) == 1, "three jobs of one launch are one job array"
    assert {one["environ"]["SLURM_ARRAY_JOB_ID"] for one in told.values()} == array
    assert {batch["state"] for batch in batches} == {"COMPLETED"}


def test_an_array_keeps_to_its_parallelism(project: Project) -> None:
    project.launch(
        "+number=range(6)",
        "+seconds=0.2",
        "hydra.launcher.total_runs_per_node=2",
        "hydra.launcher.array_parallelism=1",
        "hydra.launcher.wait_for_completion=true",
    )
    told = project.told()
    assert sorted(told) == list(range(6))
    assert overlapping(told.values()) == 1
    assert len({one["environ"]["SLURM_JOB_ID"] for one in told.values()}) == 3


def test_two_nodes_share_the_runs_of_one_job(project: Project) -> None:
    gate = project.folder / "open"
    project.launch(
        "+number=range(24)",
        f"+gate={gate}",
        "+seconds=0.3",
        "hydra.launcher.nodes=2",
        "hydra.launcher.gpus_per_node=4",
        "hydra.launcher.parallel_runs_per_node=4",
        "hydra.launcher.wait_for_completion=false",
        RESOURCES,
    )
    wait_until(lambda: Counter(project.states())["RUNNING"] == 8, "both nodes have begun")
    gate.touch()
    project.wait_until_over()
    project.cluster.wait_for_no_jobs()
    told = project.told()
    assert sorted(told) == list(range(24))
    hosts = Counter(one["host"] for one in told.values())
    assert len(hosts) == 2
    assert min(hosts.values()) > 4, "each took more than what it began with"
    assert len({one["environ"]["SLURM_JOB_ID"] for one in told.values()}) == 1
    agents = project.query("SELECT * FROM agent ORDER BY node")
    assert [(agent["node"], agent["host"] in hosts, agent["exit_code"]) for agent in agents] == [
        (0, True, 0),
        (1, True, 0),
    ]


def test_a_launch_that_does_not_wait_returns_while_its_runs_go_on(project: Project) -> None:
    gate = project.folder / "open"
    project.launch(
        "+number=range(8)",
        f"+gate={gate}",
        "hydra.launcher.parallel_runs_per_node=4",
        "hydra.launcher.wait_for_completion=false",
    )
    assert set(project.states()) <= {"PENDING", "RUNNING"}
    wait_until(lambda: Counter(project.states())["RUNNING"] == 4, "four runs running")
    (batch,) = project.batches()
    (job,) = project.cluster.jobs()
    assert batch["job_id"] == job
    assert batch["host"] in project.cluster.nodes
    assert batch["agent_pid"] > 0
    gate.touch()
    assert project.wait_until_over() == ["COMPLETED"] * 8
    project.cluster.wait_for_no_jobs()


def test_all_cpus_of_the_allocation_are_used_though_the_task_is_bound(project: Project) -> None:
    project.launch(
        "+number=range(2)",
        "hydra.launcher.partition=shared",
        "hydra.launcher.cpus_per_task=2",
        "hydra.launcher.srun_args=['--cpu-bind=cores']",  # what binds the agent to a part of what the job has
        "hydra.launcher.parallel_runs_per_node=2",
        "hydra.launcher.wait_for_completion=true",
        "hydra.launcher.resources_config={cpu: null}",
    )
    cpus = sorted(cpu for one in project.told().values() for cpu in one["cpus"])
    assert cpus == [0, 1], "the job's two CPUs, one each, and none of the node's others"
