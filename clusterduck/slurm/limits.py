"""How many jobs this cluster takes at a time, and how large an array may be: as its configuration says."""

from __future__ import annotations

from dataclasses import dataclass

from clusterduck.errors import SlurmError
from clusterduck.slurm.command import require, run

#: Slurm's own default: the highest index of an array is one less.
DEFAULT_ARRAY_SIZE = 1001

#: Seconds to wait for an answer that a launch can do without.
_TIMEOUT_S = 10.0

#: What sbatch says when a limit is met, as far as it is the same in all versions, and what helps.
_HELP = {
    "accounting/qos policy": "A limit of your account, QOS or partition is met, such as the number of jobs at a time "
    "or their size (`sacctmgr show qos`, `sacctmgr show assoc user=$USER`): let fewer jobs execute more runs each "
    "(hydra.launcher.total_runs_per_node), ask for less, or wait until earlier jobs are over.",
    "temporarily unable to accept job": "Slurm holds as many jobs as it can (MaxJobCount in its configuration): let "
    "fewer jobs execute more runs each (hydra.launcher.total_runs_per_node), or try again later.",
    "invalid job array": "The array is larger than Slurm takes here: let fewer jobs execute more runs each "
    "(hydra.launcher.total_runs_per_node).",
}


@dataclass(frozen=True)
class Limits:
    """What Slurm's configuration says.

    Attributes:
        array_size: how many jobs an array may have; 1 where there are no arrays.
        jobs: how many jobs Slurm holds at a time, of all users; None if that is not known.
    """

    array_size: int = DEFAULT_ARRAY_SIZE
    jobs: int | None = None


def limits() -> Limits:
    """Ask Slurm. Where it does not say, its defaults are taken to hold."""
    try:
        answer = require(run("scontrol", ["show", "config"], timeout_s=_TIMEOUT_S), "scontrol")
    except SlurmError:
        return Limits()  # if it matters, sbatch is about to say more
    found: dict[str, int] = {}
    for line in answer.lines:
        name, _, value = (part.strip() for part in line.partition("="))
        if value.isascii() and value.isdigit() and len(value) < 10:
            found.setdefault(name, int(value))
    return Limits(max(1, found.get("MaxArraySize", DEFAULT_ARRAY_SIZE)), found.get("MaxJobCount"))


def what_helps(words: str) -> str:
    """What to do about a refusal of sbatch's that comes of a limit, as a sentence; empty for all others."""
    return next((help for said, help in _HELP.items() if said in words.lower()), "")
