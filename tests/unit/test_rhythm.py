"""How often agents are heard of, against how long silence is no sign of death."""

from __future__ import annotations

import pytest

from clusterduck import job_words, reconcile, requeue_plan
from clusterduck.agent.rhythm import BEAT_S, BEAT_YOUNG_S, READINGS_S, YOUNG_S, Rhythm
from clusterduck.launch import owner


@pytest.mark.parametrize("judge", [job_words.SILENT_S, reconcile.SILENCE_S, requeue_plan.SILENT_S, owner.SILENCE_S])
def test_an_agent_misses_a_heartbeat_before_it_is_taken_for_dead(judge: float) -> None:
    assert judge >= 2 * BEAT_S


def test_a_day_of_heartbeats() -> None:
    rhythm = Rhythm(1000.0)
    beats, readings = [], []
    now = 1000.0 + rhythm.pause_s(1000.0)
    while now < 1000.0 + 86_400:
        beats.append(now)
        if rhythm.has_readings(now):
            readings.append(now)
        now += rhythm.pause_s(now) + 0.02  # the wait loop is busy now and then
    young = [at for at in beats if at < 1000.0 + YOUNG_S]
    assert [at for at in readings if at < 1000.0 + YOUNG_S] == young
    assert len(young) == pytest.approx(YOUNG_S / BEAT_YOUNG_S, abs=2)
    assert len(beats) - len(young) == pytest.approx((86_400 - YOUNG_S) / BEAT_S, rel=0.01)
    assert len(readings) - len(young) == pytest.approx((86_400 - YOUNG_S) / READINGS_S, rel=0.01)
