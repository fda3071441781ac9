"""A run that takes a moment and writes down, on disk, when each of its attempts began and completed."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig


def tell(run: str, line: str) -> None:
    effects = Path("effects", os.environ["CLUSTERDUCK_SWEEP"])
    effects.mkdir(exist_ok=True)
    fd = os.open(effects / run, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.fsync(fd)
    os.close(fd)


@hydra.main(version_base=None)
def main(cfg: DictConfig) -> int:
    run, attempt = os.environ["CLUSTERDUCK_RUN"], os.environ["CLUSTERDUCK_ATTEMPT"]
    tell(run, f"begun {attempt}")
    time.sleep(random.uniform(0.0, 2 * cfg.mean_s))
    tell(run, f"completed {attempt}")
    return int(cfg.number)


if __name__ == "__main__":
    main()
