"""Hands jobs to submitit: to its Slurm executor from the launching process, to its local one from a process of its own.

The only module that imports submitit. As ``python -m clusterduck.launch.submit`` it is that process of its own: it
leads a session with no terminal and holds none of the launching process's descriptors, so that neither Ctrl-C nor a
closed terminal reaches the jobs, and a pipe behind the launching command ends with that command.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pickle
import re
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core import utils
from submitit.slurm import slurm

from clusterduck.agent.main import AgentJob
from clusterduck.agent.settings import AgentSettings
from clusterduck.errors import DoubtfulSubmissionError, SlurmError, SubmissionError, UnsafePathError
from clusterduck.launch.options import SHARED, Options
from clusterduck.paths import make_private_folder, require_own
from clusterduck.slurm.limits import Limits, limits
from clusterduck.slurm.sbatch import jobs_of_scripts, sbatch

#: For how long, and how often, Slurm is asked about a job of which sbatch left open whether it was taken, in seconds.
PATIENCE_S = 30.0
_ASK_EVERY_S = 1.0


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


def submit_to_slurm(
    options: Options, agents: Sequence[AgentSettings], tell: Callable[[str], None] = lambda _: None
) -> Iterator[list[Submitted]]:
    """Submit a job for each; several go as one array, or as a few where Slurm does not take so large a one, each of
    which is yielded.

    Where sbatch leaves open whether Slurm took the jobs, Slurm is asked for a while.

    Args:
        options: the launch's.
        agents: what each job's agents need.
        tell: is told in a sentence what takes time.

    Raises:
        SubmissionError: with sbatch's own words, if it refuses.
        DoubtfulSubmissionError: if nobody can tell whether Slurm took the jobs that were to be yielded next.
    """
    most = limits() if len(agents) > 1 else Limits()
    if most.jobs is not None and len(agents) > most.jobs:
        raise SubmissionError(
            f"The runs need {len(agents)} jobs, but Slurm holds no more than {most.jobs} at a time here (MaxJobCount): "
            f"let fewer jobs execute more runs each, with a larger hydra.launcher.total_runs_per_node."
        )
    executor = _slurm_executor(options)
    for start in range(0, len(agents), most.array_size):
        yield _submit(executor, agents[start : start + most.array_size], tell)


def _submit(executor: Any, agents: Sequence[AgentSettings], tell: Callable[[str], None]) -> list[Submitted]:
    """Submit one script, as submitit does, but its name is also in those of the pickles: so whoever finds the job in
    Slurm's queue knows what it is to do, even if nobody else does any more."""
    folder = Path(script_folder(executor.folder))
    name = uuid.uuid4().hex
    script = folder / f".submission_file_{name}.sh"
    parameters = dict(executor.parameters)
    if len(agents) > 1:
        parameters["map_count"] = len(agents)
    try:
        for index, agent in enumerate(agents):
            submission = utils.DelayedSubmission(AgentJob(agent))
            submission.set_timeout(parameters.get("time", 5), executor.max_num_timeout)
            submission.dump(folder / f"{name}.{index}.pkl")
        script.write_text(
            slurm._make_sbatch_string(command=executor._submitit_command_str, folder=executor.folder, **parameters)
        )
    except OSError as error:
        raise SubmissionError(f"submitit's folder cannot be written: {error}") from None
    try:
        base = _hand_over(script, tell)
    except DoubtfulSubmissionError as error:
        raise DoubtfulSubmissionError(str(error), len(agents)) from None
    jobs = [base] if len(agents) == 1 else [f"{base}_{index}" for index in range(len(agents))]
    return [_provide(executor.folder, script, index, job) for index, job in enumerate(jobs)]


