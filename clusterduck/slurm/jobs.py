"""What Slurm says about jobs: one batched squeue call, and one sacct call for those that squeue no longer lists.

squeue is the better witness: it asks the controller, knows ended jobs for a few minutes, and needs no accounting. sacct
lags it by seconds and is missing on many clusters. A missing row is reported as ``ABSENT``, a failed command or rubbish
as an error; none of them is turned into an end.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from clusterduck.errors import SlurmError
from clusterduck.slurm.command import QUICK_S, TIMEOUT_S, require, run
from clusterduck.slurm.squeue import ROW_ID, squeue

#: The state of a job of which nothing can be learned now.
UNKNOWN = "UNKNOWN"

#: The state of a job that Slurm was asked about, and did not list.
ABSENT = "ABSENT"

#: The reason of an absent job whose id Slurm has given to another one.
OF_ANOTHER = "its id belongs to another job"

#: Slurm's states of a job that will do nothing more. Everything else may still run, also words we have never heard.
OVER = frozenset(
    (
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "OUT_OF_MEMORY",
        "NODE_FAIL",
        "PREEMPTED",
        "BOOT_FAIL",
        "DEADLINE",
        "LAUNCH_FAILED",
        "RECONFIG_FAIL",
    )
)

#: States of an accounting record after which the same job may go on under the same id.
_REQUEUED = frozenset(("REQUEUED", "NODE_FAIL", "PREEMPTED", "RESIZING"))

#: Slurm's reasons that tell how a job ended; all its others tell why one waits.
_REASONS_OF_ENDS = frozenset(
    (
        "NonZeroExitCode",
        "RaisedSignal",
        "TimeLimit",
        "InactiveLimit",
        "NodeDown",
        "SystemFailure",
        "JobLaunchFailure",
        "FrontEndDown",
        "OutOfMemory",
        "DeadLine",
    )
)

#: Seconds that the controller's clock and ours, and the moment we noted down, may differ from when Slurm took the job.
SUBMIT_SLACK_S = 300.0

#: Jobs to a call, so that the list stays far below the longest argument that Linux takes.
_JOBS_PER_CALL = 5000

#: Seconds to wait for what merely makes a sentence fuller.
_DETAIL_TIMEOUT_S = 5.0

#: What slurmd gives as the signal that ended a job of which it could not open the output file.
_NO_OUTPUT_FILE = 53

_JOB_ID = re.compile(r"[0-9]{1,18}(_[0-9]{1,9})?", re.ASCII)
_DURATION = re.compile(r"(?:([0-9]{1,6})-)?(?:([0-9]{1,4}):)?([0-9]{1,4}):([0-9]{1,2})", re.ASCII)
_EPOCH = re.compile(r"[0-9]{1,11}", re.ASCII)
_STATE = re.compile(r"[A-Z_]{2,32}", re.ASCII)

_SQUEUE_COLUMNS = ("%T", "%V", "%S", "%L", "%D", "%r")
_SACCT_FORMAT = "JobID,State,Submit,Start,NNodes,Reason"


@dataclass(frozen=True)
class JobStatus:
    """How a job stands, as Slurm says.

    Attributes:
        job_id: as it was asked for, ``123`` or ``123_4``.
        state: Slurm's word in full (``RUNNING``), ``ABSENT`` or ``UNKNOWN``.
        reason: why it waits or how it ended, in Slurm's words; empty where it has none.
        start_estimate: when a waiting job is expected to start (seconds since the epoch).
        time_left_s: until its time limit; None where there is none or it is not known.
        nodes: how many nodes it has or waits for.
        submitted_at: when Slurm took it, or requeued it last (seconds since the epoch).
        as_of: when Slurm said all this (seconds since the epoch), if it could not be asked since; None: just now.
    """

    job_id: str
    state: str
    reason: str = ""
    start_estimate: float | None = None
    time_left_s: float | None = None
    nodes: int | None = None
    submitted_at: float | None = None
    as_of: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether Slurm itself says that the job has ended. False for a job that it does not list, and for one that
        it cannot be asked about now: it may have been started again."""
        return self.state in OVER and self.as_of is None


def is_job_id(text: str) -> bool:
    """Whether this is a job's id, and so may be given to a command."""
    return _JOB_ID.fullmatch(text) is not None


def checked(job_id: str) -> str:
    """The id, if it is one.

    Raises:
        SlurmError: if it is not.
    """
    if not is_job_id(job_id):
        raise SlurmError(f"{job_id!r} is not the id of a Slurm job.")
    return job_id


