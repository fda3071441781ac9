"""The options of the commands that do something to sweeps, and how they ask before they do much."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

from clusterduck.errors import ConfigError

#: Up to so many runs are sent again or cancelled without asking.
HANDFUL = 5

_RUNS = "a run <sweep>/<number>, or runs <sweep>/<first>-<last>; <sweep> may be shortened as everywhere, or be @last"

#: Makes a command's parser: its name, what it does, examples, and how its description begins.
Command = Callable[[str, str, list[str], str], argparse.ArgumentParser]


def add_acts(command: Command, sweep: str) -> None:
    """Add the commands. ``sweep`` says how a sweep may be named."""
    _add_requeue(command, sweep)
    _add_cancel(command, sweep)
    drain = command(
        "drain",
        "a job finish what runs and claim nothing more; one that waits leaves Slurm's queue, and its runs stay",
        ["clusterduck drain 4711", "clusterduck drain 4711_2"],
        "Have",
    )
    drain.add_argument("job", metavar="JOBID", help="a job's id as `clusterduck status` shows it")
    wait = command(
        "wait",
        "until all runs of a sweep have ended; ends with exit code 0 only if every one completed",
        ["clusterduck wait @last", "clusterduck wait train-ab2de --timeout 3600 --fail-fast"],
        "Wait",
    )
    wait.add_argument("sweep", metavar="SWEEP", help=sweep)
    wait.add_argument("--timeout", type=seconds, metavar="S", help="give up after so many seconds")
    wait.add_argument("--fail-fast", action="store_true", help="end as soon as a run has failed for good")


def _add_requeue(command: Command, sweep: str) -> None:
    requeue = command(
        "requeue",
        "runs again, in live jobs that have room, the rest in new jobs like the first ones",
        [
            "clusterduck requeue --failed",
            "clusterduck requeue @last/3 @last/7-12 --override lr=1e-4",
            "clusterduck requeue --state TIMEOUT --set timeout_min=120 --dry-run",
        ],
        "Send",
    )
    requeue.add_argument("runs", nargs="*", metavar="RUN", help=_RUNS)
    requeue.add_argument(
        "--failed", action="store_true", help="runs that ended neither well nor because they were cancelled"
    )
    requeue.add_argument(
        "--state",
        action="append",
        default=[],
        metavar="STATE",
        help="runs in this state, e.g. CANCELLED; may be given several times; with --failed, only such of the failed",
    )
    requeue.add_argument(
        "--unfinished",
        action="store_true",
        help="failed runs, those whose job was cancelled under them with scancel, and those that wait though no live "
        "job will take them",
    )
    requeue.add_argument("--sweep", metavar="SWEEP", help=f"of this sweep: {sweep} (default: @last)")
    requeue.add_argument("--all-sweeps", action="store_true", help="of every sweep of the ledger")
    requeue.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="OPTION=VALUE",
        help="change an option of the launcher for the new jobs, e.g. timeout_min=120; then no running job gets any",
    )
    requeue.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE", help="add an override to those of each run"
    )
    requeue.add_argument(
        "--as-submitted",
        action="store_true",
        help="run the function as it was when the sweep was launched, instead of the code as it is today",
    )
    requeue.add_argument(
        "--fresh", action="store_true", help="move each run's folder aside (<folder>.attempt-<n>) before it begins"
    )
    requeue.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    _add_yes(requeue)


def _add_cancel(command: Command, sweep: str) -> None:
    cancel = command(
        "cancel",
        "runs: those that wait never start, those that run are asked to end and then killed",
        ["clusterduck cancel @last/3", "clusterduck cancel train-ab2de", "clusterduck cancel --job 4711"],
        "Cancel",
    )
    cancel.add_argument("targets", nargs="*", metavar="RUN|SWEEP", help=f"{_RUNS}; or all of a sweep: {sweep}")
    cancel.add_argument("--job", action="append", default=[], metavar="JOBID", help="everything a job would execute")
    cancel.add_argument(
        "--grace", type=seconds, metavar="S", help="seconds from asking a run to end to killing it (default: 10)"
    )
    _add_yes(cancel)


def _add_yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help=f"do not ask, however many runs; it asks beyond {HANDFUL}")


def seconds(text: str) -> float:
    """A number of seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def confirmed(what: str, count: int, yes: bool) -> bool:
    """Whether to go on: much is only done if somebody says so.

    Raises:
        ConfigError: if nobody can be asked.
    """
    if yes or count <= HANDFUL:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"{what}. That is more than {HANDFUL} runs: say --yes if it is meant. Nothing was done.")
    from clusterduck.wording import visible

    sys.stderr.write(f"{visible(what)}. Go on? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
