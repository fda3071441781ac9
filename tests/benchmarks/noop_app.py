"""A run that does nothing, for benchmarks: what a launcher adds is all that is left.

With ``CLUSTERDUCK_BENCHMARK_TIMES`` it writes when its function begins into that named pipe, which it then holds open
until its process is gone; with ``CLUSTERDUCK_BENCHMARK_SECONDS`` it sleeps so long.
"""

from __future__ import annotations

import os
import time

import hydra
from omegaconf import DictConfig


@hydra.main(version_base=None)
def main(cfg: DictConfig) -> int:
    pipe = os.environ.get("CLUSTERDUCK_BENCHMARK_TIMES")
    if pipe:
        now = time.time()
        os.write(os.open(pipe, os.O_WRONLY), f"{now:.6f}\n".encode())  # never closed: the end of the process does
    time.sleep(float(os.environ.get("CLUSTERDUCK_BENCHMARK_SECONDS", "0")))
    return 0


if __name__ == "__main__":
    main()
