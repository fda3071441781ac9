"""Find out what became of jobs whose launcher was killed before it could write down what it had submitted.

A job that was submitted is put on record: submitit's folder tells its id, or Slurm's queue by the script's path. One of
which there is no trace a while after its launcher's end was never submitted, and that is put on record too.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections import defaultdict
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
from clusterduck.slurm.jobs import jobs_of_script

if TYPE_CHECKING:
    from clusterduck.ledger.replica import Replica

#: For how long a job may turn up after its launcher's end (sbatch may have outlived it), in seconds since it was
#: planned.
LATE_S = 60.0


def adopt(replica: Replica) -> None:
    """Look into every sweep that has such jobs.

    Raises:
        OSError: if what was found could not be written; it will be found again.
    """
    open_batches: dict[tuple[str, int], list[Batch]] = defaultdict(list)
    for batch in queries.batches(replica.connection, alive=True):
        if batch.job_id is None and not standing.is_being_submitted(replica.connection, batch):
            open_batches[batch.sweep, batch.launch or 0].append(batch)
    news = False
    for (sweep, launch), batches in open_batches.items():
        with suppress(ClusterduckError):  # the folder is gone, or what the launch needs: nothing to be found there
            paths = standing.paths_of(replica.connection, sweep)
            options = launched(replica.connection, paths, launch).options
            found = _look(replica.connection, paths, options, batches)
            if found:
                writer = JournalWriter(paths.acts, sweep, "adopt", name=f"adopt-{uuid.uuid4().hex[:12]}")
                writer.append(found)
                writer.close()
                news = True
    if news:
        replica.catch_up(look_at=[sweep for sweep, _ in open_batches])


def _look(connection: sqlite3.Connection, paths: SweepPaths, options: Options, batches: list[Batch]) -> list[Event]:
    """What can be said of batches of one launch that have no job on record."""
    from clusterduck.launch.submit import find_submitted, finish_submission, script_folder

    root = str(paths.root)
    submitted = find_submitted(options.submitit_folder, root)
    is_known = True
    if options.cluster == "slurm" and any(batch.id not in submitted for batch in batches):
        try:
            jobs = jobs_of_script(script_folder(options.submitit_folder))
        except SlurmError:
            is_known = False
        else:
            recorded = {batch.job_id for batch in queries.batches(connection)}
            recorded |= {job.job_id for _, job in submitted.values()}
            unrecorded = {job: at for job, at in jobs.items() if job not in recorded}
            order = _in_order(connection, batches[0])
            submitted |= finish_submission(options.submitit_folder, root, order, unrecorded)
    found: list[Event] = []
    for batch in batches:
        planned_at = times.to_seconds(batch.planned_at) if batch.planned_at else 0.0
        if batch.id in submitted:
            at, job = submitted[batch.id]
            found.append(
                BatchSubmitted(
                    time=at,
                    batch=batch.id,
                    cluster=options.cluster,
                    job_id=job.job_id,
                    host=_launch_host(connection, batch),
                    log_dir=job.folder,
                )
            )
        elif is_known and time.time() - planned_at > LATE_S:
            reason = "whoever launched it was killed before the job was submitted"
            found.append(BatchClosed(batch=batch.id, state=State.FAILED.value, reason=reason))
    return found


def _in_order(connection: sqlite3.Connection, batch: Batch) -> list[str]:
    """The batches that were submitted together with this one, in their order: by the number at the end of their ids."""
    act = batch.id.rpartition("-")[0]
    together = [
        each.id
        for each in queries.batches(connection, batch.sweep)
        if each.launch == batch.launch and each.id.rpartition("-")[0] == act
    ]
    return sorted(together, key=lambda name: int(name.rpartition("-")[2]))


def _launch_host(connection: sqlite3.Connection, batch: Batch) -> str:
    row = connection.execute(
        "SELECT host FROM launch WHERE sweep = ? AND number = ?", (batch.sweep, batch.launch)
    ).fetchone()
    return str(row[0]) if row and row[0] else ""
