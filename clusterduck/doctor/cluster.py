"""Slurm as seen from this host, and the file system and software as seen from two of its nodes."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clusterduck.doctor import between, host
from clusterduck.doctor.finding import Finding, Level
from clusterduck.errors import SlurmError
from clusterduck.slurm import probe


def check_commands() -> Iterator[Finding]:
    """Which of Slurm's commands are here, and whether those that tell something do."""
    tested = "Slurm's commands"
    missing = probe.missing_commands()
    if len(missing) == len(probe.COMMANDS):
        yield Finding("slurm", tested, "none of them is on this host's PATH: only clusterduck_local works here")
        return
    if missing:
        yield Finding(
            "slurm",
            tested,
            f"{', '.join(missing)} are missing",
            Level.BAD if set(missing) & {"sbatch", "squeue"} else Level.NOTE,
            "Install Slurm's client commands, or put them on the PATH: " + "; ".join(map(_loss, missing)) + ".",
        )
    for question in probe.QUESTIONS:
        if question.command in missing:
            continue
        try:
            answer = probe.ask(question)
        except SlurmError as error:
            yield Finding("slurm", question.tested, str(error), *_consequence(question))
        else:
            yield Finding("slurm", question.tested, answer)


def check_two_nodes(scratch: Path) -> Iterator[Finding]:
    """A short job on two nodes, in an empty folder that both should see."""
    if "srun" in probe.missing_commands():
        yield Finding("nodes", "a job on two nodes", "there is no srun on this host's PATH", Level.BAD)
        return
    try:
        lines = probe.run_on_two_nodes([sys.executable, "-m", "clusterduck.doctor.pair", str(scratch)])
    except SlurmError as error:
        yield Finding(
            "nodes",
            "a job on two nodes",
            str(error),
            Level.BAD,
            "If no nodes were free, try again later. SLURM_PARTITION, SLURM_ACCOUNT and SLURM_TIMELIMIT in the "
            "environment say what srun needs to be told here.",
        )
        return
    told = between.answers(lines)
    names = " and ".join(str(answer.get("host")) for answer in told)
    yield from between.judge(told, f"between the nodes {names}" if told else "between two nodes")
    yield from between.judge_clocks(told)
    yield from judge_nodes(told)


def judge_nodes(told: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Whether the nodes have the Python and the packages that this host has, and what they have of their own."""
    mine = host.packages()
    for answer in told:
        theirs = answer.get("facts") or {}
        name = f"Python and packages on {answer.get('host')}"
        differences = []
        if str(theirs.get("python")).split(".")[:2] != platform.python_version().split(".")[:2]:
            differences.append(f"Python {theirs.get('python')} there, {platform.python_version()} here")
        versions = theirs.get("packages") or {}
        differences += [
            f"{package} {versions.get(package)} there, {version} here"
            for package, version in mine.items()
            if versions.get(package) != version
        ]
        if differences:
            advice = "Use one environment for both, on the shared file system, or set hydra.launcher.python."
            yield Finding("packages", name, "; ".join(differences), Level.BAD, advice)
        else:
            yield Finding("packages", name, "the same as here")
        count = theirs.get("gpus")
        yield Finding(
            "nvml",
            f"GPUs that NVML shows on {answer.get('host')}",
            "no NVML" if count is None else f"{count} GPUs; this job asked for none",
        )


def _loss(command: str) -> str:
    return {
        "sbatch": "without sbatch nothing can be submitted",
        "squeue": "without squeue nobody knows how jobs stand",
        "scancel": "without scancel jobs cannot be cancelled",
        "sacct": "without sacct, jobs that ended long ago are told by their agents alone",
        "scontrol": "without scontrol, jobs cannot be put back",
        "srun": "without srun no job of several nodes starts",
    }[command]


def _consequence(question: probe.Question) -> tuple[Level, str]:
    if question.command == "sacct":
        return Level.NOTE, "Without accounting, how a job ended is known for some minutes only; clusterduck manages."
    return Level.BAD, "Ask those who run the cluster, if it stays so."
