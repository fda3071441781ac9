"""The options of the commands that keep ledgers in order: rebuild, export, prune, doctor."""

from __future__ import annotations

import argparse
import math
from typing import Protocol


class Command(Protocol):
    """Makes a command's parser: its name, what it does, examples, and how its description begins."""

    def __call__(
        self, name: str, what: str, examples: list[str], verb: str = ..., *, has_json: bool = ...
    ) -> argparse.ArgumentParser:
        """Make it."""


def add_keeping(command: Command, sweep: str) -> None:
    """Add the commands. ``sweep`` says how a sweep may be named."""
    rebuild = command(
        "rebuild",
        "everything anew from the sweeps' folders, and publish the ledger; running sweeps go on",
        ["clusterduck rebuild", "clusterduck rebuild multirun /scratch/me/sweeps"],
        "Fold",
    )
    rebuild.add_argument(
        "folders",
        nargs="*",
        metavar="FOLDER",
        help="a sweep's folder, or one that holds some below it: sweeps that the ledger does not know are entered",
    )
    export = command(
        "export",
        "a sweep's runs into a file, with their overrides and return values, a row for each run",
        ["clusterduck export @last -o sweep.csv", "clusterduck export @last -o sweep.jsonl"],
        "Write",
        has_json=False,
    )
    export.add_argument("sweep", metavar="SWEEP", help=sweep)
    export.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="where to: a name that ends in .csv or .jsonl"
    )
    _add_prune(command, sweep)
    doctor = command(
        "doctor",
        "whether a folder suits sweeps, and what to set",
        ["clusterduck doctor", "clusterduck doctor /scratch/me --slurm"],
        "Find out",
    )
    doctor.add_argument("folder", nargs="?", metavar="FOLDER", default=".", help="where sweeps would go (default: .)")
    doctor.add_argument(
        "--slurm",
        action="store_true",
        help="also try the file system between two nodes, by a job of at most two minutes; SLURM_PARTITION and "
        "SLURM_ACCOUNT say where",
    )


def _add_prune(command: Command, sweep: str) -> None:
    prune = command(
        "prune",
        "old sweeps from the ledger; what they wrote stays, unless told otherwise",
        ["clusterduck prune --older-than 90 --dry-run", "clusterduck prune train-ab2de --delete-folders --yes"],
        "Remove",
    )
    prune.add_argument("sweeps", nargs="*", metavar="SWEEP", help=f"{sweep}; all sweeps if left out")
    prune.add_argument(
        "--older-than", type=_days, metavar="DAYS", help="only sweeps of which nothing was heard for so many days"
    )
    prune.add_argument("--keep", type=count, metavar="N", help="never the N newest sweeps of the ledger")
    prune.add_argument(
        "--delete-folders", action="store_true", help="also delete what clusterduck wrote about them, results included"
    )
    prune.add_argument("--delete-runs", action="store_true", help="also delete their runs' folders, outputs and all")
    prune.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    prune.add_argument("--yes", action="store_true", help="do not ask")


def _days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days")
    return value


def count(text: str) -> int:
    """A whole number of things, for argparse; raises its ``ArgumentTypeError`` for anything else."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    if len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 999999999")
    return int(text)
