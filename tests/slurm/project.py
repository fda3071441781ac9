"""A project folder on the login node of a test cluster: launch from it, look at what became of it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import SlurmCluster, wait_until

SCRIPT = Path(__file__).with_name("tell.py")


@dataclass
class Project:
    """A folder with a script in it, on the login node of a cluster."""

    folder: Path
    cluster: SlurmCluster

    @classmethod
    def create(cls, folder: Path, cluster: SlurmCluster) -> Project:
        """Put the script into an empty folder."""
        shutil.copy(SCRIPT, folder)
        return cls(folder, cluster)

    def launch(self, *overrides: str, refused: bool = False) -> subprocess.CompletedProcess[str]:
        """``python tell.py --multirun hydra/launcher=clusterduck_slurm ...``; fails the test if that fails."""
        command = [sys.executable, "tell.py", "--multirun", "hydra/launcher=clusterduck_slurm", *overrides]
        done = self.run(command)
        said = f"{done.stdout}\n{done.stderr}"
        assert (done.returncode != 0) == refused, f"exit code {done.returncode}\n{said}"
        return done

    def clusterduck(self, *arguments: str) -> Any:
        """What ``clusterduck ... --json`` prints."""
        command = [str(Path(sys.executable).with_name("clusterduck")), *arguments, "--json"]
        done = self.run(command)
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def runs(self) -> list[dict[str, Any]]:
        """The newest sweep's runs by their numbers, as the command line tells them."""
        rows = self.clusterduck("runs", "--sweep", "@last")
        return sorted(rows, key=lambda row: int(row["run"].rpartition("/")[2]))

    def states(self) -> list[str]:
        """The states of the newest sweep's runs, by their numbers."""
        return [row["state"] for row in self.runs()]

    def batches(self) -> list[dict[str, Any]]:
        """The newest sweep's batches."""
        (sweep,) = self.clusterduck("status", "@last")
        return list(sweep["batches"])

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows of the published ledger, read as anybody may read it, with all that has been written until now."""
        ledger = f"{self.folder}/.clusterduck/ledger.db"
        done = self.run([sys.executable, "-m", "clusterduck.ledger.publish", ledger])
        assert done.returncode == 0, done.stderr
        connection = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(sql).fetchall()]
        finally:
            connection.close()

    def wait_until_over(self, seconds: float = 90.0) -> list[str]:
        """Wait until no run is pending or running any more; their states."""
        seen: list[str] = []

        def over() -> bool:
            seen[:] = self.states()
            return not {"PENDING", "RUNNING"} & set(seen)

        wait_until(over, f"all runs over, last seen: {seen}", seconds)
        return seen

    def told(self) -> dict[int, dict[str, Any]]:
        """What each run of the project's sweeps has written about itself, by its number."""
        told = {}
        for path in self.folder.glob("multirun/**/told.json"):
            one = json.loads(path.read_text())
            assert one["number"] not in told, "a run ran twice"
            told[one["number"]] = one
        return told

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """A command on the login node, in the project's folder; what it printed is kept."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    @property
    def environ(self) -> dict[str, str]:
        """The login node's environment, without this machine's own settings of threads."""
        return self.cluster.environ | {"PYTHONDONTWRITEBYTECODE": ""}
