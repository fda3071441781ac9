"""What a process of ours asks of the kernel about its parents and children, see prctl(2)."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Have what our children leave behind become ours, so that none escapes."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(yes: bool) -> None:
    """Whether this process is killed when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if yes else 0)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
