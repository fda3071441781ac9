"""A run that takes a moment and writes down in a file of its own when each of its attempts began and completed."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig


def tell(run: str, line: str) -> None:
    fd = os.open(Path("effects") / run, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.fsync(fd)
    os.close(fd)


@hydra.main(version_base=None)
def main(cfg: DictConfig) -> int:
    run, attempt = os.environ["CLUSTERDUCK_RUN"], os.environ["CLUSTERDUCK_ATTEMPT"]
    tell(run, f"begun {attempt}")
    time.sleep(random.uniform(0.1, 1.5))
    tell(run, f"completed {attempt}")
    return int(cfg.number)


if __name__ == "__main__":
    main()
