"""What ``launch()`` hands back to the sweeper: one object per run, in the order of the overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException

from clusterduck.errors import RunFailedError
from clusterduck.events import AttemptEnded
from clusterduck.launch.show import printable
from clusterduck.launch.watch import RunView
from clusterduck.model import ReturnValueLost, State
from clusterduck.result import read_job_return


class SubmittedRun(JobReturn):
    """Stands for a run that nobody waited for: its return value is None, and asking for it raises nothing."""

    @property
    def return_value(self) -> Any:
        """Always None; the ledger has it once the run is over."""
        return None

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


class RunFailedHereError(RunFailedError, CompactHydraException):
    """A failure without a traceback of its own; Hydra prints it without the sweeper's, which explains nothing."""


class RemoteTraceback(Exception):
    """The traceback of a run's exception, as the cause of that exception here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._text = "\n".join(printable(line) for line in text.splitlines())

    def __str__(self) -> str:
        return f'\n"""\n{self._text.rstrip()}\n"""'


def of_run(sweep: str, number: int, overrides: list[str], view: RunView | None, why_not_run: str) -> JobReturn:
    """The run's JobReturn: its own, or one that raises what became of it.

    Args:
        sweep: the sweep's id.
        number: the run's.
        overrides: the run's.
        view: what the journals say of the run.
        why_not_run: the reason to give for a run that never began.
    """
    ended = view.end if view is not None else None
    if view is None or ended is None:
        closed = view.closed if view is not None else None
        state, reason = (closed.state, closed.reason) if closed is not None else (State.PENDING.value, why_not_run)
        return _failed(overrides, RunFailedHereError(f"Run {sweep}/{number} never began: {reason}", number, state))
    answer: Any = None
    trouble = "it left no result"
    if ended.result is not None:
        try:
            answer = read_job_return(Path(ended.result))
        except Exception as error:  # unpickling calls the user's code, which may raise anything
            trouble = f"its result cannot be read here ({type(error).__name__}: {error})"
    if ended.state == State.COMPLETED.value:
        if isinstance(answer, JobReturn) and answer.status is JobStatus.COMPLETED:
            return answer
        return JobReturn(
            overrides=overrides, status=JobStatus.COMPLETED, _return_value=ReturnValueLost("value", trouble)
        )
    if isinstance(answer, JobReturn) and isinstance(answer._return_value, Exception):
        answer.status = JobStatus.FAILED
        own = answer._return_value
        if ended.traceback and getattr(answer, "_remote_traceback", None) is None and own.__cause__ is None:
            own.__cause__ = RemoteTraceback(ended.traceback)
        return answer
    return _failed(overrides, _error_of(sweep, number, ended))


def _error_of(sweep: str, number: int, ended: AttemptEnded) -> RunFailedError:
    said = f"Run {sweep}/{number} ended as {ended.state}: {ended.reason or 'no reason was given'}"
    if not ended.traceback:
        return RunFailedHereError(said, number, ended.state)
    error = RunFailedError(said, number, ended.state)
    error.__cause__ = RemoteTraceback(ended.traceback)
    return error


def _failed(overrides: list[str], error: Exception) -> JobReturn:
    return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=error)
