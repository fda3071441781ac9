"""``clusterduck tui``: the dashboard, the same as ``clusterduck-tui``."""

from __future__ import annotations

import argparse

from clusterduck.cli.exit_codes import ExitCode
from clusterduck_tui import app


def execute(options: argparse.Namespace) -> ExitCode:
    """Run the dashboard until it is quit."""
    return ExitCode.OK if app.run(options) == 0 else ExitCode.FAILED
