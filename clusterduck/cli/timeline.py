"""``clusterduck timeline``: a sweep's slots over time as a picture that any browser opens."""

from __future__ import annotations

import argparse
from pathlib import Path

from clusterduck import timeline
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import opened
from clusterduck.cli.output import narrate
from clusterduck.errors import ConfigError
from clusterduck.ledger import history


def execute(options: argparse.Namespace) -> ExitCode:
    """Write the picture of the sweep that ``options`` name."""
    path = Path(options.output)
    if path.suffix.lower() not in (".svg", ".html", ".htm"):
        raise ConfigError(f"{options.output!r} says not what is wanted: name a file that ends in .svg or .html.")
    with opened(options) as view:
        sweep = view.sweep(options.sweep)
        lanes = history.lanes(view.connection, sweep)
        draw = timeline.svg if path.suffix.lower() == ".svg" else timeline.html
        timeline.write(path, draw(sweep, lanes))
        one = len(lanes) == 1
        narrate(f"{len(lanes)} slot{'' if one else 's'} of {sweep} {'is' if one else 'are'} in {path}")
    return ExitCode.OK
