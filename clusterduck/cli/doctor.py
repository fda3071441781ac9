"""``clusterduck doctor``: whether a folder suits sweeps, and what to set."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.output import Output
from clusterduck.doctor.examine import examine
from clusterduck.doctor.finding import Finding, Level


def execute(options: argparse.Namespace) -> ExitCode:
    """Print what is found, line by line as it is."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end)
    output = Output()
    found = []
    for finding in examine(Path(options.folder).expanduser(), with_slurm=options.slurm, ledger=options.ledger):
        found.append(finding)
        if not options.json:
            output.line(f"{finding.level.value:<5} {finding.tested}: {finding.found}")
            if finding.advice:
                output.line(f"      {finding.advice}")
            sys.stdout.flush()
    if options.json:
        output.json(_row(finding) for finding in found)
    return ExitCode.FAILED if any(finding.level is Level.BAD for finding in found) else ExitCode.OK


def _row(finding: Finding) -> dict[str, str | None]:
    return {
        "check": finding.check,
        "tested": finding.tested,
        "found": finding.found,
        "level": finding.level.value,
        "advice": finding.advice or None,
    }


def _end(number: int, _: object) -> NoReturn:
    """End as if interrupted, so that everything is cleared away."""
    sys.exit(128 + number)
