"""A launch knows how long runs with the same overrides took before, and has the longest begin first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clusterduck import journal
from clusterduck.events import Event, RunsPlanned
from clusterduck.launch import earlier
from clusterduck.ledger.replica import Replica
from clusterduck.paths import LedgerPaths, SweepPaths

TAKES = 'cp "$1" "$(dirname $0)/taken"; echo "Submitted batch job 4711"\n'


def past(ledger: Path, *sweeps: dict[str, float]) -> None:
    """Sweeps of the application ``train`` on record, oldest first, with how long each completed run took."""
    with Replica.open(ledger) as replica:
        for at, runs in enumerate(sweeps):
            replica.connection.execute(
                "INSERT INTO sweep (id, job_name, created_at) VALUES (?, 'train', ?)", (f"train-{at}", f"2026-01-0{at}")
            )
            for number, (override, took) in enumerate(runs.items()):
                state = "COMPLETED" if took > 0 else "FAILED"
                replica.connection.execute(
                    "INSERT INTO run (sweep, number, overrides, state, duration_s) VALUES (?, ?, ?, ?, ?)",
                    (f"train-{at}", number, json.dumps([override]), state, abs(took)),
                )


def test_the_latest_completed_run_with_the_same_overrides_tells(own_ledger: Path) -> None:
    LedgerPaths(own_ledger).create()
    past(own_ledger, {"lr=1": 7.0, "lr=2": 3.0, "lr=5": 8.0}, {"lr=1": 5.0, "lr=2": -1.0, "lr=4": 9.0})
    runs = [["lr=1"], ["lr=2"], ["lr=3"], ["lr=5"]]
    assert earlier.durations(own_ledger, "train", runs) == {0: 5.0, 1: 3.0, 3: 8.0}
    assert earlier.durations(own_ledger, "train", [["lr=1"], ["lr=4"], ["lr=1"]]) == {0: 5.0, 1: 9.0, 2: 5.0}, "twice"
    assert earlier.durations(own_ledger, "other", runs) == {}
    assert earlier.durations(own_ledger.parent / "none" / "ledger.db", "train", runs) == {}


def test_the_plan_says_what_is_known_and_agents_are_told_so(
    make_launcher: Any, fake_slurm: Any, own_ledger: Path, say: Any
) -> None:
    from clusterduck.launch.submit import find_submitted

    LedgerPaths(own_ledger).create()
    past(own_ledger, {"lr=1": 7.0, "lr=3": 30.0})
    fake_slurm(sbatch=TAKES)
    make_launcher("slurm").launch([["lr=1"], ["lr=2"], ["lr=3"]], 0)
    (root,) = LedgerPaths(own_ledger).sweep_roots().values()
    (path,) = SweepPaths(root).launch(0).glob("*.jsonl")
    events: list[Event] = journal.read_all(path)
    assert [event.expected_s for event in events if isinstance(event, RunsPlanned)] == [[7.0, None, 30.0]]
    assert "Of 2 of the runs it is known how long they took before: the longest begin first." in say()
    ((_, job),) = find_submitted(f"{root.parent.parent}/.submitit/%j", str(root)).values()
    (submitted,) = Path(job.folder).glob("*_submitted.pkl")
    assert b"ordered" in submitted.read_bytes()
