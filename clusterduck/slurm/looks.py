"""What was last heard of jobs, kept in a small file so that all of a user's processes on a host share one question.

While Slurm does not answer, it holds what was heard before, with the time of that. It also remembers since when a job
is found over, so that two looks can be compared although each was another process's. Losing the file costs one
question more.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clusterduck.errors import SlurmError
from clusterduck.slurm.jobs import ABSENT, UNKNOWN, JobStatus

#: Sweep and batch.
Key = tuple[str, str]

#: Seconds within which an answer is used again, and a failure is not tried again.
INTERVAL_S = 3.0
INTERVAL_AFTER_FAILURE_S = 15.0

#: Seconds between two tries to be the one who asks.
_RETRY_S = 0.05


class Looks:
    """The file, as it was when this process last looked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._asked_at = 0.0
        self._trouble: str | None = None
        self._jobs: dict[Key, tuple[JobStatus, float]] = {}  # and when it was heard
        self._over_since: dict[Key, float] = {}

    def look(
        self,
        keys: Mapping[Key, str],
        question: Callable[[], Mapping[Key, JobStatus]],
        others: Mapping[Key, JobStatus],
        patience_s: float,
    ) -> str | None:
        """Have an answer about all these jobs that is a few seconds old at most, or what was heard before.

        Args:
            keys: the batches that Slurm has, each with its job's id.
            question: asks Slurm. Called only if nobody on this host did so a moment ago.
            others: what was found by other means about batches that Slurm does not have.
            patience_s: how long to wait for somebody else of this host who is asking.

        Returns:
            One sentence if Slurm could not be asked.
        """
        with _alone(self._path.with_name(f"{self._path.name}.lock"), patience_s) as is_alone:
            self._read()
            if keys and not self._is_fresh(keys):
                if is_alone:
                    self._ask(keys, question)
                else:
                    self._asked_at = time.time()
                    self._trouble = "Slurm does not answer: another process of this host has been asking for a while."
            self._note(others)
            kept = {*keys, *others}
            self._jobs = {key: heard for key, heard in self._jobs.items() if key in kept}
            self._over_since = {key: since for key, since in self._over_since.items() if key in kept}
            if is_alone:
                self._write()
        return self._trouble if keys else None

    def status(self, key: Key) -> JobStatus | None:
        """What was last heard of a batch's job; None if nothing ever was."""
        status, heard_at = self._jobs.get(key, (None, 0.0))
        if status is None or self._trouble is None or heard_at >= self._asked_at:
            return status
        left = status.time_left_s
        if left is not None and status.state == "RUNNING":
            left = max(0.0, left - max(0.0, time.time() - heard_at))
        return replace(status, as_of=heard_at, time_left_s=left)

    def heard_at(self, key: Key) -> float:
        """When anything was last heard of a batch's job, in seconds since the epoch; 0 if nothing ever was."""
        return self._jobs[key][1] if key in self._jobs else 0.0

    def over_since(self, key: Key) -> float | None:
        """When the job was first found ended or absent, with nothing heard since that says otherwise; else None."""
        return self._over_since.get(key)

    def _ask(self, keys: Mapping[Key, str], question: Callable[[], Mapping[Key, JobStatus]]) -> None:
        for key in [key for key, job in keys.items() if key in self._jobs and self._jobs[key][0].job_id != job]:
            del self._jobs[key]
        try:
            answer = question()
        except SlurmError as error:
            self._trouble, self._asked_at = str(error), time.time()
        else:
            self._trouble, self._asked_at = None, time.time()
            self._note(answer)

    def _note(self, answer: Mapping[Key, JobStatus]) -> None:
        now = time.time()
        for key, status in answer.items():
            self._jobs[key] = status, now
            if status.is_over or status.state == ABSENT:
                self._over_since.setdefault(key, now)
            elif status.state != UNKNOWN:
                self._over_since.pop(key, None)

    def _is_fresh(self, keys: Mapping[Key, str]) -> bool:
        age = time.time() - self._asked_at
        if self._trouble is not None:
            return 0 <= age < INTERVAL_AFTER_FAILURE_S
        known = all(key in self._jobs and self._jobs[key][0].job_id == job for key, job in keys.items())
        return known and 0 <= age < INTERVAL_S

    def _read(self) -> None:
        try:
            data = json.loads(self._path.read_text(encoding="ascii"))
            for sweep, batch, since, heard_at, status in data["jobs"]:
                key = (str(sweep), str(batch))
                self._jobs[key] = _status(status), float(heard_at)
                if since is None:
                    self._over_since.pop(key, None)
                else:
                    self._over_since[key] = float(since)
            trouble = data["trouble"]
            self._trouble = None if trouble is None else str(trouble)
            self._asked_at = float(data["asked_at"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return  # none yet, or a foreign one: what could be read of it is kept, and Slurm will be asked

    def _write(self) -> None:
        jobs = [
            [*key, self._over_since.get(key), heard_at, asdict(status)]
            for key, (status, heard_at) in self._jobs.items()
        ]
        data = {"asked_at": self._asked_at, "trouble": self._trouble, "jobs": jobs}
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with suppress(OSError):  # a full disk: the next process asks again
            beside.write_text(json.dumps(data), encoding="ascii")
            os.replace(beside, self._path)


def _status(data: Mapping[str, Any]) -> JobStatus:
    status = JobStatus(**data)
    return replace(status, job_id=str(status.job_id), state=str(status.state), reason=str(status.reason))


@contextmanager
def _alone(path: Path, patience_s: float) -> Iterator[bool]:
    """Hold a lock among this host's processes, if its file can be had; whoever has it asks for all who wait.

    False if another process held it all the time; True also where there can be no such file.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield True
        return
    try:
        yield _lock(fd, time.monotonic() + patience_s)
    finally:
        os.close(fd)  # which gives the lock back; the kernel does so too if its holder dies


def _lock(fd: int, until: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_RETRY_S)
        else:
            return True
