"""The options of ``clusterduck-tui`` and ``clusterduck tui``; light, because every command reads them."""

from __future__ import annotations

import argparse


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add all but ``--ledger``, which every command has."""
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="the sweep to begin with (default: the newest)")
    parser.add_argument("--read-only", action="store_true", help="look only: no action changes anything")
    parser.add_argument(
        "--refresh", type=_seconds, default=1.0, metavar="S", help="seconds between two looks (default: 1)"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 3600")
    return seconds
