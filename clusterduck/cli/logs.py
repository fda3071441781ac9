"""``clusterduck logs``: what a run printed, so far or as it comes."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from clusterduck import standing
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import View, opened
from clusterduck.cli.output import Output, narrate
from clusterduck.cli.tail import LogTail
from clusterduck.errors import ConfigError, NotFoundError
from clusterduck.ledger import queries
from clusterduck.model import State
from clusterduck.wording import visible_lines

#: Seconds between two looks at the log, and between two looks at how the attempt stands.
LOG_INTERVAL_S = 0.5
STATE_INTERVAL_S = 1.0

#: Seconds between two questions about the attempt's job, in case its agent died without a word.
JOBS_INTERVAL_S = 10.0


def execute(options: argparse.Namespace) -> ExitCode:
    """Print the log of the attempt that ``options`` name."""
    if options.follow and options.json:
        raise ConfigError("A log cannot be followed as JSON: leave out -f or --json.")
    with opened(options) as view:
        sweep, number = view.run(options.run)
        attempt = _Attempt(view, sweep, number, options.attempt)
        tail = LogTail(attempt.log, options.lines)
        if options.follow:
            _follow(view, attempt, tail)
        elif options.json:
            text = b"".join(tail.read()).decode("utf-8", errors="replace")
            _require_log(view, attempt, tail)
            row = {"run": attempt.name, "attempt": attempt.number, "state": attempt.state, "log": str(tail.path)}
            Output().json([{**row, "text": text}])
        else:
            _Screen().show(tail.read())
            _require_log(view, attempt, tail)
    return ExitCode.OK


class _Attempt:
    """The attempt whose log is wanted, as the ledger knows it by now."""

    def __init__(self, view: View, sweep: str, run: int, number: int | None) -> None:
        self.name = f"{sweep}/{run}"
        self.sweep, self._run, self._wanted = sweep, run, number
        self.number = number or 0
        self.state = State.PENDING.value
        self.log: Path | None = None
        self.look(view)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be printed."""
        return State(self.state).is_terminal

    def look(self, view: View) -> None:
        """See how it stands now. The latest attempt stays the one that it was when it was first seen."""
        run = queries.run(view.connection, self.sweep, self._run)
        number = self.number or run.attempt
        attempts = {attempt.number: attempt for attempt in queries.attempts(view.connection, self.sweep, self._run)}
        attempt = attempts.get(number)
        if attempt is not None:
            self.number, self.state = number, attempt.state
            self.log = Path(attempt.log) if attempt.log else None
        elif self._wanted is not None:
            raise NotFoundError(f"Run {self.name} has no attempt {self._wanted}; it has {len(attempts)}.")
        else:
            self.state = run.state


def _require_log(view: View, attempt: _Attempt, tail: LogTail) -> None:
    if not tail.found:
        for sentence in standing.missing(view.connection, [attempt.sweep]).values():
            raise NotFoundError(sentence)
        if attempt.log is None:
            raise NotFoundError(f"Run {attempt.name} is {attempt.state} and has printed nothing yet.")
        raise NotFoundError(f"The log of run {attempt.name} is not there: {attempt.log}")


def _follow(view: View, attempt: _Attempt, tail: LogTail) -> None:
    screen = _Screen()
    asked_at = looked_at = time.monotonic()
    if attempt.log is None and not attempt.is_over:
        narrate(f"run {attempt.name} is {attempt.state}; waiting for its log")
    while True:
        was_over = attempt.is_over
        screen.show(tail.read())
        if was_over:
            break  # what was read last was all there is
        time.sleep(LOG_INTERVAL_S)
        now = time.monotonic()
        if now - asked_at >= JOBS_INTERVAL_S:
            view.look_at_jobs()
            asked_at = now
        if now - looked_at >= STATE_INTERVAL_S:
            view.catch_up([attempt.sweep])
            attempt.look(view)
            looked_at = now
        if attempt.log is not None and attempt.log != tail.path:
            screen.show(tail.read())
            tail.moved_to(attempt.log)
    _require_log(view, attempt, tail)
    narrate(f"run {attempt.name} (attempt {attempt.number}) is {attempt.state}")


class _Screen:
    """Stdout for a log's bytes: as they are for a program, without commands to the terminal for a person."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace") if sys.stdout.isatty() else None

    def show(self, pieces: Iterable[bytes]) -> None:
        """Print what is new."""
        for piece in pieces:
            if self._decoder is None:
                sys.stdout.flush()
                view = memoryview(piece)
                while view:
                    view = view[os.write(sys.stdout.fileno(), view) :]
            else:
                sys.stdout.write(visible_lines(self._decoder.decode(piece)))
        sys.stdout.flush()
