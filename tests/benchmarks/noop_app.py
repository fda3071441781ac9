"""A run that does nothing, for benchmarks: what a launcher adds is all that is left."""

from __future__ import annotations

import atexit
import os
import time

import hydra
from omegaconf import DictConfig


def tell(what: str) -> None:
    path = os.environ.get("CLUSTERDUCK_BENCHMARK_TIMES")
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, f"{what} {time.time():.6f}\n".encode())
        os.close(fd)


@hydra.main(version_base=None)
def main(cfg: DictConfig) -> int:
    tell("first")
    atexit.register(tell, "last")
    return 0


if __name__ == "__main__":
    main()
