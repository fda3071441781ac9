"""The queue of a sweep: which attempts there are to be executed, which nobody has claimed, and how one is claimed.

The first attempt of every planned run is in the queue from the start. Further ones are put there by whoever wants a
run executed again: one small file each, named ``<run>.<attempt>``, made exclusively and whole, in the sweep's ``queue``
folder.

A claim is a symbolic link named ``<run>.<attempt>`` in the sweep's ``claims`` folder whose target names its owner.
Making one is exclusive and atomic on every shared file system we know, it is never followed, and it is whole from its
first instant.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clusterduck.errors import JournalError
from clusterduck.model import Attempt
from clusterduck.paths import SweepPaths, require_own_up_to

#: Who put an attempt into the queue: a person; an agent or a look at Slurm, by ``max_retries``; or a job that was
#: started again, for what its earlier agents left unfinished.
KINDS = ("person", "retry", "restart")


@dataclass(frozen=True)
class Requeued:
    """An attempt that somebody put into the queue.

    Attributes:
        attempt: the run and the number of the new attempt.
        launch: the launch whose payload has the run.
        kind: one of :data:`KINDS`.
        reason: why, for people.
        by: user and host, or the agent.
        overrides: what is added to the run's overrides, everything that earlier requeues added included.
        as_submitted: whether the pickled function runs; else the script or module is imported anew.
        fresh: whether the run's folder is moved aside first.
        reserved: whether only a job that was submitted for it takes it, because it was given other settings.
        folder: the run's folder, where the first attempt ran; None if none got that far.
        retries: how many of the run's attempts were put back by ``max_retries`` so far.
        losses: how many of the attempts that began, in a row up to the one before this, were lost with their node or
            agent.
        at: when, in seconds since the epoch.
    """

    attempt: Attempt
    launch: int
    kind: str
    reason: str
    by: str
    overrides: tuple[str, ...] = ()
    as_submitted: bool = True
    fresh: bool = False
    reserved: bool = False
    folder: str | None = None
    retries: int = 0
    losses: int = 0
    at: float = field(default_factory=time.time)


def following(
    attempt: Attempt,
    before: Requeued | None,
    *,
    launch: int,
    kind: str,
    reason: str,
    by: str,
    folder: str | None,
    losses: int = 0,
) -> Requeued:
    """The entry for the attempt after ``attempt``, which is to run the way that one did.

    Args:
        before: what was said when ``attempt`` itself was put into the queue, if it was.
        launch: the launch of the run, if nothing was said before.
        folder: where the run's folder is, if nothing was said before.
    """
    return Requeued(
        attempt=Attempt(attempt.run, attempt.number + 1),
        launch=before.launch if before else launch,
        kind=kind,
        reason=reason,
        by=by,
        overrides=before.overrides if before else (),
        as_submitted=before.as_submitted if before else True,
        folder=(before.folder if before else None) or folder,
        retries=(before.retries if before else 0) + (kind == "retry"),
        losses=losses,
    )


class Queue:
    """The attempts that were put into a sweep's queue."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sweep = SweepPaths(folder.parent)

    def put(self, entry: Requeued) -> bool:
        """Put an attempt into the queue. False if somebody else has put the same one there before.

        Raises:
            OSError: if the file system did not say yes or no; ask again.
        """
        folder = None if entry.folder is None else self._sweep.kept(entry.folder)
        data = json.dumps({**asdict(entry), "attempt": str(entry.attempt), "folder": folder}).encode("ascii")
        beside = self._folder / f".{entry.attempt}.{secrets.token_hex(6)}"
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(beside, self._folder / str(entry.attempt))
            except FileExistsError:
                # NFS may have carried out a request whose answer was lost: then both names are one file
                return os.stat(beside).st_nlink > 1
            return True
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)

    def listing(self) -> list[Attempt]:
        """Every attempt that was ever put there, claimed or not, lowest first, by listing the folder once."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(ValueError):
                    found.append(Attempt.parse(entry.name))
        return sorted(found)

    def read(self, attempt: Attempt) -> Requeued:
        """What was put there.

        Raises:
            OSError: if it cannot be read.
            JournalError: if it is not what :meth:`put` writes.
            UnsafePathError: if somebody else could have written it.
        """
        path = self._folder / str(attempt)
        require_own_up_to(path, self._folder.parent)
        try:
            data = json.loads(path.read_bytes())
            entry = Requeued(
                attempt=Attempt.parse(data["attempt"]),
                launch=int(data["launch"]),
                kind=str(data["kind"]),
                reason=str(data["reason"]),
                by=str(data["by"]),
                overrides=tuple(str(override) for override in data["overrides"]),
                as_submitted=bool(data["as_submitted"]),
                fresh=bool(data["fresh"]),
                reserved=bool(data.get("reserved", False)),
                folder=None if data["folder"] is None else self._sweep.place(str(data["folder"])),
                retries=int(data["retries"]),
                losses=int(data["losses"]),
                at=float(data["at"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise JournalError(f"{path} is no entry of a queue ({type(error).__name__}: {error}).") from None
        if entry.attempt != attempt or entry.kind not in KINDS:
            raise JournalError(f"{path} is no entry of a queue: it names attempt {entry.attempt}, kind {entry.kind!r}.")
        return entry


class Claims:
    """A sweep's claims, made for one owner and listed.

    The owner's name gets a nonce of its own, so that two processes never pass for each other, and one that asks again
    recognises its own claim.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder = folder
        self._target = f"{owner}/{secrets.token_hex(6)}"

    def claim(self, attempt: Attempt) -> bool:
        """Take an attempt. True means that it is ours and nobody else's, ever.

        NFS may carry out a request whose answer is lost and then answer the repeated one with "exists"; so on "exists"
        the link's target tells whether it was our own.

        Raises:
            OSError: if the file system did not say yes or no; ask again.
        """
        path = self._folder / str(attempt)
        try:
            os.symlink(self._target, path)
        except FileExistsError:
            return os.readlink(path) == self._target
        return True

    def release(self, attempt: Attempt) -> None:
        """Give back a claim of ours on an attempt that was never started, so that anybody may take it.

        Raises:
            OSError: if the file system did not say yes or no; ask again.
        """
        path = self._folder / str(attempt)
        try:
            if os.readlink(path) == self._target:
                os.unlink(path)
        except FileNotFoundError:
            return

    def owner(self, attempt: Attempt) -> str | None:
        """Who claimed the attempt (without the nonce), or None if nobody did."""
        try:
            return os.readlink(self._folder / str(attempt)).rpartition("/")[0]
        except FileNotFoundError:
            return None

    def names(self) -> frozenset[str]:
        """The names of all attempts that are claimed, by listing the folder once; anything else there may be, too."""
        return frozenset(os.listdir(self._folder))

    def taken(self) -> set[Attempt]:
        """Every attempt that is claimed, by listing the folder once."""
        found = set()
        for name in os.listdir(self._folder):
            try:
                found.add(Attempt.parse(name))
            except ValueError:
                continue  # not ours
        return found


