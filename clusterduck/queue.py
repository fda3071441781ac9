"""The queue of a sweep: which attempts nobody has claimed, and how one is claimed.

A claim is a symbolic link named ``<run>.<attempt>`` in the sweep's ``claims`` folder whose target names its owner.
Making one is exclusive and atomic on every shared file system we know, it is never followed, and it is whole from its
first instant.
"""

from __future__ import annotations

import itertools
import os
import secrets
from pathlib import Path

from clusterduck.model import Attempt


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

    def taken(self) -> set[Attempt]:
        """Every attempt that is claimed, by listing the folder once."""
        found = set()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                try:
                    found.add(Attempt.parse(entry.name))
                except ValueError:
                    continue  # not ours
        return found


def divide(first: int, stop: int, parts: int) -> list[tuple[int, int]]:
    """Cut the runs ``first`` up to ``stop`` into ``parts`` consecutive ranges whose sizes differ by at most one."""
    total = stop - first
    bounds = [first + total * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(bounds))


def order_of_looking(home: tuple[int, int], batch: tuple[int, int], everything: tuple[int, int] | None) -> list[int]:
    """The runs an agent tries to claim, best first: its home range, the rest of its batch, then (where runs are shared)
    the rest of the plan, beginning after its own batch so that agents do not meet in the normal case."""
    ordered = list(range(*home))
    ordered += [run for run in range(*batch) if not home[0] <= run < home[1]]
    if everything is not None:
        ordered += list(range(batch[1], everything[1]))
        ordered += list(range(everything[0], batch[0]))
    return ordered
