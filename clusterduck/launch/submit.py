"""Hands jobs to submitit: to its Slurm executor from the launching process, to its local one from a process of its own.

The only module that imports submitit. As ``python -m clusterduck.launch.submit`` it is that process of its own: it
leads a session with no terminal and holds none of the launching process's descriptors, so that neither Ctrl-C nor a
closed terminal reaches the jobs, and a pipe behind the launching command ends with that command.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import pickle
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core import utils
from submitit.slurm import slurm

from clusterduck.agent.main import AgentJob
from clusterduck.agent.settings import AgentSettings
from clusterduck.errors import SubmissionError
from clusterduck.launch.options import SHARED, Options
from clusterduck.paths import require_own
from clusterduck.slurm.limits import Limits, limits, what_helps


@dataclass(frozen=True)
class Submitted:
    """A job that was taken: its id (a process id for a local one), and submitit's folder of it."""

    job_id: str
    folder: str


def parameters(options: Options) -> dict[str, Any]:
    """The options as submitit's executor takes them: those of one cluster carry its name in front."""
    named = {name if name in SHARED else f"{options.cluster}_{name}": value for name, value in options.submitit.items()}
    return {name: value for name, value in named.items() if value is not None}


def sbatch_file(options: Options, jobs: int) -> str:
    """The file that sbatch would get for so many jobs. Works without Slurm."""
    shared = {name: value for name, value in options.submitit.items() if name in SHARED and value is not None}
    names = slurm.SlurmExecutor._equivalence_dict()
    arguments = {str(names.get(name, name)) if names else name: value for name, value in shared.items()}
    if "mem" in arguments:
        arguments["mem"] = slurm._convert_mem(arguments["mem"])
    arguments.update(
        {name: value for name, value in options.submitit.items() if name not in SHARED and value is not None}
    )
    if jobs > 1:
        arguments["map_count"] = jobs
    python = options.python or shlex.quote(sys.executable)
    folder = Path(options.submitit_folder).expanduser().absolute()
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(slurm._make_sbatch_string(command=command, folder=folder, **arguments))


def submit_to_slurm(options: Options, agents: Sequence[AgentSettings]) -> Iterator[list[Submitted]]:
    """Submit a job for each; several go as one array, or as a few where Slurm does not take so large a one, each of
    which is yielded.

    Raises:
        SubmissionError: with sbatch's own words, if it refuses, or answers what nobody can read.
    """
    most = limits() if len(agents) > 1 else Limits()
    if most.jobs is not None and len(agents) > most.jobs:
        raise SubmissionError(
            f"The runs need {len(agents)} jobs, but Slurm holds no more than {most.jobs} at a time here (MaxJobCount): "
            f"let fewer jobs execute more runs each, with a larger hydra.launcher.total_runs_per_node."
        )
    executor = _slurm_executor(options)
    for start in range(0, len(agents), most.array_size):
        words = io.StringIO()  # submitit prints what sbatch says, unread; we say it ourselves
        try:
            with contextlib.redirect_stderr(words):
                jobs = _submit(executor, agents[start : start + most.array_size])
        except utils.FailedJobError as error:
            said = _plain(str(error) or words.getvalue())
            raise SubmissionError(f"sbatch refused the job: {said} {what_helps(said)}".rstrip()) from None
        except utils.FailedSubmissionError as error:
            raise SubmissionError(f"sbatch gave no job id: {_plain(str(error))}") from None
        except OSError as error:
            raise SubmissionError(f"sbatch could not be run: {error}") from None
        yield [Submitted(str(job.job_id), str(job.paths.folder)) for job in jobs]


def _slurm_executor(options: Options) -> submitit.AutoExecutor:
    special: dict[str, Any] = {} if options.python is None else {"slurm_python": options.python}
    try:
        _make_private(options.submitit_folder)
        executor = submitit.AutoExecutor(
            folder=options.submitit_folder, cluster="slurm", slurm_max_num_timeout=options.max_num_timeout, **special
        )
        executor.update_parameters(**parameters(options))
    except OSError as error:
        raise SubmissionError(f"submitit's folder cannot be written: {error}") from None
    except (ValueError, NameError, AssertionError, TypeError, RuntimeError) as error:
        raise SubmissionError(f"submitit does not take these options of hydra.launcher: {error}") from None
    return executor


def _submit(executor: submitit.AutoExecutor, agents: Sequence[AgentSettings]) -> list[Any]:
    with executor.batch():
        return [executor.submit(AgentJob(agent)) for agent in agents]


