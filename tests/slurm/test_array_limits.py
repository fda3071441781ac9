"""More jobs than Slurm takes in one array, and more than it holds at all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from cluster import SlurmCluster, obstacle
from project import Project

pytestmark = pytest.mark.slurm


def test_arrays_are_no_larger_than_slurm_takes(tmp_path: Path) -> None:
    reason = obstacle()
    if reason:
        pytest.skip(f"no Slurm cluster here: {reason}")
    with SlurmCluster(nodes=1, cpus=8, settings=["MaxArraySize=3", "MaxJobCount=9"]) as cluster:
        project = Project.create(tmp_path, cluster)
        alone = ["hydra.launcher.total_runs_per_node=1", "hydra.launcher.partition=shared"]
        project.launch("+number=range(7)", *alone)
        assert project.wait_until_over() == ["COMPLETED"] * 7
        assert sorted(project.told()) == list(range(7))
        jobs = [batch["job_id"] for batch in project.batches()]
        assert Counter(job.partition("_")[2] for job in jobs) == {"0": 2, "1": 2, "2": 2, "": 1}
        assert len({job.partition("_")[0] for job in jobs}) == 3

        refused = project.launch("+number=range(10)", *alone, "hydra.sweep.dir=multirun/more", refused=True)
        assert "10 jobs, but Slurm holds no more than 9 at a time here (MaxJobCount)" in refused.stderr
        assert "Traceback" not in refused.stderr
