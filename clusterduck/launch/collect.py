"""Waits for the runs of a launch by reading their journals, and gathers what they returned."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hydra.core.utils import JobReturn

from clusterduck.events import BatchClosed
from clusterduck.launch import answers
from clusterduck.launch.plan import Batch
from clusterduck.launch.processes import is_running
from clusterduck.launch.register import say_what_takes_long
from clusterduck.launch.watch import RunView, Watch
from clusterduck.model import State

log = logging.getLogger(__name__)

#: Seconds between two looks: as short as this, and never more than a fraction of the time on looking.
LOOK_EVERY_S = 0.1
LOOK_AT_MOST_EVERY_S = 5.0
_REST_FACTOR = 50

#: Seconds between two looks at the whole sweep: a run of ours may have been sent again, in a batch of another launch.
LOOK_AT_ALL_EVERY_S = 5.0

#: Seconds of silence after which a Slurm job may be dead, and between two questions about it. The first is asked at
#: once: so of an agent that is no longer young (see ``agent.rhythm``), with every heartbeat that is due.
SILENCE_S = 15.0
ASK_EVERY_S = 30.0

#: The same between two questions about a job of which nobody knows whether Slurm took it.
ASK_DOUBTFUL_EVERY_S = 5.0

#: The same between two questions about a local job whose process is gone.
ASK_LOCAL_EVERY_S = 3.0

#: After all agents have ended with runs left over: how long another start of the job may take to show, in seconds.
RESTART_PATIENCE_S = 10.0


class Progress(Protocol):
    """Something that shows how far a sweep is."""

    def update(self, done: int, total: int, running: int, failed: int) -> None:
        """Take the latest numbers."""

    def close(self) -> None:
        """Leave the last numbers standing."""


class Collector:
    """Waits for the runs of one launch.

    Args:
        watch: reads the sweep's journals, and has perhaps read those of earlier launches.
        sweep: the sweep's id.
        launch: the launch's number.
        first: number of its first run,
        overrides: and each run's overrides.
        batches: the jobs that were submitted for them.
        ledger: the ledger, which jobs found dead are reported to.
        progress: is told the numbers.
    """

    def __init__(
        self,
        *,
        watch: Watch,
        sweep: str,
        launch: int,
        first: int,
        overrides: Sequence[list[str]],
        batches: Sequence[Batch],
        ledger: Path,
        progress: Progress,
    ) -> None:
        self._watch = watch
        self._sweep = sweep
        self._launch = launch
        self._first = first
        self._overrides = overrides
        self._batches = batches
        self._ledger = ledger
        self._progress = progress
        self._asked_at = time.monotonic()
        self._asked_at_time = 0.0
        self._is_suspicious = False  # a job was found over, and another look is to confirm it
        self._all_at = time.monotonic()
        self._idle_since: float | None = None

    def wait(self) -> list[JobReturn]:
        """Wait until every run is over, or no job is left that could execute it.

        Raises:
            KeyboardInterrupt: as it comes; the jobs know nothing of it.
        """
        try:
            while not self._is_over():
                began = time.monotonic()
                self._look()
                self._tell()
                took = time.monotonic() - began
                if not self._is_over():
                    time.sleep(min(LOOK_AT_MOST_EVERY_S, max(LOOK_EVERY_S, _REST_FACTOR * took)))
        finally:
            self._progress.close()
        why = self._why_left_over()
        return [
            answers.of_run(self._sweep, number, overrides, self._watch.runs.get(number), why)
            for number, overrides in enumerate(self._overrides, self._first)
        ]

    def _why_left_over(self) -> str:
        """Why a run never began whose job is over: what its agents said last."""
        said = [
            agent.last_words
            for batch in self._batches
            if batch.id in self._watch.batches
            for agent in self._watch.batches[batch.id].agents.values()
            if agent.failed
        ]
        said += [closed.reason for closed in self._closings() if closed is not None]
        return (
            f"the job that was to execute it is over: {said[0]}" if said else "the job that was to execute it is over"
        )

    def _closings(self) -> list[BatchClosed | None]:
        """What was concluded of each batch, by whoever looked after it."""
        return [self._watch.batches[batch.id].closed for batch in self._batches if batch.id in self._watch.batches]

    def _look(self) -> None:
        now = time.monotonic()
        everything = now - self._all_at >= LOOK_AT_ALL_EVERY_S
        self._watch.look(None if everything else self._launch)
        if everything:
            self._all_at = now
        every = self._ask_every()
        if every is not None and now - self._asked_at >= every:
            self._asked_at, self._asked_at_time = now, time.time()
            self._is_suspicious = _close_dead_batches(self._ledger, self._sweep)

    def _ask_every(self) -> float | None:
        """How often to ask whether our jobs still live: not at all, unless one of them gives reason to."""
        every = None
        for batch in self._batches:
            view = self._watch.batches.get(batch.id)
            if view is not None and view.doubted is not None and view.submitted is None and not view.is_over:
                every = min(every or ASK_DOUBTFUL_EVERY_S, ASK_DOUBTFUL_EVERY_S)
            if view is None or view.is_over or view.submitted is None:
                continue
            submitted = view.submitted
            if submitted.cluster == "local":
                if not (submitted.job_id.isdigit() and is_running(int(submitted.job_id), submitted.time)):
                    return ASK_LOCAL_EVERY_S
            elif self._is_suspicious:
                from clusterduck import reconcile

                return reconcile.CONFIRM_S
            else:
                heard_at = max(view.heard_at, submitted.time)
                if time.time() - heard_at > SILENCE_S:
                    every = 0.0 if heard_at > self._asked_at_time else ASK_EVERY_S if every is None else every
        return every

    def _tell(self) -> None:
        views = [self._watch.runs.get(number) for number in self._numbers()]
        done = sum(view is not None and view.is_over for view in views)
        started = sum(view is not None and view.agent is not None and not view.is_over for view in views)
        failed = sum(
            view is not None and view.is_over and (view.ended is None or view.ended.state != State.COMPLETED.value)
            for view in views
        )
        self._progress.update(done, len(views), started, failed)

    def _numbers(self) -> range:
        return range(self._first, self._first + len(self._overrides))

    def _is_over(self) -> bool:
        open_runs = [number for number in self._numbers() if _may_change(self._watch.runs.get(number))]
        if not open_runs:
            return True
        known = self._watch.batches
        if not all(batch.id in known and known[batch.id].is_over for batch in self._batches):
            self._idle_since = None
            return False
        return not self._may_go_on(open_runs)

    def _may_go_on(self, open_runs: list[int]) -> bool:
        """All our jobs have ended with runs left over: may one of them start again, or has another been sent?"""
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        closed = all(self._closings())
        if not closed and now - self._idle_since < RESTART_PATIENCE_S:
            return True
        others = [view for batch, view in self._watch.batches.items() if not view.is_over]
        if others:
            return True
        alive = [
            view.submitted.job_id
            for view in (self._watch.batches[batch.id] for batch in self._batches)
            if view.submitted is not None and view.submitted.cluster == "slurm" and view.closed is None
        ]
        return bool(alive) and _any_alive(alive)


def _may_change(view: RunView | None) -> bool:
    """Whether a run may still come to an end, or to another end: its job ended it, and may be started again."""
    if view is None or not view.is_over:
        return True
    return view.ended is not None and view.ended.by_job_end


def _any_alive(jobs: list[str]) -> bool:
    """Whether Slurm has any of these jobs waiting or running again, or cannot be asked."""
    from clusterduck.errors import SlurmError
    from clusterduck.slurm.jobs import ABSENT, look_up

    try:
        return any(not status.is_over and status.state != ABSENT for status in look_up(dict.fromkeys(jobs)).values())
    except SlurmError:
        return True


def _close_dead_batches(ledger: Path, sweep: str) -> bool:
    """Have jobs that died without a word put on record, which ends the waiting for their runs.

    Those of other sweeps are put on record too, but only what concerns ours is said.

    Returns:
        Whether a job of ours was found over, and another look is needed to confirm it.
    """
    from clusterduck.ledger.replica import Replica
    from clusterduck.reconcile import close_dead_batches, look_at_jobs
    from clusterduck.slurm.command import TIMEOUT_S

    try:
        with Replica.open(ledger, tell=say_what_takes_long) as replica:
            replica.catch_up()
            outlook = look_at_jobs(ledger, replica, TIMEOUT_S)
            for closed in close_dead_batches(ledger, replica, outlook):
                if closed.partition(" ")[0] == sweep:
                    log.warning("The job of batch %s is over without having said so.", closed)
            return any(job.is_over and key[0] == sweep and key not in outlook.over for key, job in outlook.jobs.items())
    except Exception as error:  # the next look may do better, and waiting goes on all the same
        log.warning("The jobs could not be asked about: %s", error)
        return False