def look_up(jobs: Mapping[str, float | None], timeout_s: float = TIMEOUT_S) -> dict[str, JobStatus]:
    """Ask Slurm about jobs: their ids, each with the time at which it was submitted where that is known.

    The time tells ours from an older or a later job of the same id: such a row counts as none. Every id that was asked
    for is in the answer; what is no job id at all is ``UNKNOWN`` and never reaches a command.

    Args:
        jobs: the ids, and the times.
        timeout_s: for each command.

    Raises:
        SlurmError: if squeue did not answer, or with rubbish. That sacct did not is no error: its jobs are then
            ``ABSENT``.
    """
    answer = {job: JobStatus(job, UNKNOWN, reason="not a job id") for job in jobs if not is_job_id(job)}
    wanted = {job: at for job, at in jobs.items() if job not in answer}
    for part in _parts(list(wanted), _JOBS_PER_CALL):
        listed = _squeue(part, timeout_s)
        for job in part:
            rows = listed.get(job, [])
            if rows:
                answer[job] = _ours_of_queue(rows[-1], wanted[job], timeout_s)
    missing = [job for job in wanted if job not in answer or answer[job].state == ABSENT]
    for part in _parts(missing, _JOBS_PER_CALL):
        recorded = _sacct(part, timeout_s)
        for job in part:
            found = _ours_of_records(recorded.get(job, []), wanted[job])
            if found is not None:
                answer[job] = found
            elif job not in answer:
                answer[job] = JobStatus(job, ABSENT, reason="Slurm does not list the job")
    return answer


def still_listed(jobs: Iterable[str], timeout_s: float = QUICK_S) -> set[str]:
    """Those of these jobs that squeue lists as anything but ended: waiting, running, ending, or put back to wait.

    Raises:
        SlurmError: if squeue did not answer, or with rubbish.
    """
    found: set[str] = set()
    for part in _parts([job for job in jobs if is_job_id(job)], _JOBS_PER_CALL):
        found |= {job for job, rows in _squeue(part, timeout_s).items() if rows and not rows[-1].is_over}
    return found


def is_denied(job_id: str, timeout_s: float = _DETAIL_TIMEOUT_S) -> bool:
    """Whether Slurm's controller itself says that it has no such job. (squeue leaves it out, as a broken one would.)

    Raises:
        SlurmError: if it cannot be asked.
    """
    answer = run("scontrol", ["--oneliner", "show", "job", checked(job_id)], timeout_s)
    said = " ".join((*answer.errors, *answer.lines))
    return answer.exit_code != 0 and ("Invalid job id specified" in said or f"Job {job_id} not found" in said)


def job_end_time(job_id: str, timeout_s: float = TIMEOUT_S) -> float | None:
    """When Slurm will end the job (seconds since the epoch), or None if it has no limit or Slurm does not say.

    Raises:
        SlurmError: if scontrol failed.
    """
    value = _job_field(job_id, "EndTime", timeout_s)
    return _epoch(value) if value is not None else None


def exit_words(job_id: str) -> str:
    """With which exit code, or by which signal, an ended job ended, in words; empty where Slurm does not say."""
    try:
        value = _job_field(job_id, "ExitCode", _DETAIL_TIMEOUT_S) or ""
    except SlurmError:
        return ""
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", value)
    code, number = (int(match[1]), int(match[2])) if match else (0, 0)
    if code == 0 and number == _NO_OUTPUT_FILE:
        return "its output file could not be opened"
    killer = number or (code - 128 if 128 < code < 160 else 0)  # a shell's way of saying that a command was killed
    by = f"killed by {_signal_name(killer)}" if killer else ""
    return f"exit code {code}{f', {by}' if by else ''}" if code else by


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _job_field(job_id: str, field: str, timeout_s: float = TIMEOUT_S) -> str | None:
    answer = require(run("scontrol", ["--oneliner", "show", "job", checked(job_id)], timeout_s), "scontrol")
    for line in answer.lines:
        match = re.search(rf"(?:^|\s){field}=(\S+)", line)
        if match:
            return match.group(1)
    return None


def _parts(jobs: list[str], size: int) -> Iterable[list[str]]:
    return (jobs[start : start + size] for start in range(0, len(jobs), size))


def _base_ids(jobs: Iterable[str]) -> str:
    """The ids without array indices, so that an array of thousands is one id."""
    return ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))


def _squeue(jobs: Sequence[str], timeout_s: float) -> dict[str, list[JobStatus]]:
    """The rows about these jobs. With rubbish among them, what is not listed counts as not answered."""
    listing = squeue([f"--jobs={_base_ids(jobs)}"], _SQUEUE_COLUMNS, timeout_s)
    found = _rows(listing.rows, frozenset(jobs), _squeue_row)
    if len(found) < len(set(jobs)):
        stateless = next(("|".join(row) for row in listing.rows if not _STATE.fullmatch(row[1])), None)
        replace(listing, rubbish=listing.rubbish or stateless).require_readable()
    return found


