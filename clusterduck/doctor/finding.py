"""What a check found, and how a check that hangs is kept from hanging everything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from clusterduck.errors import ClusterduckError


class Level(Enum):
    """How a finding is to be taken: all is well, worth knowing, or something will not work."""

    GOOD = "good"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        check: a short name that stays, for programs.
        tested: what was tested, in words.
        found: what was found.
        level: how that is to be taken.
        advice: what to do; empty where there is nothing to do.
    """

    check: str
    tested: str
    found: str
    level: Level = Level.GOOD
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A check that was not carried out yet.

    Attributes:
        name: as ``Finding.check`` where it fails.
        tested: what it tests, in words.
        look: does it.
        limit_s: how long it may take, in seconds.
    """

    name: str
    tested: str
    look: Callable[[], Iterable[Finding]]
    limit_s: float = 5.0


def carry_out(check: Check, limit_s: float) -> list[Finding]:
    """The findings of a check; one that hangs, as a dead file server makes it, is left behind and said to."""
    found: list[Finding] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            found.extend(check.look())
        except Exception as error:  # a check that fails must not keep the others from being made
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True, name=f"doctor: {check.name}")
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        return [
            Finding(
                check.name,
                check.tested,
                f"no answer within {limit_s:.0f} s",
                Level.BAD,
                "Try again; if it stays so, the file server or the host is overloaded or down: ask those who run it.",
            )
        ]
    if failed:
        return [*found, _failure(check, failed[0])]
    return list(found)


def _failure(check: Check, error: Exception) -> Finding:
    if isinstance(error, ClusterduckError):
        return Finding(check.name, check.tested, str(error), Level.BAD)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return Finding(check.name, check.tested, f"{where}{error.strerror or error}", Level.BAD)
    return Finding(check.name, check.tested, f"could not be tested ({type(error).__name__}: {error})", Level.NOTE)
