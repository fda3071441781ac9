"""How long runs took before, in earlier attempts or earlier sweeps of the project, so that the longest begin first."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from clusterduck.errors import ClusterduckError
from clusterduck.launch.register import say_what_takes_long

log = logging.getLogger(__name__)

#: The newest sweeps of the same application that are looked at, and how long folding what they reported may take, in
#: seconds: a launch does not wait for more.
SWEEPS = 20
FOLD_BUDGET_S = 1.0


def durations(ledger: Path, job_name: str, runs: Sequence[list[str]]) -> dict[int, float]:
    """The seconds that the latest completed run with the same overrides took, by position in ``runs``; without those
    of which nothing is known.

    Args:
        ledger: the project's.
        job_name: Hydra's name for the application, which an earlier sweep must have had too.
        runs: the overrides of each run.
    """
    from clusterduck.ledger.replica import Replica

    try:
        with Replica.open(ledger, tell=say_what_takes_long) as replica:
            replica.catch_up(budget_s=FOLD_BUDGET_S)
            return _look_up(replica.connection, job_name, runs)
    except (ClusterduckError, OSError, sqlite3.Error) as error:  # the order changes nothing but the time it takes
        log.debug("It could not be looked up how long runs took before: %s", error)
        return {}


def attempts(connection: sqlite3.Connection, sweep: str) -> dict[int, float]:
    """The seconds that the longest of a run's earlier attempts took, however it ended, by the run's number."""
    return dict(
        connection.execute(
            "SELECT run, max(duration_s) FROM attempt WHERE sweep = ? AND duration_s IS NOT NULL GROUP BY run", (sweep,)
        ).fetchall()
    )


def _look_up(connection: sqlite3.Connection, job_name: str, runs: Sequence[list[str]]) -> dict[int, float]:
    sweeps = connection.execute(
        "SELECT id FROM sweep WHERE job_name = ? ORDER BY created_at DESC, id LIMIT ?", (job_name, SWEEPS)
    ).fetchall()
    wanted: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        wanted.setdefault(json.dumps(run), []).append(index)
    found: dict[int, float] = {}
    for (sweep,) in sweeps:
        rows = connection.execute(
            "SELECT overrides, duration_s FROM run WHERE sweep = ? AND state = 'COMPLETED' AND duration_s IS NOT NULL",
            (sweep,),
        ).fetchall()
        for overrides, took in rows:
            for index in wanted.get(overrides, ()):
                found.setdefault(index, took)
        if len(found) == len(runs):
            break
    return found
