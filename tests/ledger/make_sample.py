"""Makes the sample of a released version that ``test_versions.py`` reads ever after: a real sweep on this machine.

    python tests/ledger/make_sample.py [FOLDER]

FOLDER is where the journals and the ledger go: ``tests/ledger/samples/<version>`` unless said otherwise. To be run
once, with the version that is being released.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import clusterduck

APP = """
import os, signal, time
from pathlib import Path

import clusterduck
import hydra

@hydra.main(version_base=None)
def main(cfg):
    attempt = int(os.environ["CLUSTERDUCK_ATTEMPT"])
    if cfg.how == "fails" and attempt == 1:
        raise ValueError("a loss of nan")
    if cfg.how == "is killed" and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while cfg.how == "waits" and not Path(cfg.go).exists():
        time.sleep(0.05)
    return {"loss": 1.5, "how": cfg.how}

if __name__ == "__main__":
    main()
"""


def main() -> None:
    """Launch, cancel, requeue, wait, and keep what was written."""
    samples = Path(__file__).parent / "samples" / clusterduck.__version__
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else samples
    base = Path(tempfile.mkdtemp(prefix="sample-"))
    project = base / "project"
    project.mkdir()
    (project / "app.py").write_text(APP)
    os.environ["TMPDIR"] = str(base)
    run = _in(project)
    launch = ["app.py", "--multirun", f"+go={project}/go", "hydra/launcher=clusterduck_local", "hydra.sweep.dir=out"]
    launch += ["hydra.launcher.parallel_runs_per_node=2", "hydra.launcher.total_runs_per_node=4"]
    run(*launch, "+how=waits,returns,fails,is killed,waits,returns", "+seed=1,2")
    command = ["-m", "clusterduck.cli.main"]
    (entry,) = (project / ".clusterduck" / "sweeps").iterdir()
    sweep = project / "out" / ".clusterduck" / entry.name
    _until(lambda: _counts(run)["RUNNING"] >= 2)
    run(*command, "cancel", f"{sweep.name}/1", "--yes")
    (project / "go").touch()
    _until(lambda: not (_counts(run)["RUNNING"] + _counts(run)["PENDING"]))
    run(*command, "requeue", "--failed", "--override", "+more=1", "--yes")
    _until(lambda: not (_counts(run)["RUNNING"] + _counts(run)["PENDING"]))
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(sweep.rglob("*.jsonl")):
        kept = target / sweep.name / path.relative_to(sweep)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(path.read_bytes())
    ledger = (project / ".clusterduck" / "ledger.db").read_bytes()
    (target / "ledger.db.gz").write_bytes(gzip.compress(ledger, mtime=0))
    shutil.rmtree(base)


def _in(project: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=project, check=True, stdout=subprocess.PIPE, text=True).stdout

    return run


def _counts(run: Callable[..., str]) -> dict[str, int]:
    (sweep,) = json.loads(run("-m", "clusterduck.cli.main", "status", "--json"))
    return {"RUNNING": 0, "PENDING": 0, **sweep["counts"]}


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


if __name__ == "__main__":
    main()
