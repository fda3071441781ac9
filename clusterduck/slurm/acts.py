"""What we make Slurm do to jobs: end them, put them back into its queue, wake their agents with a signal."""

from __future__ import annotations

from collections.abc import Iterable

from clusterduck.errors import SlurmError
from clusterduck.slurm.command import TIMEOUT_S, require, run
from clusterduck.slurm.jobs import checked

#: Jobs to a call, so that the list stays far below the longest argument that Linux takes.
_JOBS_PER_CALL = 2000


def scancel(
    jobs: Iterable[str],
    signal: str | None = None,
    *,
    full: bool = False,
    waiting_only: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """End jobs, or only send a signal to those that run.

    Args:
        jobs: their ids.
        signal: its name without SIG; None: end the jobs, also those that wait.
        full: whether the batch script gets the signal too, not only the steps (where the agents are).
        waiting_only: leave those alone that have begun.
        timeout_s: for each call of the command.

    Raises:
        SlurmError: if it failed or printed rubbish, or one of the ids is none. Ending a job that is over already is
            no failure.
    """
    wanted = [checked(job) for job in jobs]
    options = [] if signal is None else [f"--signal={signal}", *(["--full"] if full else [])]
    options += ["--state=PENDING"] if waiting_only else []
    for start in range(0, len(wanted), _JOBS_PER_CALL):
        answer = run("scancel", [*options, *wanted[start : start + _JOBS_PER_CALL]], timeout_s)
        if answer.exit_code != 0 and "already completing or completed" not in answer.complaint:
            require(answer, "scancel")
        if answer.lines:  # scancel says nothing when it does what it should
            raise SlurmError(f"Slurm's command scancel printed what nobody asked for: {answer.lines[0][:100]!r}.")


def requeue(job: str, *, timeout_s: float = TIMEOUT_S) -> None:
    """Put a running job back into Slurm's queue: it ends, and is started again under the same id.

    Raises:
        SlurmError: if Slurm does not do so.
    """
    require(run("scontrol", ["requeue", checked(job)], timeout_s), "scontrol")