def _hand_over(script: Path, tell: Callable[[str], None]) -> str:
    """Have sbatch take the script, or find that Slurm has it; the job's id."""
    why = "sbatch was interrupted before it had answered"
    state = "Nobody waited for what Slurm says"
    try:
        try:
            return sbatch(script)
        except DoubtfulSubmissionError as error:
            why = str(error).rstrip(". ")
        tell(f"{why}. Slurm is asked for up to {PATIENCE_S:g} s whether it has the job all the same.")
        until = time.monotonic() + PATIENCE_S
        while True:
            job, state = _find(script)
            if job is not None:
                return job
            if time.monotonic() >= until:
                break
            time.sleep(_ASK_EVERY_S)
    except KeyboardInterrupt:
        tell("Interrupted, which does not tell whether Slurm has the job.")
    raise DoubtfulSubmissionError(
        f"Nobody knows whether Slurm has taken the job: {why}. {state}. `clusterduck status` takes it over once Slurm "
        f"shows it, or puts on record that it was never taken."
    )


def _find(script: Path) -> tuple[str | None, str]:
    """The id of the job that Slurm has for a script of ours, if any, and what Slurm's answer means for it."""
    try:
        jobs = jobs_of_scripts(str(script.parent))
    except SlurmError as error:
        return None, f"Slurm cannot be asked: {str(error).rstrip('.')}"
    found = (job.partition("_")[0] for job, (path, _) in jobs.items() if os.path.basename(path) == script.name)
    return next(found, None), "Slurm does not show it so far"


def _provide(submitit_folder: Path | str, script: Path, index: int, job: str) -> Submitted:
    """Put the pickle of a job to where that waits for it, for a minute, before it fails."""
    paths = utils.JobPaths(submitit_folder, job)
    pickled = script.parent / f"{_name_of(script.name)}.{index}.pkl"
    with contextlib.suppress(FileNotFoundError):  # somebody else found the job in Slurm's queue and has done it
        paths.move_temporary_file(pickled, "submitted_pickle")
    if index == 0 and not script.is_symlink():
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            utils.JobPaths(submitit_folder, job.partition("_")[0]).move_temporary_file(
                script, "submission_file", keep_as_symlink=True
            )
    return Submitted(job, str(paths.folder))


def _name_of(script: str) -> str | None:
    """What a script of ours and its pickles share in their names."""
    match = re.fullmatch(r"\.submission_file_([0-9a-f]{32})\.sh", script)
    return match[1] if match else None


def _slurm_executor(options: Options) -> Any:
    """submitit's own Slurm executor, which knows what is to stand in the script."""
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
    return executor._executor


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
    submitit_folder: str, root: str, jobs: Mapping[str, tuple[str, float | None]]
) -> dict[str, tuple[float, Submitted]]:
    """Do what is left to do after sbatch has answered, for a launcher that never heard it: give each job its pickle.

    Args:
        submitit_folder: as the launcher's option has it, absolute.
        root: the sweep's root folder.
        jobs: Slurm's jobs with their scripts, and the times at which they were submitted.

    Returns:
        By batch, when it was submitted, and the job.
    """
    folder = Path(script_folder(submitit_folder))
    found = {}
    for job, (path, submitted_at) in jobs.items():
        script = folder / os.path.basename(path)
        index = int(job.partition("_")[2] or 0)
        pickled = folder / f"{_name_of(script.name)}.{index}.pkl"
        batch = _batch_in(pickled, root)
        if batch is not None:
            at = submitted_at or pickled.stat().st_mtime
            found[batch] = at, _provide(submitit_folder, script, index, job)
    return found


def script_folder(submitit_folder: str) -> str:
    """Where submitit puts the scripts that it hands to sbatch."""
    return str(utils.JobPaths.get_first_id_independent_folder(submitit_folder))


def _make_private(submitit_folder: str) -> None:
    """Make submitit's folder for this user alone, since jobs unpickle what they find there.

    Raises:
        SubmissionError: if there is one that others could write.
    """
    folder = Path(script_folder(submitit_folder)).expanduser()
    try:
        make_private_folder(folder)
    except UnsafePathError as error:
        raise SubmissionError(f"Jobs would run what they find in submitit's folder: {error}") from None


def _batch_in(path: Path, root: str) -> str | None:
    """The batch that a pickle of submitit is about, if it is of this sweep and nobody else could have written it."""
    try:
        require_own(path)
        job = utils.DelayedSubmission.load(path).function
    except Exception:  # being written, of another program, or of another version: no news to us
        return None
    return job.settings.batch if isinstance(job, AgentJob) and job.settings.sweep_root == root else None


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
