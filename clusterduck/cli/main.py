"""The command ``clusterduck``: its options and help, and where every error becomes a sentence and an exit code.

Each command's own module is imported only when that command was given, so that ``--help`` costs nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

import clusterduck
from clusterduck.cli.acting import add_acts
from clusterduck.cli.exit_codes import ExitCode, epilog
from clusterduck.cli.keeping import add_keeping, count
from clusterduck.errors import ClusterduckError, ConfigError, NotFoundError
from clusterduck_tui import options as dashboard_options

_SWEEP = "a sweep's id, any unique beginning of it or of its last five characters, or @last for the newest"
_RUN = "a run: <sweep>/<number>, e.g. @last/7, where <sweep> may be shortened as everywhere"


class _Parser(argparse.ArgumentParser):
    """Errors as one sentence; a long usage text helps nobody."""

    def error(self, message: str) -> NoReturn:
        from clusterduck.wording import visible

        sys.stderr.write(f"{self.prog}: {visible(message)} (see {self.prog} --help)\n")
        raise SystemExit(ExitCode.USAGE)


def parser() -> argparse.ArgumentParser:
    """The whole command line, so that help, tests and documentation see the same."""
    top = _Parser(
        prog="clusterduck",
        description="Show and steer sweeps launched with hydra/launcher=clusterduck_local or clusterduck_slurm.",
        epilog=f"example:\n  clusterduck status @last\n\n{epilog()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"clusterduck {clusterduck.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    status = _command(
        commands,
        "status",
        "sweeps with their runs counted by state, and their jobs as Slurm sees them",
        ["clusterduck status", "clusterduck status @last --json"],
    )
    status.add_argument("sweep", nargs="?", metavar="SWEEP", help=f"{_SWEEP}; all sweeps if left out")

    nodes = _command(
        commands,
        "nodes",
        "each node's slots: the run in it, for how long, its CPUs and GPUs and their load",
        ["clusterduck nodes", "clusterduck nodes train-ab2de"],
    )
    nodes.add_argument("sweep", nargs="?", metavar="SWEEP", help=f"{_SWEEP}; all sweeps if left out")

    runs = _command(
        commands,
        "runs",
        "runs with the overrides that vary, how they stand, what they returned and why they failed",
        ["clusterduck runs --sweep @last --failed", "clusterduck runs --sweep @last --sort return_value --limit 10"],
    )
    runs.add_argument("--sweep", metavar="SWEEP", help=f"{_SWEEP}; all sweeps if left out")
    runs.add_argument(
        "--state",
        action="append",
        default=[],
        metavar="STATE",
        help="only runs in this state, e.g. RUNNING; may be given several times; with --failed, both must hold",
    )
    runs.add_argument("--failed", action="store_true", help="only runs that ended neither well nor by somebody's wish")
    runs.add_argument(
        "--sort",
        metavar="COLUMN",
        default="run",
        help="run, state, attempt, return_value, started, ended, duration, host, reason, or an override's key "
        "(default: run); runs without a value come last",
    )
    runs.add_argument("--reverse", action="store_true", help="the other way round")
    runs.add_argument("--limit", type=count, metavar="N", help="at most this many runs")

    show = _command(
        commands,
        "show",
        "everything about one run: all its attempts, the traceback, and where its files lie",
        ["clusterduck show @last/7"],
    )
    show.add_argument("run", metavar="RUN", help=_RUN)

    logs = _command(
        commands,
        "logs",
        "what a run printed",
        ["clusterduck logs @last/7 -f", "clusterduck logs @last/7 --attempt 1 --lines 50"],
    )
    logs.add_argument("run", metavar="RUN", help=_RUN)
    logs.add_argument("-f", "--follow", action="store_true", help="go on printing until the attempt has ended")
    logs.add_argument("--attempt", type=_attempt, metavar="N", help="which attempt, from 1 (default: the latest)")
    logs.add_argument("--lines", type=count, metavar="N", help="begin with the last N lines (default: all)")

    timeline = _command(
        commands,
        "timeline",
        "a sweep's slots over time as a picture in a file",
        ["clusterduck timeline @last -o sweep.html", "clusterduck timeline @last -o sweep.svg"],
        verb="Draw",
        has_json=False,
    )
    timeline.add_argument("sweep", metavar="SWEEP", help=_SWEEP)
    timeline.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="where to: a name that ends in .svg or .html"
    )

    tui = _command(
        commands,
        "tui",
        "the dashboard: sweeps, nodes and runs, live, in this terminal",
        ["clusterduck tui", "clusterduck tui @last --read-only"],
        verb="Open",
        has_json=False,
    )
    dashboard_options.add_to(tui)

    add_acts(lambda name, what, examples, verb: _command(commands, name, what, examples, verb), _SWEEP)
    add_keeping(partial(_command, commands), _SWEEP)
    return top


def _command(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    what: str,
    examples: list[str],
    verb: str = "Show",
    *,
    has_json: bool = True,
) -> argparse.ArgumentParser:
    title = "example" if len(examples) == 1 else "examples"
    command = commands.add_parser(
        name,
        help=what if verb == "Show" else f"{verb.lower()} {what}",
        description=f"{verb} {what}.",
        epilog=f"{title}:\n" + "\n".join(f"  {example}" for example in examples) + f"\n\n{epilog()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument(
        "--ledger",
        metavar="FILE",
        help="the ledger (default: CLUSTERDUCK_LEDGER, else .clusterduck/ledger.db here or in a folder above)",
    )
    if has_json:
        command.add_argument("--json", action="store_true", help="print one JSON array for programs to read")
    return command


def _attempt(text: str) -> int:
    number = count(text)
    if number < 1:
        raise argparse.ArgumentTypeError("attempts are counted from 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started us
        return _complain("standard output is closed; to have nothing printed, use >/dev/null", ExitCode.FAILED)
    try:
        try:
            options = parser().parse_args(arguments)
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure"):
                    stream.reconfigure(errors="backslashreplace")
            code = int(importlib.import_module(f"clusterduck.cli.{options.command}").execute(options))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _give_up_stdout()
        return ExitCode.BROKEN_PIPE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except ClusterduckError as error:
        return _complain(str(error), _code_of(error))
    except OSError as error:
        _give_up_stdout()
        where = f"{error.filename}: " if error.filename is not None else ""
        return _complain(f"{where}{error.strerror or error}", ExitCode.FAILED)
    except UnicodeEncodeError as error:
        if sys.getfilesystemencoding() == "utf-8":
            raise
        code = _complain(
            f"this terminal's settings have Python take file names for {error.encoding}, and the name of one has "
            f"{error.object[error.start : error.end]!a}; set PYTHONUTF8=1",
            ExitCode.FAILED,
        )
    return code


def _give_up_stdout() -> None:
    """Nobody takes what is left to be written; Python would complain of that once more at its own end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _code_of(error: ClusterduckError) -> ExitCode:
    if isinstance(error, NotFoundError):
        return ExitCode.NOT_FOUND
    return ExitCode.USAGE if isinstance(error, ConfigError) else ExitCode.FAILED


def _complain(sentence: str, code: ExitCode) -> ExitCode:
    from clusterduck.cli.output import narrate

    if sys.stderr is not None:
        narrate(sentence)
    return code


if __name__ == "__main__":
    sys.exit(main())
