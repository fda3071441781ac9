"""What becomes of a run that was lost with its node or agent: pure rules, the same for whoever puts it back.

What takes an agent down takes with it all that runs beside it, and nobody can tell which of several runs it was. So
what was lost twice in a row is set apart: it is executed last, and beside fewer others the more often it was lost, at
last alone; and only what was lost then is left FAILED. So no run fails because of another beside it, one that takes its
agent down does so a few times and no more, and all others go on.
"""

from __future__ import annotations

#: How often in a row a run has to be lost to be set apart.
MANY_LOSSES = 2


def is_set_apart(losses: int) -> bool:
    """Whether a run that was lost so often in a row is executed last, beside fewer others."""
    return losses >= MANY_LOSSES


def most_together(losses: int, slots: int) -> int:
    """How many of an agent's slots may be busy while one has a run that was lost so often in a row: all of them, then a
    quarter, a sixteenth, and so on; at least one."""
    return max(1, slots >> 2 * max(0, losses - MANY_LOSSES + 1))


def why_failed(losses: int, slots: int) -> str | None:
    """Why a run that was lost so often in a row is not tried again; None if it is.

    Args:
        losses: how often, this time included.
        slots: how many slots the agent had with which it was lost this time.
    """
    if losses < MANY_LOSSES or most_together(losses - 1, slots) > 1:
        return None
    return f"its node or agent was lost {losses} times while it ran, at last while it ran alone; it may be the cause"


def why_again(reason: str, losses: int) -> str:
    """Why a run is tried again, and what is special about it then."""
    if not is_set_apart(losses):
        return reason
    return f"{reason}; lost {losses} times in a row, it waits for the others and runs beside few or none"
