"""``clusterduck wait``: wait until all runs of a sweep have ended.

It keeps nothing in mind but what it shows, so it may be killed and started again at any time.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

from clusterduck import identity, lost, standing
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import View, opened
from clusterduck.cli.output import Output
from clusterduck.cli.progress import Progress
from clusterduck.launch.processes import is_running
from clusterduck.ledger import queries, times
from clusterduck.ledger.queries import Sweep
from clusterduck.model import State
from clusterduck.paths import SweepPaths
from clusterduck.slurm.command import QUICK_S, TIMEOUT_S
from clusterduck.wording import run_count

#: For how long runs must have waited for nobody before the sweep is taken to be stuck, in seconds: somebody may be
# about  to submit a job for what was lost.
STUCK_S = 15.0

#: Seconds between two looks, and between two that ask about jobs.
LOOK_EVERY_S = 0.5
ASK_EVERY_S = 3.0

#: How long an optimising sweeper may think about its next launch, in seconds.
THINKING_S = 120.0


@dataclass(frozen=True)
class _Outcome:
    """How the waiting ended: in a word for programs, a sentence for people, and as an exit code; and for how many
    seconds all looks must say so."""

    word: str
    sentence: str
    code: ExitCode
    sure_after_s: float = 0.0


def execute(options: argparse.Namespace) -> ExitCode:
    """Wait for the sweep that ``options`` name."""
    with opened(options) as view:
        sweep = view.sweep(options.sweep)
        outcome = _Wait(view, sweep, options.timeout, options.fail_fast).until_over()
        found = queries.sweep(view.connection, sweep)
        output = Output()
        if options.json:
            output.json([{"sweep": sweep, "outcome": outcome.word, "runs": found.runs, "counts": found.counts}])
        else:
            output.line(f"{sweep}: {outcome.sentence}")
        view.narrate_trouble()
    return outcome.code


class _Wait:
    """Waits for one sweep."""

    def __init__(self, view: View, sweep: str, timeout_s: float | None, fail_fast: bool) -> None:
        self._view = view
        self._sweep = sweep
        self._timeout_s = timeout_s
        self._fail_fast = fail_fast
        self._asked_at = float("-inf")
        self._again: set[str] | None = None  # the batches that are alive, or about to be started again, once it matters
        self._suspicion: str | None = None  # what the look before this one would have ended with,
        self._suspected_at = 0.0  # and since when all looks would have

    def until_over(self) -> _Outcome:
        began = time.monotonic()
        progress = Progress(self._sweep)
        try:
            while True:
                outcome = self._look(progress)
                if outcome is not None:
                    return outcome
                left = None if self._timeout_s is None else began + self._timeout_s - time.monotonic()
                if left is not None and left <= 0:
                    sentence = f"not all runs had ended after {self._timeout_s:g} s"
                    return _Outcome("timeout", sentence, ExitCode.TIMEOUT)
                time.sleep(LOOK_EVERY_S if left is None else min(LOOK_EVERY_S, left))
        finally:
            progress.close()

    def _look(self, progress: Progress) -> _Outcome | None:
        """See how the sweep stands; what ends the waiting, other than that all completed, must hold for two looks."""
        standing.paths_of(self._view.connection, self._sweep)
        self._view.catch_up([self._sweep])
        asks = time.monotonic() - self._asked_at >= ASK_EVERY_S
        if asks:
            self._asked_at = time.monotonic()
            self._view.look_at_jobs(TIMEOUT_S if self._timeout_s is None else QUICK_S)
        sweep = queries.sweep(self._view.connection, self._sweep)
        pending, running, completed = (
            sweep.counts[state.value] for state in (State.PENDING, State.RUNNING, State.COMPLETED)
        )
        done = sweep.runs - pending - running
        cancelled = sweep.counts[State.CANCELLED.value]
        progress.update(done, sweep.runs, running, done - completed - cancelled, cancelled)
        if sweep.runs and completed == sweep.runs and not self._may_launch_more():
            return _Outcome("completed", f"all {run_count(completed)} completed", ExitCode.OK)
        is_failing = self._fail_fast and done > completed
        if not (is_failing or done == sweep.runs):
            self._again = None
        elif asks or self._again is None:
            batches = queries.batches(self._view.connection, self._sweep)
            alive = {batch.id for batch in batches if batch.state in (State.PENDING.value, State.RUNNING.value)}
            self._again = alive | standing.started_again(batches)
        if not is_failing and (running or not (asks or self._suspicion)):
            return None
        outcome = self._why_over(sweep, done)
        suspicion, self._suspicion = self._suspicion, None if outcome is None else outcome.word
        if outcome is None:
            return None
        if suspicion != outcome.word:
            self._suspected_at = time.monotonic()
            return None
        return outcome if time.monotonic() - self._suspected_at >= outcome.sure_after_s else None

    def _why_over(self, sweep: Sweep, done: int) -> _Outcome | None:
        if self._fail_fast or done == sweep.runs:
            ends = lost.ends(self._view.connection, SweepPaths(Path(sweep.root)), self._again or ())
            if self._fail_fast and (ends.final or ends.doubtful):
                sentence = f"{run_count(len(ends.final or ends.doubtful))} did not complete"
                return _Outcome("failed", sentence, ExitCode.NOT_COMPLETED, 0.0 if ends.final else STUCK_S)
            if done == sweep.runs and not self._may_launch_more():
                return None if ends.restarting else self._all_over(sweep, STUCK_S if ends.doubtful else 0.0)
        if sweep.counts[State.RUNNING.value] or self._may_launch_more():
            return None
        now = standing.of_sweep(self._view.connection, self._sweep, self._view.jobs)
        if any(now.waiting.values()) or not now.waiting:
            return None
        count = len(now.waiting)
        waits, them = ("waits", "it") if count == 1 else ("wait", "them")
        remedy = f"`{standing.remedy(self._sweep)}` sends {them} again"
        sentence = f"{run_count(count)} {waits}, and no live job will take {them}: {remedy}"
        return _Outcome("stuck", sentence, ExitCode.STUCK, STUCK_S)

    def _all_over(self, sweep: Sweep, sure_after_s: float) -> _Outcome:
        cancelled = sweep.counts[State.CANCELLED.value]
        left = sweep.runs - sweep.counts[State.COMPLETED.value]
        parts = [f"{left - cancelled} failed"] if left > cancelled else []
        parts += [f"{cancelled} cancelled"] if cancelled else []
        sentence = f"{left} of {run_count(sweep.runs)} did not complete ({', '.join(parts)})"
        return _Outcome("failed", sentence, ExitCode.NOT_COMPLETED, sure_after_s)

    def _may_launch_more(self) -> bool:
        """Whether the process that launched last runs here and waits for its runs, as an optimising sweeper does, which
        needs some time for its next launch."""
        host, pid, started_at, settings, ended_at = self._view.connection.execute(
            "SELECT host, pid, started_at, settings, (SELECT max(ended_at) FROM run WHERE sweep = ?1) FROM launch "
            "WHERE sweep = ?1 AND started_at IS NOT NULL ORDER BY number DESC LIMIT 1",
            (self._sweep,),
        ).fetchone() or (None, 0, None, None, None)
        if host != identity.host() or not started_at or not json.loads(settings or "{}").get("wait_for_completion"):
            return False
        if ended_at and time.time() - times.to_seconds(ended_at) > THINKING_S:
            return False
        return is_running(int(pid), times.to_seconds(started_at))
