"""A run that takes a while and writes down on the real machine, past the NFS, when and where each attempt began and
ended."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

#: How long a run takes that is there to be cancelled, in seconds.
LONG_S = 120.0


def tell(what: str) -> None:
    """Append a line to the file of this attempt on this host."""
    sweep, run, attempt = (os.environ[f"CLUSTERDUCK_{name}"] for name in ("SWEEP", "RUN", "ATTEMPT"))
    folder = Path("/host/effects") / sweep
    folder.mkdir(exist_ok=True)
    fd = os.open(folder / f"{run}.{attempt}.{socket.gethostname()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{what} {time.time()}\n".encode())
    os.fsync(fd)
    os.close(fd)


def give_up(*_: object) -> None:
    tell("told-to-end")
    sys.exit(1)


@hydra.main(version_base=None)
def main(cfg: DictConfig) -> int:
    signal.signal(signal.SIGTERM, give_up)
    tell("begun")
    seconds = LONG_S if cfg.number in cfg.long else cfg.seconds
    until, steps = time.monotonic() + seconds, 0
    while steps < 10 * seconds if "counted" in cfg else time.monotonic() < until:  # a count stands still with its host
        time.sleep(0.1)
        steps += 1
        if cfg.number % 2:  # into its log, which lies on the NFS; the others are silent
            print("still there")
    tell("completed")
    return int(cfg.number)


if __name__ == "__main__":
    main()
