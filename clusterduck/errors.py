"""Every error that clusterduck raises on purpose, so that callers can tell them from bugs.

The text of each is one or two plain sentences for the user: what was wrong, where, and what to do.
"""

from __future__ import annotations


class ClusterduckError(Exception):
    """Something the user can understand and act upon; shown without a traceback."""


class ConfigError(ClusterduckError):
    """A launcher option or a command's argument that cannot be carried out as given."""


class SubmissionError(ClusterduckError):
    """The cluster did not take a job; carries the cluster's own words."""


class DoubtfulSubmissionError(SubmissionError):
    """Nobody knows whether the cluster took a job.

    Attributes:
        jobs: how many jobs (an array's are submitted as one) this is about, the next of those to be submitted.
    """

    def __init__(self, message: str, jobs: int = 1) -> None:
        super().__init__(message)
        self.jobs = jobs


class SlurmError(ClusterduckError):
    """A Slurm command failed, was absent, too slow, or printed what nobody can read."""


class JournalError(ClusterduckError):
    """A journal that cannot be read: of a newer version, or not a journal at all."""


class LedgerError(ClusterduckError):
    """A ledger or replica that cannot be used: corrupt, foreign, of another version, or another user's."""


class NotFoundError(ClusterduckError):
    """A sweep, run, or ledger that was named but is not there."""


class UnsafePathError(ClusterduckError):
    """A file or folder that another user owns or could write, where only the owner's may be trusted."""


class RunFailedError(ClusterduckError):
    """A run that ended unsuccessfully without an exception of its own, or with one that could not be carried over.

    Attributes:
        run: the run's number in its sweep.
        state: how it ended, e.g. ``OUT_OF_MEMORY``.
    """

    def __init__(self, message: str, run: int = -1, state: str = "FAILED") -> None:
        super().__init__(message)
        self.run = run
        self.state = state

    def __reduce__(self) -> tuple[type[RunFailedError], tuple[str, int, str]]:
        return type(self), (str(self), self.run, self.state)
