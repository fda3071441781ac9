"""One attempt in a slot, from the order to start it until all of it is gone, and the events that tell of it."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from clusterduck.agent.process import Exit, Verdict, judge
from clusterduck.events import AttemptEnded, AttemptLocated, AttemptStarted, FolderSetAside
from clusterduck.git import Commit
from clusterduck.model import Attempt, Slot, State
from clusterduck.paths import SweepPaths
from clusterduck.queue import Requeued


@dataclass
class Running:
    """An attempt in a slot.

    Attributes:
        launch: the launch whose payload it needs.
        requeued: what was said when it was put into the queue, if it was.
        log: where its output goes.
        tmpdirs: variable -> the folder of the run's own, removed after it.
        oom_kills_before: what the out-of-memory counter said at its start.
        was_prepared: whether its process may have waited for it.
        pid: its process, once there is one; also its process group and session.
        started_at: seconds since the epoch.
        report: what the run itself said at its end.
        run_dir: its folder, once Hydra has named it.
        with_job: whether it was asked to end because its job had to.
        remark: what is to be known of it besides how it ended.
        warned_of: how it ends if it ends itself after it was told that the job will have to.
        asked_to_end: the state and reason it ends with, if the agent has asked it to end.
        ended: the fork server's word on its exit (or why it could not be started), or our own wait().
        cleaning_since: since when (monotonic) what it left behind is being killed.
    """

    attempt: Attempt
    slot: Slot
    launch: int
    requeued: Requeued | None
    log: str
    tmpdirs: dict[str, str]
    oom_kills_before: int | None
    was_prepared: bool = False
    pid: int | None = None
    started_at: float | None = None
    report: dict[str, Any] = field(default_factory=dict)
    run_dir: str | None = None
    with_job: bool = False
    remark: str = ""
    warned_of: State | None = None
    asked_to_end: tuple[State, str] | None = None
    ended: dict[str, Any] | None = None
    cleaning_since: float | None = None

    def order(self, what: str = "start") -> dict[str, Any]:
        """The message that has the fork server ``start`` it, ``stand by`` for that, or ``dismiss`` what stands by."""
        return {
            "do": what,
            "attempt": str(self.attempt),
            "slot": self.slot.to_json(),
            "log": self.log,
            "tmpdirs": self.tmpdirs,
            "launch": self.launch,
            "overrides": list(self.requeued.overrides) if self.requeued else [],
            "as_submitted": self.requeued.as_submitted if self.requeued else True,
            "fresh": self.requeued.fresh if self.requeued else False,
            "folder": self.requeued.folder if self.requeued else None,
        }

    def started(self, sweep: SweepPaths, commit: Commit | None) -> AttemptStarted:
        """The event that its process exists; ``commit`` is where the code was."""
        assert self.pid is not None
        assert self.started_at is not None
        return AttemptStarted(
            time=self.started_at,
            run=self.attempt.run,
            attempt=self.attempt.number,
            slot=self.slot.index,
            pid=self.pid,
            log=sweep.kept(self.log),
            git_commit=commit.hash if commit else None,
            git_dirty=commit.dirty if commit else None,
        )

    def located(self, sweep: SweepPaths) -> AttemptLocated:
        """The event that Hydra has named its folder."""
        assert self.run_dir is not None
        run_dir, log = map(sweep.kept, (self.run_dir, self.log))
        return AttemptLocated(run=self.attempt.run, attempt=self.attempt.number, run_dir=run_dir, log=log)

    def set_aside(self, sweep: SweepPaths, run_dir: str, new_dir: str) -> FolderSetAside:
        """The event that what earlier attempts left has another name now."""
        old, new = map(sweep.kept, (run_dir, new_dir))
        return FolderSetAside(run=self.attempt.run, attempt=self.attempt.number, run_dir=old, new_dir=new)

    def verdict(self, oom_kills: int | None) -> Verdict:
        """How it ended; ``oom_kills`` is what the out-of-memory counter says now."""
        verdict = self._judged(oom_kills)
        return replace(verdict, reason="; ".join(filter(None, [verdict.reason, self.remark])))

    def _judged(self, oom_kills: int | None) -> Verdict:
        assert self.ended is not None
        if "error" in self.ended:
            return Verdict(State.FAILED, f"it could not be started: {self.ended['error']}", None, None)
        verdict = judge(
            Exit(
                status=self.ended["status"],
                report=self.report or None,
                oom_kills=None if oom_kills is None else oom_kills - (self.oom_kills_before or 0),
                asked_to_end=self.asked_to_end,
            )
        )
        if self.warned_of is not None and verdict.state is State.FAILED and verdict.signal is None:
            reason = f"ended itself after Slurm's warning: {verdict.reason}"
            return replace(verdict, state=self.warned_of, reason=reason, with_job=True)
        return replace(verdict, with_job=self.with_job and verdict.state is not State.COMPLETED)

    def ended_as(self, verdict: Verdict) -> AttemptEnded:
        """The event that all of it is gone."""
        assert self.ended is not None
        return AttemptEnded(
            run=self.attempt.run,
            attempt=self.attempt.number,
            state=verdict.state.value,
            reason=verdict.reason,
            exit_code=verdict.exit_code,
            signal=verdict.signal,
            exception_type=self.report.get("exception_type"),
            exception_message=self.report.get("exception_message"),
            traceback=self.report.get("traceback"),
            return_value=self.report.get("return_value"),
            started_at=self.started_at,
            peak_memory_bytes=self.ended.get("peak_memory_bytes"),
            cpu_time_s=self.ended.get("cpu_time_s"),
            result=self.report.get("result"),
            by_job_end=verdict.with_job,
        )


def own_tmpdirs(slot: Slot, environ: Mapping[str, str], sweep: str, attempt: Attempt) -> dict[str, str]:
    """A folder of the attempt's own below each of the slot's temporary folders (not made here, the run does that)."""
    name = f"{sweep}.{attempt}.{secrets.token_hex(4)}"
    return {
        variable: os.path.join(environ.get(variable) or tempfile.gettempdir(), name) for variable in slot.tmpdir_vars
    }
