"""Notices that a process stood still, or could not look at the shared file system, for so long that others may have
taken it for dead.

A host that is frozen, suspended or cut off is declared down by Slurm, and its job is started again elsewhere. When it
goes on, the agent there knows nothing of that, so what it believes is believed again only after a look.
"""

from __future__ import annotations

import time

#: Longer than so many seconds without a sign of life, and others may have gone on without us: half as long again as
#: an agent leaves between two looks at its inbox, and a fraction of what Slurm waits for a host that is silent.
LAPSE_S = 4.5


class Pulse:
    """When something was last done that is done all the time.

    Asked of the clock that counts while a host is suspended, and of the host's own time, which is what is put right
    first in a machine that was frozen from outside; a clock that is merely set costs one look more.
    """

    def __init__(self) -> None:
        self._last = _clocks()

    def mark(self) -> None:
        """It is done now."""
        self._last = _clocks()

    def lapsed(self) -> bool:
        """Whether it was last done too long ago."""
        return any(now - last > LAPSE_S for now, last in zip(_clocks(), self._last, strict=True))


def _clocks() -> tuple[float, float]:
    return time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
