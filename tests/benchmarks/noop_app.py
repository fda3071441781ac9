"""A run that does nothing, for benchmarks: what a launcher adds is all that is left.

With ``CLUSTERDUCK_BENCHMARK_TIMES`` it writes when its function begins into the named pipe of its number in that
folder, which it then holds open until its process is gone; with ``CLUSTERDUCK_BENCHMARK_SECONDS`` it sleeps so long.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig


@hydra.main(version_base=None)
def main(cfg: DictConfig) -> int:
    now = time.time()
    pipes = os.environ.get("CLUSTERDUCK_BENCHMARK_TIMES")
    if pipes:
        pipe = os.open(Path(pipes, str(HydraConfig.get().job.num)), os.O_WRONLY)
        os.write(pipe, f"{now:.6f}\n".encode())  # never closed: the end of the process does
    time.sleep(float(os.environ.get("CLUSTERDUCK_BENCHMARK_SECONDS", "0")))
    return 0


def note_when_launched(file: Path) -> None:
    """Write down when the sweeper, which has composed the runs, calls the launcher."""
    instantiate = Plugins.instantiate_launcher

    def instantiate_and_watch(*arguments: Any, **named: Any) -> Launcher:
        launcher = instantiate(*arguments, **named)
        launch = launcher.launch

        def note_and_launch(*runs: Any, **more: Any) -> Any:
            file.write_text(f"{time.time():.6f}")
            return launch(*runs, **more)

        launcher.launch = note_and_launch  # type: ignore[method-assign]
        return launcher

    Plugins.instantiate_launcher = instantiate_and_watch  # type: ignore[method-assign]


if __name__ == "__main__":
    if "CLUSTERDUCK_BENCHMARK_LAUNCHED" in os.environ:
        note_when_launched(Path(os.environ["CLUSTERDUCK_BENCHMARK_LAUNCHED"]))
    main()
