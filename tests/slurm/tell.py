"""A run that writes down where it ran and what it was given, for the tests to read."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import hydra
import psutil
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

#: The journals of agents, below a sweep's folder.
JOURNALS = ".clusterduck/*/batches/*/*/*.jsonl"


@hydra.main(version_base="1.3", config_path=None)
def main(config: DictConfig) -> int:
    """Write ``told.json`` into the run's folder; then do what the overrides ask for. Returns twice the number."""
    started = time.time()
    gate = config.get("gate")
    while gate and not Path(gate).exists():
        time.sleep(0.02)
    time.sleep(config.get("seconds", 0))
    told = {
        "number": config.number,
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "started": started,
        "ended": time.time(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "environ": dict(os.environ),
    }
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / "told.json").write_text(json.dumps(told))
    how = config.die[config.number] if "die" in config else "no"
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "agent":
        server = psutil.Process().parent()
        assert server is not None
        while not any('"e":"started"' in journal.read_text() for journal in folder.parent.glob(JOURNALS)):
            time.sleep(0.02)  # until it is on record that a run began
        os.kill(server.ppid(), signal.SIGKILL)
        time.sleep(60)
    elif how == "exit":
        sys.exit(3)
    elif how == "raise":
        raise RuntimeError("this run was told to fail")
    return 2 * config.number


if __name__ == "__main__":
    main()
