"""What time it is, for what goes on record: never backwards, and by no jump, whatever is done to the host's clock.

Somebody sets a node's clock by an hour while runs execute; their durations and the agent's signs of life must not
follow. So the host's clock is asked once, and from then on the time since is counted. Whoever only waits uses
``time.monotonic``.
"""

from __future__ import annotations

import time

_FIRST = time.time()
_SINCE = time.clock_gettime(time.CLOCK_BOOTTIME)


def now() -> float:
    """Seconds since the epoch, as the host's clock said when this process (or the one it was forked from) began, plus
    the time since, that of a suspended host included."""
    return _FIRST + (time.clock_gettime(time.CLOCK_BOOTTIME) - _SINCE)
