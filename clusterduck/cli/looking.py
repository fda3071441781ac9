"""What every command that looks does first and last: fold what is new, ask about jobs, record dead ones, publish."""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clusterduck import standing
from clusterduck.cli.output import narrate
from clusterduck.errors import ClusterduckError, ConfigError, LedgerError, NotFoundError
from clusterduck.ledger import condition, queries
from clusterduck.ledger.publish import publish
from clusterduck.ledger.replica import Replica
from clusterduck.paths import LedgerPaths, require_ledger
from clusterduck.reconcile import close_dead_batches, is_anything_open, look_at_jobs
from clusterduck.slurm.command import QUICK_S
from clusterduck.slurm.jobs import JobStatus

#: Seconds to wait for somebody else who is publishing the ledger right now: what they publish is as good as ours.
PUBLISH_WAIT_S = 1.0

#: Seconds of silent folding, before a word is said.
PATIENCE_S = 2.0


#: Up to so many sweeps whose folders are gone are told one by one.
TOLD_SINGLY = 3


@dataclass
class View:
    """The ledger as it is now, and what is known of the jobs of its live batches, by sweep and batch."""

    ledger: Path
    replica: Replica
    jobs: dict[tuple[str, str], JobStatus] = field(default_factory=dict)
    trouble: str | None = None  # one sentence, where Slurm could not be asked
    _said: set[str] = field(default_factory=set)

    @property
    def connection(self) -> sqlite3.Connection:
        """The replica, for queries; ask for it each time."""
        return self.replica.connection

    def catch_up(self, look_at: Collection[str] = ()) -> None:
        """Fold what was written since, of these sweeps in any case."""
        report = self.replica.catch_up(PATIENCE_S, look_at)
        if report.more:
            self._narrate_once("reading what the runs have reported; this takes a moment once on each host")
            report = self.replica.catch_up(look_at=look_at)
        for problem in report.problems:
            self._narrate_once(problem)

    def look_at_jobs(self, patience_s: float = QUICK_S) -> None:
        """Ask about the jobs of live batches, if there are any, and close those that are over; trouble is only said.

        Args:
            patience_s: how long Slurm may take, before what was last heard of it has to do.
        """
        if not is_anything_open(self.connection):
            self.jobs = {}
            return
        outlook = look_at_jobs(self.ledger, self.replica, patience_s)
        self.jobs = outlook.jobs
        self.trouble = outlook.trouble
        try:
            close_dead_batches(self.ledger, self.replica, outlook)
        except (OSError, ClusterduckError) as error:
            self._narrate_once(f"It could not be put on record that a job is over: {error}")

    def narrate_trouble(self) -> None:
        """Say that Slurm could not be asked, for commands that show how jobs stand."""
        if self.trouble is not None:
            self._narrate_once(f"{self.trouble} Jobs are shown as they were when they were last heard of.")

    def narrate_missing(self, sweeps: Collection[str]) -> None:
        """Say which of the sweeps' folders were moved or deleted, for commands that show what lies there."""
        missing = standing.missing(self.connection, sorted(sweeps))
        if len(missing) <= TOLD_SINGLY:
            for sentence in missing.values():
                self._narrate_once(sentence)
        else:
            self._narrate_once(
                f"The folders of {len(missing)} sweeps were moved or deleted: {', '.join(missing)}. "
                "`clusterduck rebuild FOLDER` finds those that were moved, `clusterduck prune` forgets the others."
            )

    def sweep(self, token: str) -> str:
        """The id of the sweep that ``token`` means, with all that is known of it folded.

        Raises:
            NotFoundError: if it means none, or several.
        """
        sweep = queries.resolve_sweep(self.connection, token)
        self.catch_up([sweep])
        return sweep

    def run(self, text: str) -> tuple[str, int]:
        """A run named ``<sweep>/<number>``: the sweep's id, and the number.

        Raises:
            ConfigError: if it is not of that form.
            NotFoundError: if there is no such sweep.
        """
        token, slash, number = text.rpartition("/")
        if not (slash and token and number.isascii() and number.isdigit() and len(number) < 10):
            raise ConfigError(f"{text!r} does not name a run: write <sweep>/<number>, e.g. @last/7.")
        return self.sweep(token), int(number)

    def runs(self, texts: Iterable[str]) -> dict[str, set[int]]:
        """Runs named ``<sweep>/<number>`` or ``<sweep>/<first>-<last>``: their numbers, by sweep.

        Raises:
            ConfigError: if one is not of that form.
            NotFoundError: if there is no such sweep.
        """
        found: dict[str, set[int]] = {}
        for text in texts:
            token, _, numbers = text.rpartition("/")
            first, dash, last = numbers.partition("-")
            bounds = (first, last if dash else first)
            if not token or not all(bound.isascii() and bound.isdigit() and len(bound) < 10 for bound in bounds):
                raise ConfigError(f"{text!r} does not name runs: write <sweep>/7 or <sweep>/7-12, e.g. @last/7.")
            sweep = self.sweep(token)
            wanted = range(int(bounds[0]), int(bounds[1]) + 1)
            total = queries.sweep(self.connection, sweep).runs
            if not wanted or wanted[-1] >= total:
                raise NotFoundError(f"Sweep {sweep} has no runs {numbers}; it has {total} (from 0).")
            found.setdefault(sweep, set()).update(wanted)
        return found

    def _narrate_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            narrate(sentence)


@contextmanager
def opened(options: argparse.Namespace, *, to_act: bool = False) -> Iterator[View]:
    """The ledger that ``options`` name, caught up; published afterwards if this host knows more than the published one.

    Raises:
        NotFoundError: if there is no ledger.
        LedgerError: if it cannot be used, or something is to be done and it is another user's.
    """
    ledger = require_ledger(Path.cwd(), options.ledger)
    if not LedgerPaths(ledger).sweeps.is_dir():
        raise NotFoundError(
            f"No sweeps are recorded beside {ledger}: {LedgerPaths(ledger).sweeps} is not there. "
            "(A copy of a ledger can be read with sqlite3; clusterduck looks where sweeps write.)"
        )
    if to_act and not LedgerPaths(ledger).is_own:
        raise LedgerError(f"The ledger {ledger} belongs to another user, who alone can act upon it: you can only look.")
    try:
        with Replica.open(ledger, tell=narrate) as replica:
            view = View(ledger, replica)
            before = condition.look(ledger)
            view.catch_up()
            view.look_at_jobs()
            yield view
            sys.stdout.flush()  # the reader has what was asked for before we go on
            if replica.mended is not None:
                narrate(f"{replica.mended}; it was made anew from the journals")
            try:
                if publish(replica, ledger, wait_s=PUBLISH_WAIT_S) and before in condition.MENDED:
                    narrate(f"the ledger {ledger} {before.value}: a new one, made from the journals, took its place")
            except (OSError, LedgerError) as error:
                narrate(str(error))
    except sqlite3.Error as error:
        raise LedgerError(f"The replica of {ledger} could not be read: {error}.") from error
