"""What is told of how a run ended: its report, which the agent puts on record, and its result file with all of it."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import cloudpickle
import hydra.core.utils
from omegaconf import OmegaConf

from clusterduck.errors import RunFailedError
from clusterduck.model import Attempt, ReturnValueLost, State
from clusterduck.result import with_lost_result, write_or_keep

#: The longest traceback, message and return value (as JSON) that go into the journal, in characters. The result file
# has all.
TRACEBACK_CHARS, MESSAGE_CHARS, RETURN_VALUE_CHARS = 32_000, 2_000, 16_000

#: For how long a result that the file system refuses is tried again, in seconds, before it is left to the agent.
RESULT_PATIENCE_S = 2.0

#: For how long the file system may take nothing of a result, in seconds, before that is left to the agent too.
RESULT_STALL_S = 10.0

#: Where Hydra's and our own frames lie, between the process's beginning and the user's function.
_NOT_THE_USERS = (
    hydra.core.utils.__file__,
    *(str(Path(__file__).with_name(name)) for name in ("run.py", "standby.py")),
)


class Outcome:
    """How a run ended, as Hydra tells it.

    Args:
        answer: what ``run_job`` gave, or would have.
        attempt: which attempt it was.
        say: prints a line into the run's log.

    Attributes:
        report: what the agent is told: state, reason, and what was returned or raised.
    """

    def __init__(self, answer: hydra.core.utils.JobReturn, attempt: Attempt, say: Callable[[str], None]) -> None:
        self._answer = answer
        self._attempt = attempt
        self._say = say
        self.report = self._report()

    def _report(self) -> dict[str, Any]:
        answer = self._answer
        report: dict[str, Any] = {"state": State.COMPLETED.value, "reason": ""}
        if answer.status is hydra.core.utils.JobStatus.COMPLETED:
            report["return_value"] = as_json(answer._return_value)
            return report
        error = answer._return_value
        own = isinstance(error, RunFailedError) and error.__cause__ is not None
        cause = error.__cause__ if own and error.__cause__ is not None else error  # what the user's code raised
        lines = "".join(traceback.format_exception(type(cause), cause, _users_frames(cause.__traceback__)))
        with contextlib.suppress(OSError):  # the disk that the log is on may be full
            print(lines, file=sys.stderr, end="")  # noqa: T201 - the run's own log
        message = _text_of(error)
        first_line = message.strip().partition("\n")[0][:300]
        report |= {
            "state": State.FAILED.value,
            "reason": first_line if own else f"{type(error).__name__}: {first_line}".rstrip(": "),
            "exception_type": _qualified_name(type(cause)),
            "exception_message": message[:MESSAGE_CHARS],
            "traceback": lines if len(lines) <= TRACEBACK_CHARS else "…" + lines[-TRACEBACK_CHARS:],
        }
        return report

    def keep(self, target: Path, scratch: Path) -> None:
        """Write the result file: all of it, or as much as can be pickled; the report tells what became of it.

        Args:
            target: where it is to lie.
            scratch: a folder on the node's own disk, where it is kept if the file system does not take it.
        """
        answer, report = self._answer, self.report
        if isinstance(answer._return_value, BaseException):
            answer._return_value = _carried_over(answer._return_value, self._attempt.run)
        failure = ""
        for leave_out in (None, self._leave_out_value, self._leave_out_configuration):
            if leave_out is not None:
                leave_out(failure)
            try:
                self._write(target, scratch / target.name)
            except OSError as error:
                report["reason"] = with_lost_result(report["reason"], error)
                report["result_lost"] = True
                self._say(report["reason"])
                return
            except Exception as error:
                failure = f"{type(error).__name__}: {_text_of(error)}"
                continue
            return

    def _write(self, target: Path, kept: Path) -> None:
        """Write the result; where the file system goes on refusing or hangs, onto the node's own disk, for the agent to
        put in place."""
        report, dump = self.report, functools.partial(_dump, self._answer)
        why = write_or_keep(target, kept, dump, report, refused_s=RESULT_PATIENCE_S, stalled_s=RESULT_STALL_S)
        if why is not None:  # the agent says so: this run's own log may hang just as well
            report |= {"result_kept": str(kept), "kept_because": why}
        report["result"] = str(target)

    def _leave_out_value(self, failure: str) -> None:
        answer, report = self._answer, self.report
        value = answer._return_value
        name = _qualified_name(type(value))
        if isinstance(value, BaseException):
            answer._return_value = RunFailedError(report["reason"], self._attempt.run)
        else:
            answer._return_value = ReturnValueLost(name, failure)
            report["reason"] = f"its return value, a {name}, could not be pickled: {failure}"[:MESSAGE_CHARS]
            self._say(report["reason"])

    def _leave_out_configuration(self, failure: str) -> None:
        self._answer.cfg = self._answer.hydra_cfg = None
        self._say(f"the configuration is left out of the result, it could not be pickled: {failure}")


def as_json(value: Any) -> str | None:
    """The value as JSON text, if it is JSON (a NumPy scalar or zero-dimensional array counts as its number) and not too
    long.

    ``nan`` and the infinities, which JSON does not have, become the strings "nan", "inf" and "-inf".
    """
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        value = item()
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, float) and not math.isfinite(value):
        value = str(value)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return text if len(text) <= RETURN_VALUE_CHARS else None


def _dump(answer: hydra.core.utils.JobReturn, file: IO[bytes]) -> None:
    cloudpickle.dump(answer, file)


def _carried_over(error: BaseException, run: int) -> BaseException:
    """The exception itself if it survives pickling, else one that says what it said."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        return RunFailedError(f"{_qualified_name(type(error))}: {_text_of(error)}", run)
    return error


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"(its message cannot be shown: {type(second).__name__})"


def _users_frames(frames: TracebackType | None) -> TracebackType | None:
    """The traceback from the user's own first frame on, if there is one: Hydra's and ours above it say nothing."""
    users = frames
    while users is not None and users.tb_frame.f_code.co_filename in _NOT_THE_USERS:
        users = users.tb_next
    return users or frames


def _qualified_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