def _sacct(jobs: Sequence[str], timeout_s: float) -> dict[str, list[JobStatus]]:
    """Every record of these jobs in the order of submission; none where there is no accounting."""
    arguments = ["--noheader", "--parsable2", "--allocations", "--duplicates"]
    try:
        answer = run("sacct", [*arguments, f"--jobs={_base_ids(jobs)}", f"--format={_SACCT_FORMAT}"], timeout_s)
    except SlurmError:
        return {}
    if answer.exit_code != 0:
        return {}
    found = _rows((line.split("|") for line in answer.lines), frozenset(jobs), _sacct_row)
    return {job: sorted(rows, key=lambda row: row.submitted_at or 0.0) for job, rows in found.items()}


def _rows(
    rows: Iterable[Sequence[str]], wanted: frozenset[str], parse: Callable[[Sequence[str]], JobStatus | None]
) -> dict[str, list[JobStatus]]:
    """The rows about wanted jobs; what is no row (a warning, rubbish) is passed over."""
    found: dict[str, list[JobStatus]] = {}
    for fields in rows:
        match = ROW_ID.fullmatch(fields[0])
        status = parse(fields) if match else None
        if match is None or status is None:
            continue
        for job in _named(match, wanted):
            found.setdefault(job, []).append(replace(status, job_id=job))
    return found


def _named(row: re.Match[str], wanted: frozenset[str]) -> list[str]:
    """Which wanted jobs a row is about: ``123``, ``123_4``, or the waiting part of an array, ``123_[0-2,5%4]``."""
    base, index, ranges = row.groups()
    if ranges is None:
        job = base if index is None else f"{base}_{index}"
        return [job] if job in wanted else []
    return [job for job in wanted if job.startswith(f"{base}_") and _within(int(job.partition("_")[2]), ranges)]


def _within(index: int, ranges: str) -> bool:
    for part in ranges.partition("%")[0].split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+)(?::([0-9]+))?)?", part)
        if match:
            first = int(match.group(1))
            last = int(match.group(2) or first)
            step = int(match.group(3) or 1) or 1
            if first <= index <= last and (index - first) % step == 0:
                return True
    return False


def _squeue_row(fields: Sequence[str]) -> JobStatus | None:
    _, state, submitted, start, left, nodes, reason = fields
    if not _STATE.fullmatch(state):
        return None
    return JobStatus(
        job_id="",
        state=state,
        reason=_reason(reason, state),
        start_estimate=_epoch(start) if state == "PENDING" else None,
        time_left_s=_duration(left),
        nodes=_count(nodes),
        submitted_at=_epoch(submitted),
    )


def _sacct_row(fields: Sequence[str]) -> JobStatus | None:
    if len(fields) < 6:
        return None
    state, _, by = fields[1].partition(" ")  # "CANCELLED by 1000"
    if not _STATE.fullmatch(state):
        return None
    _, _, submitted, start, nodes, *reason = fields
    return JobStatus(
        job_id="",
        state=state,
        reason=f"{state} {by}" if by else _reason("|".join(reason), state),
        start_estimate=_epoch(start) if state == "PENDING" else None,
        nodes=_count(nodes) or None,
        submitted_at=_epoch(submitted),
    )


def _ours_of_queue(row: JobStatus, submitted_at: float | None, timeout_s: float) -> JobStatus:
    """The row, unless it is about another job of the same id. A requeue moves the time of submission forward."""
    if submitted_at is None or row.submitted_at is None or abs(row.submitted_at - submitted_at) <= SUBMIT_SLACK_S:
        return row
    if row.submitted_at > submitted_at:
        try:
            restarts = _job_field(row.job_id, "Restarts", timeout_s)
        except SlurmError:
            restarts = None
        if restarts != "0":
            return row
    return JobStatus(row.job_id, ABSENT, reason=OF_ANOTHER)


def _ours_of_records(rows: Sequence[JobStatus], submitted_at: float | None) -> JobStatus | None:
    """The last record that is about our job: the one submitted when ours was, or a requeue of that."""
    if submitted_at is None:
        return rows[-1] if rows else None
    ours: JobStatus | None = None
    for row in rows:
        near = row.submitted_at is not None and abs(row.submitted_at - submitted_at) <= SUBMIT_SLACK_S
        if near or (ours is not None and ours.state in _REQUEUED):
            ours = row
    return ours


def _reason(text: str, state: str) -> str:
    """A reason worth showing: an ended job still carries the one it once waited for."""
    if text in ("None", "(null)", "N/A", "Unknown") or (state in OVER and text not in _REASONS_OF_ENDS):
        return ""
    return text[:200]


def _epoch(text: str) -> float | None:
    return float(text) if _EPOCH.fullmatch(text) else None


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,7}", text) else None


def _duration(text: str) -> float | None:
    """``4:58``, ``1:02:03`` or ``2-03:04:05`` in seconds; None for ``UNLIMITED``, ``INVALID`` and the like."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
