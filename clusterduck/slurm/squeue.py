"""Ask squeue, whose answers all that is known of living jobs comes from, and do not take rubbish for an answer."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

from clusterduck.errors import SlurmError
from clusterduck.slurm.command import TIMEOUT_S, Answer, NoAnswerError, require, run

#: How a row begins: a job's id, ``123``, ``123_4``, or the waiting part of an array, ``123_[0-2,5%4]``.
ROW_ID = re.compile(r"([0-9]{1,18})(?:_(?:([0-9]{1,9})|\[([0-9,:%-]{1,2000})(?:\.\.\.)?\]))?", re.ASCII)

#: After it did not answer in time, squeue is not asked again by this process for so many seconds.
PAUSE_S = 15.0

#: What squeue prints above the jobs of each cluster, where there are several.
_HEADING = re.compile(r"CLUSTER: ?\S{1,100}")

#: The last time that a squeue (by its path) did not answer, and what was said then.
_silent: dict[str | None, tuple[float, str]] = {}


@dataclass(frozen=True)
class Listing:
    """What squeue listed: a row's fields for each job, and the first line that was neither a row nor a heading."""

    rows: tuple[tuple[str, ...], ...]
    rubbish: str | None = None

    def require_readable(self) -> None:
        """Make sure that a job that is not listed really was left out.

        Raises:
            SlurmError: if something else was printed than rows.
        """
        if self.rubbish is not None:
            raise SlurmError(f"Slurm's command squeue printed what is no list of jobs: {self.rubbish[:100]!r}.")


def squeue(options: Sequence[str], columns: Sequence[str], timeout_s: float = TIMEOUT_S) -> Listing:
    """Ask for jobs, ended ones that Slurm still remembers included.

    Args:
        options: which jobs.
        columns: the fields of a row as squeue names them ("%T"); the job's id is put before, the last may hold "|".
        timeout_s: how long it may take.

    Raises:
        SlurmError: if it failed, or did not answer now or a moment ago.
    """
    path = shutil.which("squeue")
    at, words = _silent.get(path, (float("-inf"), ""))
    if time.monotonic() - at < PAUSE_S:
        raise NoAnswerError(words)
    form = "|".join(("%i", *columns))
    try:
        answer = run("squeue", ["--noheader", "--array", "--states=all", *options, f"--format={form}"], timeout_s)
    except NoAnswerError as error:
        _silent[path] = time.monotonic(), str(error)
        raise
    if _knows_no_such_job(answer):
        return Listing(())
    rows, rubbish = [], None
    for line in require(answer, "squeue").lines:
        fields = tuple(line.split("|", len(columns)))
        if len(fields) > len(columns) and ROW_ID.fullmatch(fields[0]):
            rows.append(fields)
        elif rubbish is None and not _HEADING.fullmatch(line):
            rubbish = line
    return Listing(tuple(rows), rubbish)


def _knows_no_such_job(answer: Answer) -> bool:
    """Asked for one single job that it does not know, squeue fails; asked for several, it leaves out those."""
    return answer.exit_code != 0 and not answer.lines and "Invalid job id specified" in answer.complaint
