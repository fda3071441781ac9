"""How often an agent shows that it is alive, and what its slots are loaded with: often while people look at what they
have just launched, more rarely later, so that the journals of a long sweep stay small."""

from __future__ import annotations

#: For how long an agent is young, in seconds.
YOUNG_S = 600.0

#: From one heartbeat to the next, in seconds: of a young agent, and later. Whoever takes silence for death waits for
#: two of them at least: NFS may keep one in the node's memory for half a minute.
BEAT_YOUNG_S, BEAT_S = 10.0, 45.0

#: From one heartbeat with readings of the load to the next, in seconds: of a young agent, and later.
READINGS_YOUNG_S, READINGS_S = 10.0, 180.0


class Rhythm:
    """When the next heartbeat is due, and whether it carries readings.

    Args:
        now: when the agent began, on any clock that goes on evenly, in seconds.
    """

    def __init__(self, now: float) -> None:
        self._began = now
        self._readings_at = now

    def pause_s(self, now: float) -> float:
        """Seconds from now to the next heartbeat."""
        return BEAT_YOUNG_S if self._is_young(now) else BEAT_S

    def has_readings(self, now: float) -> bool:
        """Whether the heartbeat of this moment carries readings; asked once for each."""
        if now < self._readings_at:
            return False
        # a bit early is no harm, and a beat that is a bit late must not have the readings skip one
        self._readings_at = now + 0.9 * (READINGS_YOUNG_S if self._is_young(now) else READINGS_S)
        return True

    def _is_young(self, now: float) -> bool:
        return now - self._began < YOUNG_S
