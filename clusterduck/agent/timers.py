"""What the wait loop has to do later."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable


class Timers:
    """Actions with the moment each is due, on the monotonic clock (which does not jump when the node's clock is
    set)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def add(self, delay_s: float, action: Callable[[], None]) -> None:
        """Have ``action`` called ``delay_s`` seconds from now."""
        heapq.heappush(self._heap, (time.monotonic() + delay_s, next(self._count), action))

    def wait_s(self) -> float | None:
        """Seconds until the next one is due; None if there is none."""
        return max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else None

    def run_due(self) -> None:
        """Call all that are due, earliest first."""
        while self._heap and self._heap[0][0] <= time.monotonic():
            heapq.heappop(self._heap)[2]()
