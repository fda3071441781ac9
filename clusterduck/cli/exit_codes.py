"""The command line's exit codes, which scripts may rely on."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_COMPLETED = 4
    TIMEOUT = 5
    STUCK = 6
    INTERRUPTED = 130
    BROKEN_PIPE = 141

    @property
    def meaning(self) -> str:
        """What it says to somebody who reads ``--help``."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "it was done",
    ExitCode.FAILED: "something could not be read or written; stderr says what",
    ExitCode.USAGE: "the command was not understood",
    ExitCode.NOT_FOUND: "there is no such ledger, sweep, run, attempt or log",
    ExitCode.NOT_COMPLETED: "wait: the runs have ended, and not all of them completed",
    ExitCode.TIMEOUT: "wait: the time given with --timeout is over",
    ExitCode.STUCK: "wait: runs are left that no live job will take",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
    ExitCode.BROKEN_PIPE: "whoever read the output stopped reading",
}


def epilog() -> str:
    """The exit codes as the last lines of ``--help``."""
    return "exit codes:\n" + "\n".join(f"  {code.value:<3} {code.meaning}" for code in ExitCode)
