"""``clusterduck export``: a sweep's runs as a file for pandas, a spreadsheet, or any other program."""

from __future__ import annotations

import argparse
from pathlib import Path

from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import opened
from clusterduck.cli.output import narrate
from clusterduck.export import export, format_of


def execute(options: argparse.Namespace) -> ExitCode:
    """Write the runs of the sweep that ``options`` name."""
    path = Path(options.output)
    format_of(path)
    with opened(options) as view:
        sweep = view.sweep(options.sweep)
        count = export(view.connection, sweep, path)
        narrate(f"{count} runs of {sweep} are in {path}")
    return ExitCode.OK
