"""``clusterduck show``: everything about one run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from clusterduck.cli import runs
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import opened
from clusterduck.cli.output import Output
from clusterduck.ledger import queries
from clusterduck.ledger.queries import Act, AttemptInfo, Run
from clusterduck.model import State
from clusterduck.wording import attempt_facts, json_value, short, visible, visible_lines


def execute(options: argparse.Namespace) -> ExitCode:
    """Print the run that ``options`` name."""
    with opened(options) as view:
        sweep, number = view.run(options.run)
        (run,) = runs.with_reasons(view, [queries.run(view.connection, sweep, number)])
        view.narrate_missing([sweep])
        attempts = queries.attempts(view.connection, sweep, number)
        added = _added_overrides(queries.acts(view.connection, sweep), number)
        output = Output()
        if options.json:
            rows = [{**_row(attempt), "added_overrides": added.get(attempt.number, [])} for attempt in attempts]
            output.json([{**runs.row(run), "attempts": rows}])
        else:
            _print_run(output, run)
            for attempt in reversed(attempts):
                _print_attempt(output, attempt, added.get(attempt.number, []))
    return ExitCode.OK


def _added_overrides(acts: Sequence[Act], run: int) -> dict[int, list[str]]:
    """What requeues added to the run's overrides, by attempt: all that the earlier ones added holds for it, too."""
    added: dict[int, list[str]] = {}
    for act in acts:
        detail = json.loads(act.detail or "{}") if act.kind == "requeue" else {}
        for its, attempt in detail.get("attempts", ()):
            if its == run:
                added[attempt] = detail["overrides"]
    so_far: list[str] = []
    return {attempt: (so_far := [*so_far, *added[attempt]]) for attempt in sorted(added)}


def _row(attempt: AttemptInfo) -> dict[str, Any]:
    """An attempt for programs."""
    return {
        "attempt": attempt.number,
        "state": attempt.state,
        "reason": attempt.reason,
        "exit_code": attempt.exit_code,
        "signal": attempt.signal,
        "exception_type": attempt.exception_type,
        "exception_message": attempt.exception_message,
        "traceback": attempt.traceback,
        "return_value": json_value(attempt.return_value),
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "duration_s": attempt.duration_s,
        "host": attempt.host,
        "pid": attempt.pid,
        "batch": attempt.batch,
        "restart": attempt.restart,
        "node": attempt.node,
        "slot": attempt.slot,
        "cpus": attempt.cpus,
        "gpus": attempt.gpus,
        "peak_memory_bytes": attempt.peak_memory_bytes,
        "cpu_time_s": attempt.cpu_time_s,
        "folder": attempt.folder,
        "log": attempt.log,
        "result": attempt.result,
        "git_commit": attempt.git_commit,
        "git_dirty": attempt.git_dirty,
    }


def _print_run(output: Output, run: Run) -> None:
    output.line(f"run        {run.sweep}/{run.number}")
    output.lines([f"state      {output.state(run.state)}"])
    _field(output, "reason", run.reason)
    _field(output, "returned", short(json_value(run.return_value), places=None))
    for position, override in enumerate(run.overrides):
        output.line(f"{'' if position else 'overrides':<9}  {override}")
    waits = run.attempt == 0 and run.reason is None and not State(run.state).is_terminal
    _field(output, "waits for", f"batch {run.batch}" if waits and run.batch is not None else None)


def _print_attempt(output: Output, attempt: AttemptInfo, added: Sequence[str]) -> None:
    output.line()
    output.lines([f"attempt {attempt.number}  {output.state(attempt.state)}"])
    _field(output, "reason", attempt.reason)
    _field(output, "added", visible(" ".join(added)))
    for name, value in attempt_facts(attempt):
        _field(output, name, value)
    if attempt.traceback:
        output.lines(f"    {visible_lines(line)}" for line in attempt.traceback.split("\n") if line)
    elif attempt.exception_type:
        output.line(f"    {attempt.exception_type}: {attempt.exception_message or ''}")


def _field(output: Output, name: str, value: str | None) -> None:
    if value:
        output.line(f"{name:<9}  {value}")
