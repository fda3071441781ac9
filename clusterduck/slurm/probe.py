"""What Slurm's commands can do here, and a short job on two nodes: for finding out whether a cluster suits."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from clusterduck.errors import SlurmError
from clusterduck.slurm.command import require, run

#: Those that clusterduck, or submitit for it, runs.
COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel")

#: Two nodes must be free within so many seconds, and their job is ended after so many more.
PATIENCE_S = 30.0
RUNNING_S = 60.0


@dataclass(frozen=True)
class Question:
    """A command whose answer shows that it works."""

    command: str
    arguments: tuple[str, ...]
    tested: str


QUESTIONS = (
    Question("sbatch", ("--version",), "Slurm's version"),
    Question("squeue", ("--noheader", "--me", "--format=%i"), "whether Slurm's controller answers"),
    Question("sacct", ("--noheader", "--parsable2", "--allocations", "--format=JobID"), "whether Slurm keeps accounts"),
)


def missing_commands() -> list[str]:
    """The commands that are not on this host's PATH."""
    return [command for command in COMMANDS if shutil.which(command) is None]


def ask(question: Question) -> str:
    """What a question brought, in a few words.

    Raises:
        SlurmError: if the command failed.
    """
    answer = require(run(question.command, question.arguments, timeout_s=8.0), question.command)
    if question.arguments == ("--version",):
        return "".join(answer.lines[:1])[:100]
    return f"yes, it tells of {len(answer.lines)} of your jobs"


def run_on_two_nodes(command: Sequence[str]) -> tuple[str, ...]:
    """Run a command once on each of two nodes, and wait for both. The job is gone afterwards, whatever happens.

    Returns:
        The lines that the two printed.

    Raises:
        SlurmError: if no two nodes were free, or srun failed otherwise.
    """
    name = f"clusterduck-doctor-{secrets.token_hex(6)}"
    arguments = [
        *("--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--time=2", f"--immediate={PATIENCE_S:.0f}"),
        *(f"--job-name={name}", "--kill-on-bad-exit=0", "--input=none", *command),
    ]
    is_over = False
    try:
        answer = run("srun", arguments, timeout_s=PATIENCE_S + RUNNING_S)
        is_over = True
    finally:
        if not is_over:
            with suppress(SlurmError):  # whatever went wrong with srun is told already
                run("scancel", [f"--name={name}"])
    if not any(line.startswith("{") for line in answer.lines):
        require(answer, "srun")
        raise SlurmError("Slurm's command srun ended well, but the nodes printed nothing.")
    return answer.lines
