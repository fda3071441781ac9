"""How many failed runs each sweep had when a person last looked, kept between sessions in a small file.

It lies beside the replica, in the person's private folder, and is as expendable: without it, what has failed before is
not counted as new. The feed's thread reads and writes it, so that no screen ever waits for a disk.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

#: The file's name, and the most that is read of it, in bytes.
NAME = "looked-at.json"
MOST_BYTES = 1 << 20


class Looks:
    """Asked and told by the app; opened and kept by the feed."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._counts: dict[str, int] = {}
        self._told: dict[str, int] = {}  # what is not in the file yet
        self._is_first_session = True

    def open(self, folder: Path) -> None:
        """Take what an earlier session kept in ``folder``; again for the same folder: nothing."""
        file = folder / NAME
        if file != self._file:
            self._file = file
            self._told = {}
            kept = _read(file)
            self._is_first_session = kept is None
            self._counts = kept or {}

    def new_failures(self, sweep: str, failures: int, *, is_caught_up: bool) -> int:
        """How many of a sweep's failures came since the last look at its runs.

        A sweep that was not there at the end of the last session is all new; before the first session there was no
        dashboard, so what had failed until then (all that is told before the ledger has caught up) is not.
        """
        before = self._counts.get(sweep)
        if before is None or (self._is_first_session and not is_caught_up):
            before = failures if self._is_first_session else 0
            self._note(sweep, before)
        return max(0, failures - before)

    def look(self, sweep: str, failures: int) -> None:
        """A sweep's runs are being looked at."""
        self._note(sweep, failures)

    def _note(self, sweep: str, failures: int) -> None:
        if self._counts.get(sweep) != failures:
            self._counts[sweep] = self._told[sweep] = failures

    def keep(self) -> None:
        """Write what is new into the file, beside what other dashboards keep there.

        Where that cannot be done, it holds for this session, and is tried again with the next change.
        """
        told, self._told = self._told, {}
        if not told or self._file is None:
            return
        new = self._file.with_name(f"{NAME}.{os.getpid()}-{secrets.token_hex(4)}")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                with os.fdopen(fd, "w", encoding="utf-8") as file:
                    json.dump({**(_read(self._file) or {}), **told}, file)
                os.replace(new, self._file)
            except OSError:
                new.unlink(missing_ok=True)
                raise
        except OSError:
            self._told = {**told, **self._told}


def _read(file: Path) -> dict[str, int] | None:
    """What the file holds; None if it is not there, or does not hold counts by sweep."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as opened:
            found = json.loads(opened.read(MOST_BYTES))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not all(type(count) is int for count in found.values()):
        return None
    return found
