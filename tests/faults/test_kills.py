"""Processes of every kind killed at random instants, in the short form; the long one is ``kill_soak.py`` by hand."""

from __future__ import annotations

import random
from pathlib import Path

from kill_soak import KillSoak

RUNS, KILLS = 8, 6


def test_killed_at_random_instants_nothing_is_lost_and_all_agrees(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)  # not the one that the order of tests depends on
    print(f"seed {seed}")
    soak = KillSoak(tmp_path, RUNS, seed, pause_s=0.1, mean_s=0.4)
    reader = soak.run(KILLS, patience_s=600)
    assert soak.kills.total() == KILLS
    assert reader.reads > 10
