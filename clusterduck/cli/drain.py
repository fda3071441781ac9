"""``clusterduck drain``: have a job finish what runs and claim nothing more."""

from __future__ import annotations

import argparse

from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import opened
from clusterduck.cli.output import Output
from clusterduck.drain import drain


def execute(options: argparse.Namespace) -> ExitCode:
    """Ask the agents of the job that ``options`` name."""
    with opened(options, to_act=True) as view:
        said = drain(view.replica, options.job)
        output = Output()
        if options.json:
            output.json([{"job_id": options.job, "asked": said}])
        else:
            output.line(said)
    return ExitCode.OK
