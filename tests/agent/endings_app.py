"""A script whose runs end in every way there is; run by the tests, never imported by them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig


class CannotBeMadeAgain(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class HoldsALock(Exception):
    def __init__(self) -> None:
        super().__init__("it holds a lock")
        self.lock = threading.Lock()


class CannotBeShown(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def leave_children() -> str:
    """Children in the group, in a session of their own, and a daemon that has cut all ties; their ids go to a file."""
    pids = [subprocess.Popen(["sleep", "1000"]).pid for _ in range(20)]
    pids += [subprocess.Popen(["sleep", "1000"], start_new_session=True).pid for _ in range(5)]
    daemon = """if True:
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print(os.getpid(), flush=True)
                time.sleep(1000)
    """
    read, write = os.pipe()
    subprocess.run([sys.executable, "-c", daemon], stdout=write, check=True)
    with os.fdopen(read) as told:
        pids.append(int(told.readline()))
    Path("children").mkdir(exist_ok=True)
    Path(f"children/{os.getpid()}").write_text(" ".join(map(str, pids)))
    return "left"


@hydra.main(version_base=None, config_path="endings_conf", config_name="config")
def main(cfg: DictConfig) -> Any:
    print(f"run {cfg.how} speaks")
    print(f"run {cfg.how} complains", file=sys.stderr)
    match cfg.how:
        case "returns":
            return {"loss": 0.25, "steps": [1, 2]}
        case "returns_nan":
            return float("nan")
        case "returns_much":
            return bytes(1 << 30)
        case "returns_unpicklable":
            return threading.Lock()
        case "raises":
            raise ValueError("no way")
        case "raises_odd":
            raise CannotBeMadeAgain(1, 2)
        case "raises_lock":
            raise HoldsALock
        case "raises_mute":
            raise CannotBeShown
        case "raises_interrupt":
            raise KeyboardInterrupt
        case "exits_0":
            sys.exit(0)
        case "exits_3":
            sys.exit(3)
        case "exits_words":
            sys.exit("these words")
        case "exits_hard":
            os._exit(5)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfaults":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "closes_all":
            os.closerange(0, 4096)
            return 7
        case "leaves_children":
            return leave_children()
        case "child_speaks":
            subprocess.run(["sh", "-c", "echo a child speaks; echo a child complains >&2"], check=True)
            return None
    raise AssertionError(f"no such ending: {cfg.how}")


if __name__ == "__main__":
    main()
