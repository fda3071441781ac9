"""The short form of the soak: half a minute of havoc. The long one is ``soak.py``, run by hand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cluster import SlurmCluster
from soak import Soak

pytestmark = pytest.mark.slurm


def test_every_run_completes_exactly_once_whatever_is_killed(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    soak = Soak(slurm_cluster, tmp_path, runs=60, seed=random.randrange(1 << 32))
    print(f"seed {soak.seed}")
    soak.run(chaos_s=25.0, patience_s=240.0)
    assert sum(soak.kills.values()) > 0
