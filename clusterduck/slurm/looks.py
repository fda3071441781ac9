"""What was last heard of jobs, kept in a small file so that all of a user's processes on a host share one question.

It also remembers since when a job is found over, so that two looks can be compared although each was another process's.
Losing the file costs one question more.
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


class Looks:
    """The file, as read when this was made and written by :meth:`save`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._asked_at = 0.0
        self._trouble: str | None = None
        self._jobs: dict[Key, JobStatus] = {}
        self._over_since: dict[Key, float] = {}
        self._read()

    def ask(self, keys: Mapping[Key, str], question: Callable[[], Mapping[Key, JobStatus]]) -> str | None:
        """Have an answer about all these jobs (batch -> job id) that is a few seconds old at most.

        Args:
            keys: the batches, each with its job's id.
            question: asks Slurm. Called only if nobody on this host did so a moment ago.

        Returns:
            One sentence if Slurm could not be asked; the jobs' states are then unknown.
        """
        with _alone(self._path.with_name(f"{self._path.name}.lock")):
            self._read()  # somebody else may have asked while we waited
            if self._is_fresh(keys):
                return self._trouble
            try:
                answer, self._trouble = dict(question()), None
            except SlurmError as error:
                answer = {key: JobStatus(job, UNKNOWN, reason="Slurm did not answer") for key, job in keys.items()}
                self._trouble = str(error)
            self._asked_at = time.time()
            self.note(answer)
            self._write()
        return self._trouble

    def note(self, answer: Mapping[Key, JobStatus]) -> None:
        """Take what was found about jobs now."""
        for key, status in answer.items():
            self._jobs[key] = status
            if status.is_over or status.state == ABSENT:
                self._over_since.setdefault(key, time.time())
            elif status.state != UNKNOWN:
                self._over_since.pop(key, None)

    def status(self, key: Key) -> JobStatus | None:
        """What was last heard of a batch's job."""
        return self._jobs.get(key)

    def over_since(self, key: Key) -> float | None:
        """When the job was first found ended or absent, with nothing heard since that says otherwise; else None."""
        return self._over_since.get(key)

    def save(self, keep: set[Key]) -> None:
        """Write what is known of these batches, and forget all others."""
        self._jobs = {key: status for key, status in self._jobs.items() if key in keep}
        self._over_since = {key: since for key, since in self._over_since.items() if key in keep}
        self._write()

    def _is_fresh(self, keys: Mapping[Key, str]) -> bool:
        age = time.time() - self._asked_at
        fresh = 0 <= age < (INTERVAL_S if self._trouble is None else INTERVAL_AFTER_FAILURE_S)
        return fresh and all(key in self._jobs and self._jobs[key].job_id == job for key, job in keys.items())

    def _read(self) -> None:
        try:
            data = json.loads(self._path.read_text(encoding="ascii"))
            for sweep, batch, since, status in data["jobs"]:
                key = (str(sweep), str(batch))
                self._jobs[key] = _status(status)
                if since is not None:
                    self._over_since[key] = float(since)
            trouble = data["trouble"]
            self._trouble = None if trouble is None else str(trouble)
            self._asked_at = float(data["asked_at"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return  # none yet, or a foreign one: what could be read of it is kept, and Slurm will be asked

    def _write(self) -> None:
        jobs = [[*key, self._over_since.get(key), asdict(status)] for key, status in self._jobs.items()]
        data = {"asked_at": self._asked_at, "trouble": self._trouble, "jobs": jobs}
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with suppress(OSError):  # a full disk: the next process asks again
            beside.write_text(json.dumps(data), encoding="ascii")
            os.replace(beside, self._path)


def _status(data: Mapping[str, Any]) -> JobStatus:
    status = JobStatus(**data)
    return replace(status, job_id=str(status.job_id), state=str(status.state), reason=str(status.reason))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock among this host's processes, if its file can be had; whoever has it asks for all who wait."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # given back by the kernel if its holder dies; commands have time-outs
        yield
    finally:
        os.close(fd)