def divide(first: int, stop: int, parts: int) -> list[tuple[int, int]]:
    """Cut the runs ``first`` up to ``stop`` into ``parts`` consecutive ranges whose sizes differ by at most one."""
    total = stop - first
    bounds = [first + total * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(bounds))


def longest_first(runs: Iterable[int], expected_s: Mapping[int, float]) -> list[int]:
    """The runs in the order in which they are best begun: the longest first, so that none of them is begun last.

    Of equal ones the lower number comes first. A run of which nothing is known counts as the median of the others.
    """
    middle = statistics.median(expected_s.values()) if expected_s else 0.0
    return sorted(runs, key=lambda run: (-expected_s.get(run, middle), run))


def order_of_looking(
    home: tuple[int, int],
    batch: tuple[int, int],
    everything: tuple[int, int] | None,
    expected_s: Mapping[int, float] | None = None,
) -> list[int]:
    """The runs an agent tries to claim, best first: its home range, the rest of its batch, then (where runs are shared)
    the rest of the plan, beginning after its own batch so that agents do not meet in the normal case. In each of the
    three the longest come first, where it is known how long some are expected to take."""
    parts = [list(range(*home)), [run for run in range(*batch) if not home[0] <= run < home[1]]]
    if everything is not None:
        parts.append([*range(batch[1], everything[1]), *range(everything[0], batch[0])])
    return [run for part in parts for run in (longest_first(part, expected_s) if expected_s else part)]
