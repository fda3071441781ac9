"""Whether a process of this host still is the one that was noted down: its id alone may have gone to another."""

from __future__ import annotations

#: What the time at which a process began may be off, since it is computed from the machine's clock, in seconds.
CLOCK_SLACK_S = 2.0


def began(pid: int) -> float | None:
    """When a process began (seconds since the epoch); None if it is gone, or a zombie."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except (psutil.Error, ValueError):
        return None


def is_running(pid: int, known_at: float) -> bool:
    """Whether the process that had this id at ``known_at`` (seconds since the epoch) still runs."""
    at = began(pid)
    return at is not None and at <= known_at + CLOCK_SLACK_S
