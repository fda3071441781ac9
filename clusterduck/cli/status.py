"""``clusterduck status``: sweeps with their runs counted by state, and their jobs as Slurm sees them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from clusterduck import job_words, standing
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import View, opened
from clusterduck.cli.output import Output, narrate
from clusterduck.cli.table import Column
from clusterduck.ledger import queries
from clusterduck.ledger.queries import Batch, Sweep
from clusterduck.model import State
from clusterduck.slurm.jobs import JobStatus
from clusterduck.wording import duration, iso, local_time

_LIVE = (State.PENDING.value, State.RUNNING.value)


def execute(options: argparse.Namespace) -> ExitCode:
    """Print how all sweeps, or the one that ``options`` name, stand."""
    with opened(options) as view:
        if options.sweep is None:
            sweeps = queries.sweeps(view.connection)
            batches = queries.batches(view.connection, alive=not options.json)
        else:
            sweep = view.sweep(options.sweep)
            sweeps = [queries.sweep(view.connection, sweep)]
            batches = queries.batches(view.connection, sweep)
        view.narrate_trouble()
        view.narrate_missing([sweep.id for sweep in sweeps])
        output = Output()
        if options.json:
            output.json(_row(sweep, batches, view) for sweep in sweeps)
        elif not sweeps:
            narrate("no sweep was launched here yet")
        else:
            _print_sweeps(output, sweeps)
            if options.sweep is not None:
                _print_origin(output, sweeps[0])
            if batches:
                output.line()
                _print_batches(output, batches, view)
            _print_neglected(output, sweeps, view)
    return ExitCode.OK


def _row(sweep: Sweep, batches: Sequence[Batch], view: View) -> dict[str, Any]:
    """A sweep with its batches, for programs."""
    return {
        "sweep": sweep.id,
        "folder": sweep.folder,
        "job_name": sweep.job_name,
        "user": sweep.user,
        "host": sweep.host,
        "cwd": sweep.cwd,
        "command": sweep.command,
        "launcher": sweep.launcher,
        "created_at": sweep.created_at,
        "launches": sweep.launches,
        "git_commit": sweep.git_commit,
        "git_dirty": sweep.git_dirty,
        "runs": sweep.runs,
        "counts": sweep.counts,
        "batches": [_batch_row(batch, view) for batch in batches if batch.sweep == sweep.id],
    }


def _batch_row(batch: Batch, view: View) -> dict[str, Any]:
    """A batch for programs: ``state`` is the ledger's, ``job_state`` what Slurm (or this host) says of its job now, or
    said at ``job_state_as_of`` if it cannot be asked now."""
    job = view.jobs.get((batch.sweep, batch.id)) if batch.state in _LIVE else None
    return {
        "batch": batch.id,
        "launch": batch.launch,
        "state": batch.state,
        "reason": batch.reason,
        "cluster": batch.cluster,
        "job_id": batch.job_id,
        "job_state": None if job is None else job.state,
        "job_reason": (job.reason or None) if job is not None else None,
        "job_state_as_of": None if job is None else iso(job.as_of),
        "start_estimate": None if job is None else iso(job.start_estimate),
        "time_left_s": _time_left(batch, job),
        "host": batch.host,
        "agent_pid": batch.agent_pid,
        "restart": batch.restart,
        "nodes": batch.nodes,
        "slots_per_node": batch.slots_per_node,
        "share_runs": batch.share_runs,
        "first_run": batch.first_run,
        "stop_run": batch.stop_run,
        "planned_at": batch.planned_at,
        "submitted_at": batch.submitted_at,
        "started_at": batch.started_at,
        "ended_at": batch.ended_at,
        "heartbeat_at": batch.heartbeat_at,
        "submit_host": batch.submit_host,
        "log_folder": batch.log_folder,
    }


def _time_left(batch: Batch, job: JobStatus | None) -> float | None:
    return job_words.time_left(batch, job) if batch.state in _LIVE else None


def _print_sweeps(output: Output, sweeps: Sequence[Sweep]) -> None:
    columns = [Column("sweep"), Column("started"), Column("runs", right=True)]
    columns += [Column(state.value.lower(), right=True) for state in State]
    rows = []
    for sweep in sweeps:
        counts = [str(sweep.counts[state.value] or "") for state in State]
        rows.append([sweep.id, local_time(sweep.created_at), str(sweep.runs), *counts])
    output.table(columns, rows)


def _print_neglected(output: Output, sweeps: Sequence[Sweep], view: View) -> None:
    """How many runs wait in vain, and what to do about it."""
    found = standing.neglected(view.connection, [sweep.id for sweep in sweeps], view.jobs)
    for sweep, its in found.items():
        waits, them = ("1 run waits", "it") if its.count == 1 else (f"{its.count} runs wait", "them")
        output.line()
        output.line(f"{sweep}: {waits}, and no job will take {them}: `{standing.remedy(sweep)}` sends {them}")


def _print_origin(output: Output, sweep: Sweep) -> None:
    output.line()
    output.line(f"command  {' '.join(sweep.command)}")
    output.line(f"folder   {sweep.folder}")
    output.line(f"from     {sweep.cwd} on {sweep.host}")
    if sweep.git_commit:
        output.line(f"commit   {sweep.git_commit}{' with uncommitted changes' if sweep.git_dirty else ''}")


def _print_batches(output: Output, batches: Sequence[Batch], view: View) -> None:
    columns = [
        Column("sweep"),
        Column("batch"),
        Column("job"),
        Column("state", state=True),
        Column("left", right=True),
        Column("starts"),
        Column("nodes", right=True),
        Column("host"),
        Column("runs"),
        Column("reason"),
    ]
    rows = []
    for batch in batches:
        job = view.jobs.get((batch.sweep, batch.id)) if batch.state in _LIVE else None
        state, reason = job_words.standing(batch, job)
        first, stop = batch.first_run or 0, batch.stop_run or 0
        rows.append(
            [
                batch.sweep,
                batch.id,
                batch.job_id or "",
                state,
                duration(_time_left(batch, job)) if state != State.PENDING.value else "",
                local_time(iso(job.start_estimate)) if job is not None else "",
                str(batch.nodes or ""),
                batch.host or "",
                f"{first}-{stop - 1}" if stop > first + 1 else str(first) if stop > first else "",
                reason,
            ]
        )
    output.table(columns, rows)
