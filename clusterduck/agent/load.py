"""Measures how busy the slots are in a thread of its own, since a sick GPU driver can hang whoever asks it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from clusterduck.agent.samples import NODE, Row, Sampler


class LoadWatch:
    """Samples now and then; the wait loop takes what there is.

    Args:
        sampler: measures.
        groups: which process group runs in which slot right now.
        interval_s: from one sample to the next, in seconds.
    """

    def __init__(self, sampler: Sampler, groups: Callable[[], Mapping[int, int]], interval_s: float) -> None:
        self._sampler = sampler
        self._groups = groups
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._latest: tuple[Mapping[int, int], list[Row]] = ({}, [])
        self._thread = threading.Thread(target=self._watch, name="load", daemon=True)
        self._thread.start()

    def take(self) -> list[Row]:
        """The newest sample, once, without the slots where another run has begun since; nothing if there is none."""
        (sampled, rows), self._latest = self._latest, ({}, [])
        now = self._groups()
        return [row for row in rows if row[0] == NODE or sampled.get(int(row[0] or 0)) == now.get(int(row[0] or 0))]

    def close(self) -> None:
        """Stop; a thread that hangs in a driver is left behind."""
        self._stop.set()
        self._thread.join(1.0)
        if not self._thread.is_alive():
            self._sampler.close()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            groups = self._groups()
            self._latest = (groups, self._sampler.sample(groups))
