"""One ``--multirun``, from the launcher's ``setup()`` through one or many calls of its ``launch()``.

The order matters: everything that can be refused is refused before anything is written, the plan is on disk before
anything is submitted, and whatever was planned but not submitted is closed on the record.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import hydra
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

import clusterduck
from clusterduck import git, identity, sharing
from clusterduck.agent.settings import AgentSettings
from clusterduck.errors import ClusterduckError, ConfigError, DoubtfulSubmissionError, SubmissionError
from clusterduck.events import (
    BatchPlanned,
    BatchSubmitted,
    Event,
    LaunchEnded,
    LaunchStarted,
    RunsClosed,
    RunsPlanned,
)
from clusterduck.journal import JournalWriter
from clusterduck.launch import earlier, freeze, owner, plan, register, show, sweepers
from clusterduck.launch.again import left_over
from clusterduck.launch.agents import settings_for
from clusterduck.launch.answers import SubmittedRun
from clusterduck.launch.collect import Collector, Progress
from clusterduck.launch.local import LocalSubmission
from clusterduck.launch.options import Options, require_slots_here, require_slurm
from clusterduck.launch.payload import Payload, UserSide, absolute_path_entries, origin
from clusterduck.launch.plain import divide
from clusterduck.launch.probe import Probe
from clusterduck.launch.watch import Watch
from clusterduck.model import State
from clusterduck.paths import SweepPaths

log = logging.getLogger(__name__)


class Sweep:
    """What one instance of a launcher does.

    Args:
        cluster: "local" or "slurm".
        params: the launcher's options, as plain data.
        hydra_context: as Hydra hands them to ``setup()``,
        task_function: likewise,
        config: likewise.
        progress: makes something that shows how far the sweep of that id is, for when somebody waits.

    Raises:
        ConfigError: for whatever is known at this time to go wrong. Nothing has been written then.
    """

    def __init__(
        self,
        *,
        cluster: str,
        params: Mapping[str, Any],
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
        progress: Callable[[str], Progress],
    ) -> None:
        self._options = Options.of(cluster, params)
        self._context = hydra_context
        self._function = task_function
        self._config = config
        self._progress = progress
        self._cwd = os.getcwd()
        self._sweep_dir = Path(self._cwd, str(config.hydra.sweep.dir))
        self._mode = _mode(config)
        self._launches = 0
        self._next_run = 0
        self._paths: SweepPaths | None = None
        self._watch: Watch | None = None
        self._code = _code_folder(task_function, self._cwd)
        self._sweep = register.new_sweep_id(str(config.hydra.job.name))
        sweepers.check(str(config.hydra.sweeper._target_), self._options.wait_for_completion)
        self._ledger = register.ledger_for(Path(self._cwd), self._options.ledger)
        if cluster == "local":
            require_slots_here(self._options)
        if cluster == "slurm" and self._options.do_submit:
            require_slurm()
        if self._options.do_submit:
            register.prepare(self._ledger, self._options.reading_group)
            self._ownership = owner.take(self._sweep_dir, self._sweep)
            atexit.register(self._give_back_unused, os.getpid())
        else:
            owner.refuse_if_live(self._sweep_dir)

    def launch(self, overrides: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        """Submit the runs; wait for them if the options say so.

        Returns:
            An answer per run, in the order of the overrides.

        Raises:
            ClusterduckError: if they could not be submitted. What had been planned of them is then on record as closed.
        """
        runs = [list(run) for run in overrides]
        if first < self._next_run:
            self._begin_anew()
        planned = plan.batches(self._launches, first, len(runs), self._options.runs_per_batch)
        if not runs:
            return []
        if not self._options.do_submit:
            for line in show.dry_run(self._options, planned, first, runs):
                log.info(line)
            return [SubmittedRun(overrides=run) for run in runs]
        log.info("Sweep %s: %s", self._sweep, show.summary(self._options, planned, len(runs)))
        log.info("Sweep output dir : %s", show.printable(str(self._sweep_dir)))
        for line in show.runs(first, runs):
            log.info(line)
        launch, jobs = self._submit(first, runs, planned)
        self._next_run = first + len(runs)
        with self._detaching(jobs):
            register.publish(self._ledger)
            if jobs:
                log.info(
                    "Submitted %s. Follow with %s, stop with %s.",
                    show.job_names(jobs),
                    show.how_to_follow(self._sweep),
                    show.how_to_stop(self._options, jobs),
                )
            if not self._options.wait_for_completion:
                return [SubmittedRun(overrides=run) for run in runs]
            answers = self._wait(launch, first, runs, planned)
        register.publish(self._ledger)
        return answers

    def _begin_anew(self) -> None:
        """A sweeper began to number its runs anew: what follows is a sweep of its own in the same folder."""
        before, self._sweep = self._sweep, register.new_sweep_id(str(self._config.hydra.job.name))
        self._ownership = owner.take(self._sweep_dir, self._sweep, instead_of=before)
        self._paths = self._watch = None
        self._launches = self._next_run = 0

    def _submit(self, first: int, runs: list[list[str]], planned: Sequence[plan.Batch]) -> tuple[int, list[str]]:
        """Check, write down, submit. Returns the launch's number and the jobs' ids."""
        if self._options.cluster == "local":
            with LocalSubmission() as local:
                return self._prepare_and_submit(
                    first, runs, planned, lambda agents: ([job] for job in local.submit(self._options, agents))
                )
        from clusterduck.launch.submit import submit_to_slurm

        return self._prepare_and_submit(
            first,
            runs,
            planned,
            lambda agents: (
                [(job.job_id, job.folder) for job in array]
                for array in submit_to_slurm(self._options, agents, log.warning)
            ),
        )

    def _prepare_and_submit(
        self,
        first: int,
        runs: list[list[str]],
        planned: Sequence[plan.Batch],
        submit: Callable[[list[AgentSettings]], Iterator[list[tuple[str, str]]]],
    ) -> tuple[int, list[str]]:
        payload, commit = self._payload(first, runs)
        number = self._launches
        expected_s = self._expected_s(first, runs)
        try:
            journal = self._write_down(payload, commit, planned, expected_s)
        except OSError as error:
            raise SubmissionError(
                f"The plan of the sweep cannot be written, so nothing was submitted: {error}"
            ) from None
        jobs: list[str] = []
        doubtful = 0
        why = "the launch was interrupted before its job was submitted"
        try:
            agents = [self._settings(number, batch, (first, len(runs)), bool(expected_s)) for batch in planned]
            for taken in submit(agents):
                for job, folder in taken:
                    journal.append([self._batch_submitted(planned[len(jobs)], job, folder)])
                    jobs.append(job)
                journal.flush(sync=True)
        except DoubtfulSubmissionError as error:
            why, doubtful = str(error), error.jobs
            if not self._options.wait_for_completion:
                raise
            log.warning(why)
        except Exception as error:
            why = str(error)
            raise
        finally:
            journal.append(_closing(planned[len(jobs) :], why, doubtful))
            journal.append([LaunchEnded(launch=number)])
            journal.close()
            if len(jobs) < len(planned):
                register.publish(self._ledger)
        return number, jobs

    def _expected_s(self, first: int, runs: list[list[str]]) -> dict[int, float]:
        """How long runs took before, in seconds, by their numbers; not asked for if all of them begin at once."""
        slots = self._options.parallel_runs_per_node * self._options.nodes
        if (self._options.runs_per_batch or len(runs)) <= slots:
            return {}
        known = earlier.durations(self._ledger, str(self._config.hydra.job.name), runs)
        if known:
            log.info("Of %d of the runs it is known how long they took before: the longest begin first.", len(known))
        return {first + index: took for index, took in known.items()}

    def _write_down(
        self,
        payload: Payload,
        commit: git.Commit | None,
        planned: Sequence[plan.Batch],
        expected_s: Mapping[int, float],
    ) -> JournalWriter:
        """Put on disk what will be submitted; after that the sweep is one that others see."""
        paths = self._paths or self._create()
        number = self._launches
        sharing.make_folder(paths.launch(number))
        register.write_whole(paths.payload(number), payload.dump())
        journal = JournalWriter(paths.launch(number), self._sweep, f"launch {number}")
        journal.append([self._started(number, commit)])
        lines = plan.in_lines(payload.first_run, payload.overrides)
        journal.append(
            RunsPlanned(
                launch=number,
                runs=line,
                expected_s=[expected_s.get(run) for run, _ in line] if expected_s else [],
            )
            for line in lines
        )
        journal.append(self._batch_planned(number, batch) for batch in planned)
        journal.flush(sync=True)
        if self._paths is None:
            register.enter(self._ledger, paths)
            self._paths = paths
        self._launches += 1
        return journal

    def _payload(self, first: int, runs: list[list[str]]) -> tuple[Payload, git.Commit | None]:
        """Gather what the runs need; before the first launch, see whether it unpickles elsewhere."""
        try:
            user = UserSide.capture(self._function, self._config, self._context)
            plain, own = divide(user)
        except ClusterduckError:
            raise
        except Exception as error:
            raise ConfigError(
                f"What the runs need cannot be copied ({type(error).__name__}: {error}): look at the resolvers and "
                f"structured configs that are registered when the sweep is launched."
            ) from error
        frozen = freeze.freeze(self._config, self._cwd)
        for warning in frozen.warnings if self._launches == 0 else ():
            log.warning(warning)
        script, module, function = origin(self._function)
        payload = Payload(
            first_run=first,
            overrides=runs,
            sys_path=absolute_path_entries(sys.path, self._cwd),
            cwd=self._cwd,
            sources=frozen.sources,
            script=script,
            module=module,
            function=function,
            user=own,
            sweep_dir=str(self._sweep_dir),
            plain=plain,
        )
        if self._launches > 0:
            return payload, git.commit_of(self._code)
        probe = Probe(payload.dump())
        try:
            commit = git.commit_of(self._code)
            log.info("Everything the runs need loads in a fresh interpreter (%.1f s)", probe.wait(user, payload))
        finally:
            probe.stop()
        return payload, commit

    def _create(self) -> SweepPaths:
        paths = SweepPaths.of(self._sweep_dir, self._sweep)
        paths.create(self._options.reading_group)
        if self._mode is not None:
            os.chmod(self._sweep_dir, self._mode)
        return paths

    def _wait(self, launch: int, first: int, runs: list[list[str]], planned: Sequence[plan.Batch]) -> list[JobReturn]:
        assert self._paths is not None
        self._watch = self._watch or Watch(self._paths)
        return Collector(
            watch=self._watch,
            sweep=self._sweep,
            launch=launch,
            first=first,
            overrides=runs,
            batches=planned,
            ledger=self._ledger,
            progress=self._progress(self._sweep),
        ).wait()

    @contextmanager
    def _detaching(self, jobs: Sequence[str]) -> Iterator[None]:
        """Whoever presses Ctrl-C now, since the jobs are submitted, leaves them to themselves, and is told so."""
        try:
            yield
        except KeyboardInterrupt:
            log.warning(
                "Detached from the sweep %s; its jobs go on. Follow with %s, stop with %s.",
                self._sweep,
                show.how_to_follow(self._sweep),
                show.how_to_stop(self._options, jobs),
            )
            raise SystemExit(130) from None

    def _give_back_unused(self, process: int) -> None:
        if self._paths is None and os.getpid() == process:
            self._ownership.give_back()

    # --- what goes into the journal, and to the agents

    def _started(self, number: int, commit: git.Commit | None) -> LaunchStarted:
        return LaunchStarted(
            launch=number,
            sweep_dir=str(self._sweep_dir),
            job_name=str(self._config.hydra.job.name),
            user=identity.user(),
            host=identity.host(),
            pid=os.getpid(),
            cwd=self._cwd,
            command=list(sys.orig_argv),
            launcher=self._options.cluster,
            settings=json.loads(json.dumps(asdict(self._options), default=str)),
            python=sys.executable,
            versions={
                "hydra": hydra.__version__,
                "clusterduck": clusterduck.__version__,
                "submitit": metadata.version("submitit"),
                "python": sys.version.split()[0],
            },
            git_commit=commit.hash if commit is not None else None,
            git_dirty=commit.dirty if commit is not None else None,
        )

    def _batch_planned(self, number: int, batch: plan.Batch) -> BatchPlanned:
        return BatchPlanned(
            batch=batch.id,
            launch=number,
            first=batch.first,
            stop=batch.stop,
            nodes=self._options.nodes,
            slots_per_node=self._options.parallel_runs_per_node,
            share_runs=self._options.share_runs,
        )

    def _batch_submitted(self, batch: plan.Batch, job: str, folder: str) -> BatchSubmitted:
        return BatchSubmitted(
            batch=batch.id,
            cluster=self._options.cluster,
            job_id=job,
            host=identity.host(),
            log_dir=SweepPaths.of(self._sweep_dir, self._sweep).kept(folder),
        )

    def _settings(self, number: int, batch: plan.Batch, runs: tuple[int, int], ordered: bool) -> AgentSettings:
        first, count = runs
        return settings_for(
            self._options,
            root=SweepPaths.of(self._sweep_dir, self._sweep).root,
            batch=batch.id,
            launch=number,
            ledger=self._ledger,
            code=self._code,
            runs=(batch.first, batch.stop),
            plan=(first, first + count),
            ordered=ordered,
        )


def _code_folder(function: TaskFunction, cwd: str) -> str:
    """Where the user's code is: beside the script, else the working directory."""
    script, _, _ = origin(function)
    return os.path.dirname(script) if script is not None else cwd


def _closing(left: Sequence[plan.Batch], why: str, doubtful: int) -> Iterator[Event]:
    """That these batches and their runs will never start, except the first so many, which may."""
    yield from left_over([batch.id for batch in left], why, doubtful)
    ranges = [(batch.first, batch.stop) for batch in left[doubtful:]]
    if ranges:
        yield RunsClosed(ranges=ranges, state=State.FAILED.value, reason=why)


def _mode(config: DictConfig) -> int | None:
    """``hydra.sweep.mode``, the sweep folder's permissions in octal."""
    text = OmegaConf.select(config, "hydra.sweep.mode")
    if text is None:
        return None
    try:
        return int(str(text), 8)
    except ValueError:
        raise ConfigError(f"hydra.sweep.mode must be permissions in octal, e.g. 755, not {text!r}.") from None
