"""Hand a script to sbatch, and tell a job that was refused from one of which nobody knows whether it was taken."""

from __future__ import annotations

import os
import re
from pathlib import Path

from clusterduck.errors import DoubtfulSubmissionError, SlurmError, SubmissionError
from clusterduck.slurm.command import QUICK_S, Answer, NoAnswerError, run
from clusterduck.slurm.jobs import is_job_id
from clusterduck.slurm.limits import what_helps
from clusterduck.slurm.squeue import squeue

#: Seconds that sbatch may take: it tries again by itself, for minutes, while the controller cannot take jobs.
TIMEOUT_S = 300.0

_TAKEN = re.compile(r"\bSubmitted batch job ([0-9]{1,18})\b", re.ASCII)

#: What Slurm's commands say when a request was sent and its answer was lost. (That no connection could be made is not
#: among them: then nothing was sent.)
_LOST = re.compile(
    r"timed out|(send|receive|shutdown) failure|zero bytes|unexpected message|reset by peer|broken pipe", re.IGNORECASE
)

#: The longest that sbatch's words are told.
_MOST_CHARACTERS = 600


def sbatch(script: Path) -> str:
    """Submit a script; the job's id. The job gets this process's environment.

    Raises:
        SubmissionError: if it was refused, with sbatch's own words.
        DoubtfulSubmissionError: if it may be in the queue all the same: sbatch did not answer, was killed, printed no
            id, or says that it lost touch with the controller.
    """
    try:
        answer = run("sbatch", [str(script)], TIMEOUT_S, environment=os.environ)
    except NoAnswerError as error:
        raise DoubtfulSubmissionError(str(error)) from None
    except SlurmError as error:
        raise SubmissionError(str(error)) from None
    taken = _TAKEN.search(" ".join(answer.lines))
    if answer.exit_code == 0 and taken is not None:
        return taken[1]
    words = _words(answer)
    if answer.exit_code == 0:
        raise DoubtfulSubmissionError(f"sbatch gave no job id: {words or 'it said nothing'}")
    if not words:
        raise DoubtfulSubmissionError(f"sbatch failed without a word ({_end(answer.exit_code)})")
    if taken is not None or _LOST.search(words) or _was_killed(answer.exit_code):
        raise DoubtfulSubmissionError(f"sbatch failed ({_end(answer.exit_code)}): {words}")
    raise SubmissionError(f"sbatch refused the job: {words} {what_helps(words)}".rstrip())


def jobs_of_scripts(folder: str, timeout_s: float = QUICK_S) -> dict[str, tuple[str, float | None]]:
    """This user's jobs whose batch script lies directly in ``folder``: by id, the script, and when it was submitted.

    Raises:
        SlurmError: if squeue did not answer, or with rubbish.
    """
    listing = squeue([f"--user={os.getuid()}"], ("%V", "%o"), timeout_s)
    listing.require_readable()
    found = {}
    for job, submitted, script in listing.rows:
        if is_job_id(job) and os.path.dirname(script) == folder:
            found[job] = script, float(submitted) if submitted.isdecimal() else None
    return found


def _words(answer: Answer) -> str:
    """What it said, errors first, in one line."""
    said = " ".join((*answer.errors, *answer.lines))
    return said if len(said) <= _MOST_CHARACTERS else f"{said[:_MOST_CHARACTERS]}..."


def _was_killed(exit_code: int) -> bool:
    return exit_code < 0 or exit_code > 128


def _end(exit_code: int) -> str:
    return f"killed by signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
