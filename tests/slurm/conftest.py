"""The cluster that the tests here share, and a project folder to launch from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import SlurmCluster, obstacle
from project import SCRIPT, Project


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


@pytest.fixture
def project(slurm_cluster: SlurmCluster, tmp_path: Path) -> Project:
    """A fresh project folder on the cluster's shared file system."""
    shutil.copy(SCRIPT, tmp_path)
    return Project(tmp_path, slurm_cluster)
