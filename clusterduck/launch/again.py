"""Jobs for attempts that were put into the queue: with the options of the launch they came from, packed by the same
rules, recorded in the journal of the act that asks for them."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clusterduck import identity, sharing
from clusterduck.agent.settings import AgentSettings
from clusterduck.errors import ConfigError, DoubtfulSubmissionError, JournalError, NotFoundError, SubmissionError
from clusterduck.events import BatchClosed, BatchPlanned, BatchSubmitted, Event, SubmissionDoubted
from clusterduck.journal import JournalWriter
from clusterduck.launch import plan
from clusterduck.launch.agents import settings_for
from clusterduck.launch.options import Options
from clusterduck.model import Attempt, State
from clusterduck.paths import SweepPaths, require_own_up_to

_ACT = re.compile(r"r([0-9]{1,9})", re.ASCII)


@dataclass(frozen=True)
class Launched:
    """A launch as its journal tells it, to be done again in part.

    Attributes:
        number: the launch's number in its sweep.
        options: its options.
        python: the interpreter that launched.
        code: where the user's code is.
        not_today: why the function as it is today cannot be had, as far as that can be seen without running anything.
        shared: the runs that new jobs go on with once they are done with their own: first, stop.
    """

    number: int
    options: Options
    python: str
    code: str
    not_today: str | None = None
    shared: tuple[int, int] = (0, 0)

    @property
    def shares(self) -> bool:
        """Whether there are any."""
        return self.shared != (0, 0)


@dataclass(frozen=True)
class Job:
    """A job that was submitted for attempts: its batch and id."""

    batch: str
    job_id: str
    cluster: str
    attempts: tuple[Attempt, ...]


def launched(
    connection: sqlite3.Connection, paths: SweepPaths, number: int, changes: Mapping[str, Any] | None = None
) -> Launched:
    """Find a launch.

    Args:
        connection: the ledger.
        paths: the sweep's.
        number: the launch's number.
        changes: options to be changed.

    Raises:
        NotFoundError: if it is not in the ledger, or its payload is gone.
        ConfigError: if the changes cannot be made.
    """
    row = connection.execute(
        "SELECT settings, cwd, python FROM launch WHERE sweep = ? AND number = ? AND settings IS NOT NULL",
        (paths.sweep, number),
    ).fetchone()
    if row is None:
        raise NotFoundError(f"Launch {number} of sweep {paths.sweep} is not in the ledger.")
    settings, cwd, python = json.loads(row[0]), str(row[1]), str(row[2])
    options = Options.again(settings, changes or {})
    folder = os.path.join(cwd, os.path.expanduser(options.submitit_folder))
    try:
        from clusterduck.agent.code import why_not_today  # loads Hydra, which commands that only look do without
        from clusterduck.launch.payload import Payload

        require_own_up_to(paths.payload(number), paths.root)
        payload = Payload.load(paths.payload(number).read_bytes())
    except (OSError, JournalError) as error:
        raise NotFoundError(f"What launch {number} of sweep {paths.sweep} needs is gone: {error}") from None
    if payload.sweep_dir is not None:  # the sweep may have been moved since
        folder = paths.place(SweepPaths.of(Path(payload.sweep_dir), paths.sweep).kept(folder))
    code = os.path.dirname(payload.script) if payload.script is not None else cwd
    shared = _planned_runs(connection, paths.sweep, number) if options.share_runs and not changes else (0, 0)
    return Launched(number, replace(options, submitit_folder=folder), python, code, why_not_today(payload), shared)


def _planned_runs(connection: sqlite3.Connection, sweep: str, number: int) -> tuple[int, int]:
    """The runs of a launch: first, stop."""
    first, stop = connection.execute(
        "SELECT min(first_run), max(stop_run) FROM batch WHERE sweep = ? AND launch = ? AND first_run < stop_run",
        (sweep, number),
    ).fetchone()
    return (first or 0, stop or 0)


class Again:
    """One act that sends attempts of a sweep again, with a number of its own and a journal.

    Args:
        paths: the sweep's.
        ledger: the ledger's path.
        what: who does what, for people who read the journal.
    """

    def __init__(self, paths: SweepPaths, ledger: Path, what: str) -> None:
        self._paths = paths
        self._ledger = ledger
        self.number = _take_number(paths.acts)
        self._journal = JournalWriter(paths.acts, paths.sweep, what, name=f"requeue-{self.number}")
        self._batches = 0

    def record(self, *new: Event) -> None:
        """Have events on disk before anything that follows.

        Raises:
            OSError: if they could not be written.
        """
        self._journal.append(new)
        self._journal.flush(sync=True)

    def submit(
        self, launch: Launched, attempts: Sequence[Attempt], expected_s: Mapping[int, float] | None = None
    ) -> Iterator[Job]:
        """Submit as many jobs as the attempts of one launch need; each is yielded as soon as it is on record.

        Args:
            launch: the launch.
            attempts: one for each run.
            expected_s: how long runs are expected to take, in seconds, where that is known.

        Raises:
            SubmissionError: if one was not taken. That it was not is on record then.
        """
        options = launch.options
        homes = plan.homes(attempts, options.runs_per_batch, expected_s or {})
        batches = [f"r{self.number}-{self._batches + index}" for index in range(len(homes))]
        self._batches += len(homes)
        self.record(
            *(_planned(batch, launch, home) for batch, home in zip(batches, homes, strict=True)),
        )
        agents = [
            settings_for(
                options,
                root=self._paths.root,
                batch=batch,
                launch=launch.number,
                ledger=self._ledger,
                code=launch.code,
                plan=launch.shared,
                ordered=launch.shares,
                attempts=home,
            )
            for batch, home in zip(batches, homes, strict=True)
        ]
        why = "it was interrupted before its job was submitted"
        taken = doubtful = 0
        try:
            for array in _submit(options, agents, launch.python):
                new = list(zip(batches[taken:], homes[taken:], array, strict=False))
                self.record(*(_submitted(self._paths, batch, options.cluster, *job) for batch, _, job in new))
                taken += len(new)
                yield from (Job(batch, job_id, options.cluster, home) for batch, home, (job_id, _) in new)
        except Exception as error:
            why = str(error)
            doubtful = error.jobs if isinstance(error, DoubtfulSubmissionError) else 0
            raise
        finally:
            self.record(*left_over(batches[taken:], why, doubtful))

    def close(self) -> None:
        """Say that nothing follows.

        Raises:
            OSError: if that could not be written.
        """
        self._journal.close()


def left_over(batches: Sequence[str], why: str, doubtful: int) -> Iterator[SubmissionDoubted | BatchClosed]:
    """What to put on record of batches that have no job for a reason; of the first ``doubtful`` that is not certain."""
    for index, batch in enumerate(batches):
        if index < doubtful:
            yield SubmissionDoubted(batch=batch, reason=why)
        else:
            yield BatchClosed(batch=batch, state=State.FAILED.value, reason=why, unsubmitted=True)


def _planned(batch: str, launch: Launched, home: Sequence[Attempt]) -> BatchPlanned:
    return BatchPlanned(
        batch=batch,
        launch=launch.number,
        first=0,
        stop=0,
        nodes=launch.options.nodes,
        slots_per_node=launch.options.parallel_runs_per_node,
        share_runs=launch.shares,
        attempts=[(attempt.run, attempt.number) for attempt in home],
    )


def _submitted(paths: SweepPaths, batch: str, cluster: str, job_id: str, folder: str) -> BatchSubmitted:
    return BatchSubmitted(batch=batch, cluster=cluster, job_id=job_id, host=identity.host(), log_dir=paths.kept(folder))


def _submit(options: Options, agents: list[AgentSettings], python: str) -> Iterator[list[tuple[str, str]]]:
    """Submit a job for each, with the interpreter that the launch had; yields ids and folders as they become known."""
    there = python if os.access(python, os.X_OK) else sys.executable
    if options.cluster == "local":
        from clusterduck.launch.local import LocalSubmission

        with LocalSubmission(there) as local:
            for job in local.submit(options, agents):
                yield [job]
        return
    from clusterduck.launch.options import require_slurm
    from clusterduck.launch.submit import submit_to_slurm

    try:
        require_slurm()
    except ConfigError as error:
        raise SubmissionError(str(error)) from None
    if options.python is None and there != sys.executable:
        options = replace(options, python=shlex.quote(there))
    for array in submit_to_slurm(options, agents):
        yield [(job.job_id, job.folder) for job in array]


def _take_number(acts: Path) -> int:
    """A number that no other act of the sweep has: making its folder is exclusive."""
    with os.scandir(acts) as entries:
        taken = [int(match[1]) for entry in entries if (match := _ACT.fullmatch(entry.name))]
    number = max(taken, default=0) + 1
    while True:
        try:
            sharing.make_folder(acts / f"r{number}")
        except FileExistsError:
            number += 1
        else:
            return number
