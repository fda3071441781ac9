"""What a launch says to the person at the terminal: log lines, and the dry run of ``do_submit: false``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clusterduck.launch.options import Options
from clusterduck.launch.plan import Batch

#: How many runs are listed by their overrides; of more, only the first and the last.
LISTED = 20


def printable(text: str) -> str:
    """The text with everything a terminal would not print as it stands escaped: overrides may hold anything."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def runs(first: int, overrides: Sequence[list[str]]) -> Iterator[str]:
    """A line per run, with what distinguishes it; of many runs, the first and the last."""
    for at, run in enumerate(overrides):
        if len(overrides) > LISTED and LISTED - 1 <= at < len(overrides) - 1:
            if at == LISTED - 1:
                yield f"\t... {len(overrides) - LISTED} more ..."
            continue
        words = " ".join(override for override in run if not override.startswith("hydra."))
        yield f"\t#{first + at} : {printable(words)}"


def summary(options: Options, planned: Sequence[Batch], count: int) -> str:
    """How many runs go into how many jobs, in one sentence."""
    jobs = "1 job" if len(planned) == 1 else f"{len(planned)} jobs"
    where = "on this machine" if options.cluster == "local" else "to Slurm"
    nodes = f" on each of {options.nodes} nodes" if options.nodes > 1 else ""
    return f"{_runs(count)} in {jobs} {where}, {options.parallel_runs_per_node} at a time{nodes}"


def dry_run(options: Options, planned: Sequence[Batch], first: int, overrides: Sequence[list[str]]) -> Iterator[str]:
    """What would be submitted: each job with its runs, and for Slurm the sbatch file."""
    yield f"do_submit=false, so nothing is submitted. It would be: {summary(options, planned, len(overrides))}."
    for batch in planned:
        yield f"Job {batch.id}: {_runs(batch.stop - batch.first)}"
        yield from runs(batch.first, overrides[batch.first - first : batch.stop - first])
    if options.cluster == "slurm":
        from clusterduck.launch.submit import sbatch_file
        from clusterduck.slurm.limits import limits

        lines = sbatch_file(options, min(len(planned), limits().array_size)).splitlines()
        yield "\n".join(["The sbatch file:", *map(printable, lines)])  # in one piece, to be copied


def job_names(jobs: Sequence[str]) -> str:
    """The jobs by their ids; of many, the first few."""
    shown = ", ".join(jobs[:5]) + (f" and {len(jobs) - 5} more" if len(jobs) > 5 else "")
    return f"job {shown}" if len(jobs) == 1 else f"jobs {shown}"


def how_to_follow(sweep: str) -> str:
    """The commands that show how the sweep goes."""
    return f"`clusterduck status {sweep}` or `clusterduck-tui`"


def how_to_stop(options: Options, jobs: Sequence[str]) -> str:
    """The command that ends the jobs."""
    command = "scancel" if options.cluster == "slurm" else "kill"
    ids = list(dict.fromkeys(job.partition("_")[0] for job in jobs))
    shown = " ".join(ids[:10]) + (" ..." if len(ids) > 10 else "")
    return f"`{command} {shown}`"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
