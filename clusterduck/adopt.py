"""Find out what became of jobs of which nobody knows whether they were submitted: their launcher was killed before it
could write that down, or sbatch did not say.

A job that was submitted is put on record: submitit's folder tells its id, or Slurm's queue by the script's path. One of
which there is no trace after a while, though Slurm answers, was never submitted, and that is put on record too; if it
turns up even later, it is taken over all the same.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from clusterduck import standing
from clusterduck.errors import ClusterduckError, SlurmError
from clusterduck.events import BatchClosed, BatchSubmitted, Event
from clusterduck.journal import JournalWriter
from clusterduck.launch.again import launched
from clusterduck.launch.options import Options
from clusterduck.ledger import queries, times
from clusterduck.ledger.queries import Batch
from clusterduck.model import State
from clusterduck.paths import SweepPaths
from clusterduck.slurm.sbatch import jobs_of_scripts

if TYPE_CHECKING:
    from clusterduck.ledger.replica import Replica

#: For how long a job may turn up after its launcher's end (sbatch may have outlived it), or after sbatch left it open
#: whether it was taken (the controller may be that slow), in seconds.
LATE_S = 60.0

#: For how long after that a job of which sbatch left that open is looked for, in seconds.
VERY_LATE_S = 600.0


def adopt(replica: Replica) -> None:
    """Look into every sweep that has such jobs.

    Raises:
        OSError: if what was found could not be written; it will be found again.
    """
    doubts = _doubts(replica.connection)
    open_batches: dict[tuple[str, int], list[Batch]] = defaultdict(list)
    for batch in [*queries.batches(replica.connection, alive=True), *_given_up(replica.connection, doubts)]:
        if batch.job_id is None and not standing.is_being_submitted(replica.connection, batch):
            open_batches[batch.sweep, batch.launch or 0].append(batch)
    news = False
    for (sweep, launch), batches in open_batches.items():
        with suppress(ClusterduckError):  # the folder is gone, or what the launch needs: nothing to be found there
            paths = standing.paths_of(replica.connection, sweep)
            options = launched(replica.connection, paths, launch).options
            found = _look(replica.connection, paths, options, batches, doubts)
            if found:
                writer = JournalWriter(paths.acts, sweep, "adopt", name=f"adopt-{uuid.uuid4().hex[:12]}")
                writer.append(found)
                writer.close()
                news = True
    if news:
        replica.catch_up(look_at=[sweep for sweep, _ in open_batches])


def _doubts(connection: sqlite3.Connection) -> dict[tuple[str, str], float]:
    """Since when nobody knows whether batches' jobs were taken, of those about which somebody has said so lately."""
    rows = connection.execute(
        "SELECT act.sweep, act.batch, max(act.at) FROM act JOIN batch ON batch.sweep = act.sweep "
        "AND batch.id = act.batch AND batch.job_id IS NULL WHERE act.kind = 'batch_doubted' "
        "GROUP BY act.sweep, act.batch"
    ).fetchall()
    return {(str(sweep), str(batch)): times.to_seconds(at) for sweep, batch, at in rows}


def _given_up(connection: sqlite3.Connection, doubts: Mapping[tuple[str, str], float]) -> list[Batch]:
    """Batches that were closed because Slurm did not show their jobs, not long ago."""
    recent = {key for key, at in doubts.items() if time.time() - at < VERY_LATE_S}
    return [
        batch
        for sweep in sorted({sweep for sweep, _ in recent})
        for batch in queries.batches(connection, sweep)
        if (sweep, batch.id) in recent and State(batch.state).is_terminal
    ]


def _look(
    connection: sqlite3.Connection,
    paths: SweepPaths,
    options: Options,
    batches: list[Batch],
    doubts: Mapping[tuple[str, str], float],
) -> list[Event]:
    """What can be said of batches of one launch that have no job on record."""
    from clusterduck.launch.submit import find_submitted, finish_submission, script_folder

    root = str(paths.root)
    submitted = find_submitted(options.submitit_folder, root)
    is_known = True
    if options.cluster == "slurm" and any(batch.id not in submitted for batch in batches):
        try:
            jobs = jobs_of_scripts(script_folder(options.submitit_folder))
        except SlurmError:
            is_known = False
        else:
            submitted |= finish_submission(options.submitit_folder, root, jobs)
    found: list[Event] = []
    for batch in batches:
        doubted_at = doubts.get((batch.sweep, batch.id))
        since = doubted_at or (times.to_seconds(batch.planned_at) if batch.planned_at else 0.0)
        if batch.id in submitted:
            at, job = submitted[batch.id]
            found.append(
                BatchSubmitted(
                    time=at,
                    batch=batch.id,
                    cluster=options.cluster,
                    job_id=job.job_id,
                    host=_launch_host(connection, batch),
                    log_dir=paths.kept(job.folder),
                )
            )
        elif is_known and time.time() - since > LATE_S and not State(batch.state).is_terminal:
            reason = "whoever launched it was killed before the job was submitted"
            if doubted_at is not None:
                reason = f"sbatch left open whether it took the job, and Slurm has not shown it for {LATE_S:.0f} s"
            found.append(BatchClosed(batch=batch.id, state=State.FAILED.value, reason=reason, unsubmitted=True))
    return found


def _launch_host(connection: sqlite3.Connection, batch: Batch) -> str:
    row = connection.execute(
        "SELECT host FROM launch WHERE sweep = ? AND number = ?", (batch.sweep, batch.launch)
    ).fetchone()
    return str(row[0]) if row and row[0] else ""
