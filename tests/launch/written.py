"""What stands in a sweep's journals, and commands of Slurm's that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clusterduck import journal
from clusterduck.events import (
    Event,
)
from clusterduck.paths import LedgerPaths, SweepPaths

TAKES = 'cp "$1" "$(dirname $0)/taken"; echo "Submitted batch job 4711"\n'

REFUSES = "echo 'sbatch: error: no' >&2; exit 1\n"

RUNS = 'echo "4711|RUNNING|$(date +%s)|N/A|1:00|1|None"\n'


def written(paths: SweepPaths, launch: int = 0) -> list[Event]:
    (path,) = paths.launch(launch).glob("*.jsonl")
    return journal.read(path, limit=1 << 24).events


def only_sweep(ledger: Path) -> SweepPaths:
    (root,) = LedgerPaths(ledger).sweep_roots().values()
    return SweepPaths(root)


def of_type(kind: type[Any], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]
