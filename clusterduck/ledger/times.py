"""Times as the ledger writes them: UTC, ISO-8601, to the millisecond, ending in Z; as text they sort as they should."""

from __future__ import annotations

import calendar
import time
from functools import lru_cache

#: How a time ends, for each number of milliseconds.
_ENDS = [f".{milliseconds:03d}Z" for milliseconds in range(1000)]


def to_text(seconds: float) -> str:
    """Seconds since the epoch as text, e.g. ``2025-11-24T13:45:06.789Z``."""
    second, milliseconds = divmod(round(seconds * 1000), 1000)
    return _whole(second) + _ENDS[milliseconds]


def to_seconds(text: str) -> float:
    """The inverse of :func:`to_text`, to the millisecond."""
    return _milliseconds(text) / 1000


def between(start: str, end: str) -> float:
    """Seconds from ``start`` to ``end``, both as :func:`to_text` writes them."""
    return (_milliseconds(end) - _milliseconds(start)) / 1000


def _milliseconds(text: str) -> int:
    return _epoch(text[:19]) * 1000 + int(text[20:23])


@lru_cache(maxsize=4096)
def _whole(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@lru_cache(maxsize=4096)
def _epoch(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
