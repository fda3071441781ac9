"""``clusterduck prune``: remove old sweeps."""

from __future__ import annotations

import argparse
import sys

from clusterduck import prune
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import opened
from clusterduck.cli.output import Output, narrate
from clusterduck.errors import ConfigError
from clusterduck.prune import PrunePlan, Wish
from clusterduck.wording import visible

_DAY_S = 86400.0

#: So many sweeps are named one by one.
_NAMED = 20


def execute(options: argparse.Namespace) -> ExitCode:
    """Remove the sweeps that ``options`` ask for, or say which these are."""
    with opened(options, to_act=True) as view:
        wish = Wish(
            sweeps=list(dict.fromkeys(view.sweep(token) for token in options.sweeps)) or None,
            older_than_s=None if options.older_than is None else options.older_than * _DAY_S,
            keep=options.keep,
            delete_folders=options.delete_folders,
            delete_runs=options.delete_runs,
        )
        plan = prune.plan(view.connection, wish, view.jobs)
        output = Output()
        if not options.json:
            _show(output, plan)
        if options.dry_run or not plan.sweeps:
            if options.json:
                output.json(_rows(plan, []))
            return ExitCode.FAILED if options.sweeps and plan.kept else ExitCode.OK
        if not _confirmed(plan, options.yes):
            narrate("nothing was done")
            return ExitCode.FAILED
        report = prune.carry_out(view.replica, plan, narrate)
        if options.json:
            output.json(_rows(plan, report.sweeps))
        else:
            deleted = f"; {len(report.deleted)} folders were deleted" if report.deleted else ""
            output.line(f"{len(report.sweeps)} sweeps were removed from the ledger{deleted}")
        for sentence in report.trouble:
            narrate(sentence)
    return ExitCode.FAILED if report.trouble or (options.sweeps and plan.kept) else ExitCode.OK


def _show(output: Output, plan: PrunePlan) -> None:
    for sweep in plan.sweeps[:_NAMED]:
        output.line(f"{sweep.id}: {sweep.runs} runs, {sweep.folder}")
    if len(plan.sweeps) > _NAMED:
        output.line(f"and {len(plan.sweeps) - _NAMED} more")
    for sweep_id, why in plan.kept.items():
        output.line(f"{sweep_id} is left alone: {why}")
    output.line(f"{plan.describe()}.")


def _rows(plan: PrunePlan, removed: list[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"sweep": sweep.id, "root": sweep.root, "runs": sweep.runs, "removed": sweep.id in removed, "kept": None}
        for sweep in plan.sweeps
    ]
    return rows + [{"sweep": sweep, "removed": False, "kept": why} for sweep, why in plan.kept.items()]


def _confirmed(plan: PrunePlan, yes: bool) -> bool:
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"{plan.describe()}: say --yes if it is meant. Nothing was done.")
    sys.stdout.flush()
    sys.stderr.write(f"{visible(plan.describe())}. Go on? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
