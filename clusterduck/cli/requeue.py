"""``clusterduck requeue``: send runs again."""

from __future__ import annotations

import argparse
from typing import Any

from clusterduck import requeue
from clusterduck.cli.acting import confirmed
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import View, opened
from clusterduck.cli.output import Output, narrate
from clusterduck.cli.runs import states_of
from clusterduck.errors import ConfigError
from clusterduck.ledger import queries
from clusterduck.requeue import RequeuePlan, RequeueReport, Sent, Wish

#: So many runs that were left out are told one by one.
_TOLD = 10


def execute(options: argparse.Namespace) -> ExitCode:
    """Send the runs that ``options`` ask for again, or say what that would mean."""
    changes = requeue.parse_changes(options.changes)
    requeue.check_overrides(options.override)
    states = states_of(options)
    if not (options.runs or states or options.unfinished):
        raise ConfigError(
            "Say which runs: by name (@last/7), or with --failed, --unfinished, or --state STATE. "
            "`clusterduck runs` lists them."
        )
    if options.runs and (options.sweep is not None or options.all_sweeps):
        raise ConfigError("Runs are named together with their sweeps: leave out --sweep and --all-sweeps.")
    with opened(options, to_act=True) as view:
        runs = view.runs(options.runs) if options.runs else None
        wish = Wish(
            states=tuple(states),
            unfinished=options.unfinished,
            runs=runs,
            changes=changes,
            overrides=tuple(options.override),
            as_submitted=options.as_submitted,
            fresh=options.fresh,
        )
        plan = requeue.plan(view.connection, _sweeps(view, options, runs), wish, view.jobs)
        for remark in plan.remarks:
            narrate(remark)
        if options.dry_run:
            return _show_plan(plan, options.json)
        if plan.count and not confirmed(plan.describe(), plan.count, options.yes):
            narrate("nothing was done")
            return ExitCode.FAILED
        report = requeue.carry_out(view.connection, view.ledger, plan, narrate)
        view.catch_up([part.standing.sweep for part in plan.sweeps])
        return _show_report(report, options.json)


def _sweeps(view: View, options: argparse.Namespace, runs: dict[str, set[int]] | None) -> list[str]:
    if runs is not None:
        return list(runs)
    if options.all_sweeps:
        return [view.sweep(sweep.id) for sweep in queries.sweeps(view.connection)]
    return [view.sweep(options.sweep or queries.LAST)]


def _show_plan(plan: RequeuePlan, as_json: bool) -> ExitCode:
    output = Output()
    if as_json:
        rows: list[dict[str, Any]] = [
            {"run": f"{one.run.sweep}/{one.run.number}", "state": one.run.state, "attempt": one.attempt.number}
            for part in plan.sweeps
            for one in part.chosen
        ]
        output.json(rows + _left_out(plan.skipped))
        narrate(plan.describe())
    else:
        output.line(plan.describe())
        _tell_left_out(output, plan.skipped)
    return ExitCode.OK


def _show_report(report: RequeueReport, as_json: bool) -> ExitCode:
    output = Output()
    if as_json:
        output.json([_row(sent) for sent in report.sent] + _left_out(report.skipped))
    else:
        output.line(report.describe())
        _tell_left_out(output, report.skipped)
    for sentence in report.trouble:
        narrate(sentence)
    return ExitCode.FAILED if report.trouble else ExitCode.OK


def _row(sent: Sent) -> dict[str, Any]:
    return {
        "run": f"{sent.sweep}/{sent.run}",
        "attempt": sent.attempt,
        "agent": None if sent.agent is None else str(sent.agent),
        "host": sent.host,
        "batch": sent.batch,
        "job_id": sent.job_id,
    }


def _left_out(skipped: tuple[requeue.Skipped, ...]) -> list[dict[str, Any]]:
    return [{"run": f"{one.sweep}/{one.run}", "skipped": one.why} for one in skipped]


def _tell_left_out(output: Output, skipped: tuple[requeue.Skipped, ...]) -> None:
    for one in skipped[:_TOLD]:
        output.line(f"{one.sweep}/{one.run} is left alone: {one.why}")
    if len(skipped) > _TOLD:
        output.line(f"and {len(skipped) - _TOLD} more are left alone")
