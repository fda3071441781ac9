"""The cluster that the tests here share, and a project folder to launch from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import SlurmCluster, obstacle
from project import Project


@pytest.fixture(scope="session")
def _cluster() -> Iterator[SlurmCluster]:
    reason = obstacle()
    if reason:
        pytest.skip(f"no Slurm cluster here: {reason}")
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture
def slurm_cluster(_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """A cluster of three nodes with four GPUs and four CPUs each, and nothing running on it."""
    _cluster.restore()
    yield _cluster
    _cluster.restore()


@pytest.fixture(scope="session")
def accounting_cluster() -> Iterator[SlurmCluster]:
    """A cluster of one node whose jobs are remembered by slurmdbd, for ``sacct`` to tell."""
    reason = obstacle(accounting=True)
    if reason:
        pytest.skip(f"no Slurm cluster with accounting here: {reason}")
    with SlurmCluster(nodes=1, accounting=True) as cluster:
        yield cluster


@pytest.fixture
def project(slurm_cluster: SlurmCluster, tmp_path: Path) -> Project:
    """A fresh project folder on the cluster's shared file system."""
    return Project.create(tmp_path, slurm_cluster)
