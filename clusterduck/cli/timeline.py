"""``clusterduck timeline``: a sweep's slots over time as a picture that any browser opens."""

from __future__ import annotations

import argparse
from pathlib import Path

from clusterduck import timeline
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import opened
from clusterduck.cli.output import narrate
from clusterduck.errors import ConfigError


def execute(options: argparse.Namespace) -> ExitCode:
    """Write the picture of the sweep that ``options`` name."""
    path = Path(options.output)
    if path.suffix.lower() not in (".svg", ".html", ".htm"):
        raise ConfigError(f"{options.output!r} says not what is wanted: name a file that ends in .svg or .html.")
    with opened(options) as view:
        sweep = view.sweep(options.sweep)
        slots = timeline.export(view.connection, sweep, path)
        one = slots == 1
        narrate(f"{slots} slot{'' if one else 's'} of {sweep} {'is' if one else 'are'} in {path}")
    return ExitCode.OK
