"""``clusterduck cancel``: stop runs that are no longer wanted."""

from __future__ import annotations

import argparse

from clusterduck import cancel
from clusterduck.cancel import Wanted
from clusterduck.cli.acting import confirmed
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import View, opened
from clusterduck.cli.output import Output, narrate
from clusterduck.errors import ConfigError


def execute(options: argparse.Namespace) -> ExitCode:
    """Cancel what ``options`` name, and say what became of it."""
    if not (options.targets or options.job):
        raise ConfigError("Say what to cancel: a run (@last/7), a sweep, or --job JOBID.")
    grace = cancel.GRACE_S if options.grace is None else options.grace
    with opened(options, to_act=True) as view:
        wanted = Wanted(_targets(view, options.targets), tuple(dict.fromkeys(options.job)))
        plan = cancel.plan(view.connection, wanted, view.jobs)
        if plan.count and not confirmed(plan.describe(), plan.count, options.yes):
            narrate("nothing was done")
            return ExitCode.FAILED
        report = cancel.carry_out(view.replica, plan, grace, narrate)
        output = Output()
        if options.json:
            output.json(
                {"run": f"{run.sweep}/{run.run}", "attempt": run.attempt, "state": run.state, "reason": run.reason}
                for run in report.runs
            )
        else:
            output.line(report.describe() if report.runs or report.jobs else plan.describe())
        for sentence in report.trouble:
            narrate(sentence)
        if report.unanswered:
            names = ", ".join(f"{run.sweep}/{run.run}" for run in report.unanswered[:5])
            narrate(
                f"no word yet of {names}: the node may be down or its file system slow; look at `clusterduck status`"
            )
            return ExitCode.FAILED
    return ExitCode.OK


def _targets(view: View, texts: list[str]) -> dict[str, set[int] | None]:
    """What was named: runs by sweep, None for a whole sweep."""
    found: dict[str, set[int] | None] = dict(view.runs([text for text in texts if "/" in text]))
    return found | {view.sweep(text): None for text in texts if "/" not in text}
