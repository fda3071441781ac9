"""A sweep of long runs in compressed time: what its agents would have written is written by the real journal, at the
pace of the real rhythm, folded into a real replica and published."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from crowd import on_host
from journals_builder import SweepBuilder, kept_counts

from clusterduck import events
from clusterduck.agent.rhythm import Rhythm
from clusterduck.journal import JournalWriter
from clusterduck.ledger.publish import publish
from clusterduck.ledger.replica import Replica
from clusterduck.model import AgentId

#: Readings as large as they get: many CPUs, tens of gigabytes.
READING: tuple[float, int, float, int] = (3793.5, 123_456_789_012, 97.5, 45_097_156_608)


@dataclass(frozen=True)
class Size:
    """What a sweep left on the shared file system, in bytes."""

    journals: int
    ledger: int


def long_sweep(base: Path, *, agents: int, runs_each: int, slots: int = 4, hours: float = 1.0) -> Size:
    """Let so many agents execute ``runs_each`` runs each that take so many hours."""
    sweep = SweepBuilder(base / "project")
    sweep.write(sweep.launch_journal(), sweep.launch(agents * runs_each, agents, slots=slots))
    for index in range(agents):
        _agent(sweep, index, range(index * runs_each, (index + 1) * runs_each), slots, hours * 3600)
    on_host(base / "host")
    with Replica.open(sweep.ledger) as replica:
        assert replica.catch_up().problems == ()
        counts = kept_counts(replica.connection, sweep.sweep)
        assert counts == {"COMPLETED": agents * runs_each}
        assert publish(replica, sweep.ledger)
    journals = sum(path.stat().st_size for path in sweep.paths.journals())
    return Size(journals, sweep.ledger.stat().st_size)


def _agent(sweep: SweepBuilder, index: int, runs: range, slots: int, run_s: float) -> None:
    agent = AgentId(f"0-{index}", 0, 0)
    os.makedirs(sweep.paths.agent(agent))
    journal = JournalWriter(sweep.paths.agent(agent), sweep.sweep, f"agent {agent}")
    at = sweep.start + 100.123457
    journal.append([sweep.agent_started(at, f"node{index}", slots)])
    rhythm = Rhythm(at)
    beat_at = at + rhythm.pause_s(at)
    waiting = list(reversed(runs))
    while waiting:
        busy = [waiting.pop() for _ in range(min(slots, len(waiting)))]
        for slot, run in enumerate(busy):
            journal.append([sweep.started(at, run, slot=slot), sweep.located(at + 0.5, run)])
        end = at + run_s
        while beat_at < end:
            readings = [[slot, *READING] for slot in (*range(len(busy)), -1)] if rhythm.has_readings(beat_at) else []
            shown = round(beat_at, 1)
            journal.append([events.Heartbeat(time=shown, busy=len(busy), samples=[list(one) for one in readings])])
            beat_at += rhythm.pause_s(beat_at)
        journal.append(sweep.ended(end, run, started_at=at + 0.1) for run in busy)
        journal.flush(sync=False)
        at = end + 0.01
    journal.append([events.AgentEnded(time=at, reason="every run is done", exit_code=0)])
    journal.close()