def find_submitted(submitit_folder: str, root: str) -> dict[str, tuple[float, Submitted]]:
    """What submitit's folder tells of jobs that were submitted for a sweep: by batch, when, and the job.

    Args:
        submitit_folder: as the launcher's option has it, absolute.
        root: the sweep's root folder.
    """
    pattern = re.sub("%[jAat]", "*", glob.escape(os.path.join(submitit_folder, "%j_submitted.pkl")))
    found: dict[str, tuple[float, Submitted]] = {}
    for name in glob.glob(pattern):
        path = Path(name)
        batch = _batch_in(path, root)
        if batch is not None:
            at = path.stat().st_mtime
            found[batch] = max(
                found.get(batch, (0.0, Submitted("", ""))),
                (at, Submitted(path.name.removesuffix("_submitted.pkl"), str(path.parent))),
                key=lambda one: one[0],
            )
    return found


def finish_submission(
    submitit_folder: str, root: str, batches: Sequence[str], jobs: Mapping[str, float | None]
) -> dict[str, tuple[float, Submitted]]:
    """Do what submitit does after sbatch has answered, for a launcher that was killed before: give each job its pickle.

    A job waits for that for a minute before it fails.

    Args:
        submitit_folder: as the launcher's option has it, absolute.
        root: the sweep's root folder.
        batches: all batches of that launch in the order in which they were submitted.
        jobs: those of Slurm's jobs that nobody has on record, with the times at which they were submitted.
    """
    if len({job.partition("_")[0] for job in jobs}) != 1:
        return {}  # none, or nobody knows whose they are
    base = next(iter(jobs)).partition("_")[0]
    waiting = {}
    for path in utils.JobPaths.get_first_id_independent_folder(submitit_folder).glob("*.pkl"):
        batch = _batch_in(path, root) if re.fullmatch("[0-9a-f]{32}", path.stem) else None
        if batch is not None and batch in batches:
            waiting[batches.index(batch)] = path
    # An array's pickles are made when it is submitted, and moved in order: its first batch has been moved, or waits.
    moved = _batch_in(utils.JobPaths(submitit_folder, f"{base}_0").submitted_pickle, root)
    start = batches.index(moved) if moved in batches else min(waiting, default=0)
    found = {}
    for index, path in waiting.items():
        batch, job = batches[index], base if base in jobs else f"{base}_{index - start}"
        if job in jobs:
            paths = utils.JobPaths(submitit_folder, job)
            paths.move_temporary_file(path, "submitted_pickle")
            found[batch] = (jobs[job] or paths.submitted_pickle.stat().st_mtime, Submitted(job, str(paths.folder)))
    return found


def script_folder(submitit_folder: str) -> str:
    """Where submitit puts the scripts that it hands to sbatch."""
    return str(utils.JobPaths.get_first_id_independent_folder(submitit_folder))


def _make_private(submitit_folder: str) -> None:
    """Make submitit's folder, if there is none yet, for this user alone: jobs unpickle what they find there."""
    folder = Path(script_folder(submitit_folder)).expanduser()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)


def _batch_in(path: Path, root: str) -> str | None:
    """The batch that a pickle of submitit is about, if it is of this sweep and nobody else could have written it."""
    try:
        require_own(path)
        job = utils.DelayedSubmission.load(path).function
    except Exception:  # being written, of another program, or of another version: no news to us
        return None
    return job.settings.batch if isinstance(job, AgentJob) and job.settings.sweep_root == root else None


def _plain(words: str) -> str:
    """A command's words in one line, without anything that a terminal would take for a command."""
    from clusterduck.slurm.command import clean

    return " ".join(clean(words.encode("utf-8", "replace"))) or "it said nothing"


def main() -> None:
    """Be the process that submits local jobs: request on stdin, on what was stdout a JSON line per job, or an error."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    request = sys.stdin.buffer.read()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if not request:
        return  # nothing is to be submitted after all
    options, agents = pickle.loads(request)
    try:
        _make_private(options.submitit_folder)
        executor = submitit.AutoExecutor(folder=options.submitit_folder, cluster="local")
        executor.update_parameters(**parameters(options))
        for agent in agents:
            job = executor.submit(AgentJob(agent))
            print(json.dumps([str(job.job_id), str(job.paths.folder)]), file=answer, flush=True)
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"), file=answer, flush=True)


if __name__ == "__main__":
    main()
