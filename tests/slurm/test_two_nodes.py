"""The doctor's job on two nodes of a real cluster: it tries the file system, compares, and is gone however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import SlurmCluster, wait_until

pytestmark = pytest.mark.slurm

CLUSTERDUCK = str(Path(sys.executable).with_name("clusterduck"))


def test_two_nodes_are_tried(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    command = [CLUSTERDUCK, "doctor", str(tmp_path), "--slurm", "--json"]
    done = subprocess.run(command, env=slurm_cluster.environ, capture_output=True, text=True, timeout=120, check=False)
    rows = json.loads(done.stdout)
    between = {row["check"]: row["level"] for row in rows if "the nodes node" in row["tested"]}
    timed = {"append", "listing"}  # on a busy machine, what one node writes may come late to the other
    assert {check: "good" if check in timed and level == "note" else level for check, level in between.items()} == (
        dict.fromkeys(("exclusive", "append", "listing", "rename"), "good")
    ), done.stderr
    assert [row["found"] for row in rows if "Python and packages on node" in row["tested"]] == ["the same as here"] * 2
    assert list(tmp_path.iterdir()) == []
    slurm_cluster.wait_for_no_jobs()


def test_its_job_ends_with_it(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    command = [CLUSTERDUCK, "doctor", str(tmp_path), "--slurm"]
    with subprocess.Popen(command, env=slurm_cluster.environ, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: slurm_cluster.jobs("--states=RUNNING"), "its job to run")
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 128 + signal.SIGTERM
    slurm_cluster.wait_for_no_jobs()
    wait_until(lambda: not list(tmp_path.iterdir()), "its folder to be gone")
