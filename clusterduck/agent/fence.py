"""Notices that an agent's job was started again elsewhere, and when it is time to look for that: after a process stood
still, or could not look at the shared file system, for so long that others may have taken it for dead.

A host that is frozen, suspended or cut off is declared down by Slurm, and its job is started again elsewhere. When it
goes on, the agent there knows nothing of that, so what it believes is believed again only after a look.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

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


class Fence:
    """Whether a later restart of the job has taken over, as far as the agents' folders on the shared file system say.

    Args:
        folder: the agent's own, beside those of all the job's agents.

    Attributes:
        superseded: what the last look said.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._looked = Pulse()
        self.superseded = False

    def look(self) -> None:
        """See whether a later restart of the job has an agent.

        Raises:
            OSError: if the folders cannot be listed.
        """
        restart = int(self._folder.name.partition(".")[0])
        others = [name.partition(".")[0] for name in os.listdir(self._folder.parent)]
        self.superseded = any(other.isdecimal() and int(other) > restart for other in others)
        self._looked.mark()

    def lapsed(self) -> bool:
        """Whether the last look was too long ago."""
        return self._looked.lapsed()


def _clocks() -> tuple[float, float]:
    return time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
