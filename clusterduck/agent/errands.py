"""Errands of the agent: short commands at low priority that nobody waits for, such as removing a folder or publishing
the ledger.

Not even their start is waited for: a process that starts another waits until its program is found and loaded, which
takes as long as a file server is away that ``PATH`` or the program lies on. So what the agent itself starts is
``nice``, found beforehand on the node's own disk, and that loads the rest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable

#: For how long errands that still run are waited for when the agent ends, in seconds.
PATIENCE_S = 10.0


def at_low_priority(command: list[str]) -> list[str]:
    """The command that runs this one at low priority, by a program that is found without a look at ``PATH``."""
    return [shutil.which("nice", path=os.defpath) or "nice", "-n", "19", *command]


class Errands:
    """The errands that are under way.

    Args:
        say: prints a line into the job's log.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._nice = at_low_priority([])
        self._running: dict[int, tuple[subprocess.Popen[bytes], Callable[[bytes], None] | None]] = {}

    @property
    def pids(self) -> set[int]:
        """Their process ids."""
        return set(self._running)

    def send(self, command: list[str], then: Callable[[bytes], None] | None = None) -> None:
        """Start a command; ``then`` is called with what it printed (a few kilobytes at most) if it succeeds."""
        try:
            errand = subprocess.Popen(
                [*self._nice, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if then is None else subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self._say(f"cannot run {command[0]}: {error}")
            return
        self._running[errand.pid] = (errand, then)

    def ended(self, pid: int) -> bool:
        """Collect an errand that has ended. False if the process is none of ours."""
        if pid not in self._running:
            return False
        errand, then = self._running.pop(pid)
        succeeded = errand.wait() == 0
        if errand.stdout is not None:
            os.set_blocking(errand.stdout.fileno(), False)  # a child of its own may hold the other end
            with contextlib.suppress(BlockingIOError), errand.stdout:
                printed = os.read(errand.stdout.fileno(), 1 << 14)
                if succeeded and then is not None:
                    then(printed)
        return True

    def close(self) -> None:
        """Wait a little for those that still run, and leave the rest to themselves."""
        until = time.monotonic() + PATIENCE_S
        for errand, _ in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                errand.wait(timeout=max(0.0, until - time.monotonic()))
            if errand.stdout is not None:
                errand.stdout.close()
