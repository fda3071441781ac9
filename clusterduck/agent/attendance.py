"""Attends to the attempts in a node's slots: has them started, hears how they end, and sees to it that nothing stays
behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clusterduck import clock
from clusterduck.agent.errands import Errands
from clusterduck.agent.memory import OomCounter
from clusterduck.agent.process import ForkServer, Leftovers, Verdict, handles, signal_group
from clusterduck.agent.reports import Reports
from clusterduck.agent.running import Running, own_tmpdirs
from clusterduck.agent.settings import AgentSettings
from clusterduck.agent.starter import Starter
from clusterduck.agent.timers import Timers
from clusterduck.agent.writer import Writer
from clusterduck.git import Commit
from clusterduck.model import Attempt, Slot, State
from clusterduck.paths import SweepPaths
from clusterduck.queue import Requeued

#: For how long a run that died of SIGTERM waits for the agent to get one too, which tells that the job was ended, in
#: seconds.
SIGTERM_DOUBT_S = 2.0

#: For how long what a run left behind is killed again and again before its slot is used all the same, in seconds.
CLEANING_PATIENCE_S = 20.0


class Attendance:
    """The attempts in the slots right now.

    Args:
        settings: what the launch asked for.
        job_id: the job's id, for the runs.
        environ: what every run's environment starts from.
        reports: where the runs report to.
        scratch: a folder on the node's own disk, for results that cannot be written yet.
        payload_copy: where a launch's payload lies on the node's own disk.
        attach: called with each new fork server to have the wait loop watch it, and with one to be forgotten.
        timers, errands, writer: the agent's.
        on_begin: called with slot and process id when a run begins whose process was prepared ahead of time.
        on_end: called when all of an attempt is gone and its slot is free.
        say: prints a line into the job's log.

    Attributes:
        running: what each occupied slot holds.
        standing_by: slot -> what is prepared for when the run in it has ended.
        commit: which commit the code is at, as far as is known.
    """

    def __init__(
        self,
        *,
        settings: AgentSettings,
        job_id: str,
        environ: Mapping[str, str],
        reports: Reports,
        scratch: Path,
        payload_copy: Callable[[int], Path],
        attach: Callable[[ForkServer, bool], None],
        timers: Timers,
        errands: Errands,
        writer: Writer,
        on_begin: Callable[[int, int], None],
        on_end: Callable[[Running, Verdict], None],
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._sweep = SweepPaths(Path(settings.sweep_root))
        self._environ = environ
        self._reports = reports
        self._timers = timers
        self._errands = errands
        self._writer = writer
        self._on_begin = on_begin
        self._on_end = on_end
        self._say = say
        self._oom = OomCounter()
        self.commit: Commit | None = None
        self.running: dict[int, Running] = {}
        self.standing_by: dict[int, Running] = {}
        self._starter = Starter(
            environ=environ,
            common={
                "sweep_root": settings.sweep_root,
                "batch": settings.batch,
                "job_id": job_id,
                "verbose": settings.verbose,
                "prefetch": settings.prefetch,
                "preload": settings.preload,
                "report_address": reports.address,
                "scratch": str(scratch),
            },
            payload_copy=payload_copy,
            attach=attach,
            say=say,
        )

    @property
    def broken(self) -> bool:
        """Whether no fork server can be had."""
        return self._starter.broken

    @property
    def trouble(self) -> str | None:
        """Why the fork server can start no run at all, if so."""
        return self._starter.trouble

    def prepare(self, launch: int) -> None:
        """Have the fork server load a launch's payload, which must lie on the node's own disk."""
        self._starter.prepare(launch)

    def groups(self) -> Mapping[int, int]:
        """Which process group runs in which slot."""
        return {
            slot: running.pid
            for slot, running in list(self.running.items())
            if running.pid is not None and running.ended is None
        }

    def _find(self, attempt: str) -> Running | None:
        return next((running for running in self.running.values() if str(running.attempt) == attempt), None)

    def start(self, slot: Slot, attempt: Attempt, launch: int, requeued: Requeued | None) -> None:
        """Have an attempt started in a slot that is free: what was prepared for it goes on, if there is anything."""
        prepared = self.standing_by.pop(slot.index, None)
        running = prepared or self._make(slot, attempt, launch, requeued)
        assert running.attempt == attempt
        running.was_prepared = prepared is not None
        running.oom_kills_before = self._oom.kills()
        self.running[slot.index] = running
        self._starter.start(running)

    def stand_by(self, slot: Slot, attempt: Attempt, launch: int, requeued: Requeued | None) -> None:
        """Have an attempt prepared for a slot in which another one runs."""
        running = self._make(slot, attempt, launch, requeued)
        self.standing_by[slot.index] = running
        self._starter.stand_by(running)

    def dismiss(self, slot: int) -> None:
        """Have what was prepared for a slot end without a trace."""
        self._starter.dismiss(self.standing_by.pop(slot))

    def _make(self, slot: Slot, attempt: Attempt, launch: int, requeued: Requeued | None) -> Running:
        return Running(
            attempt=attempt,
            slot=slot,
            launch=launch,
            requeued=requeued,
            log=str(self._sweep.logs / f"{attempt}.log"),
            tmpdirs=own_tmpdirs(slot, self._environ, self._sweep.sweep, attempt),
            oom_kills_before=None,
        )

    def hear_server(self) -> None:
        """Take what the fork server has to say."""
        messages = self._starter.receive(
            lambda: [each for each in self.running.values() if each.pid is None],
            lambda: [each for each in self.running.values() if each.pid is not None and each.ended is None],
        )
        self.take_reports()  # what a run said comes before the news that it ended
        for message in messages:
            running = self._find(message["attempt"])
            if running is None:
                continue
            if message["did"] == "started":
                self._on_started(running, message["pid"])
            else:
                self._on_ended(running, message)

    def _on_started(self, running: Running, pid: int) -> None:
        running.pid = pid
        running.started_at = clock.now()
        if running.was_prepared:
            self._on_begin(running.slot.index, pid)
        if self._settings.verbose:
            self._say(f"run {running.attempt} starts in slot {running.slot.index} as process {pid}")
        self._writer.record([running.started(self._sweep, self.commit)])
        if running.asked_to_end is not None:  # before it existed
            self._press_to_end(running, 0.0)
        if self._settings.run_timeout_min is not None:
            self._timers.add(self._settings.run_timeout_min * 60, lambda: self._run_out_of_time(running))

    def take_reports(self) -> None:
        """Take what the runs have to say."""
        for report in self._reports.receive():
            running = self._find(str(report.pop("attempt", "")))
            if running is None:
                continue
            if report.pop("located", False):
                running.log, running.run_dir = report["log"], report["run_dir"]
                self._writer.record([running.located(self._sweep)], sync=False)
            elif report.pop("set_aside", False):
                self._writer.record([running.set_aside(self._sweep, report["run_dir"], report["new_dir"])])
            elif "remark" in report:
                running.remark = str(report["remark"])
            else:
                running.report = report

    def reap(self) -> None:
        """Collect our own children that have ended: orphans, errands, and runs that outlived their fork server."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if ended.si_pid == self._starter.pid:
                self._starter.reap()
            elif not self._errands.ended(ended.si_pid):
                self._collect(ended.si_pid)

    def _collect(self, pid: int) -> None:
        running = next((each for each in self.running.values() if each.pid == pid), None)
        if running is not None:  # before it is collected, its process id cannot be anybody else's
            signal_group(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        if running is not None and running.ended is None:
            self.take_reports()
            end = {"peak_memory_bytes": usage.ru_maxrss * 1024, "cpu_time_s": round(usage.ru_utime + usage.ru_stime, 3)}
            self._on_ended(running, {"status": status, **end})

    def _on_ended(self, running: Running, how: dict[str, Any]) -> None:
        running.ended = how
        running.cleaning_since = time.monotonic()
        self._clean(running)

    def _clean(self, running: Running) -> None:
        """See to it that all the run started is gone, then let its slot go."""
        assert running.ended is not None
        assert running.cleaning_since is not None
        waited = time.monotonic() - running.cleaning_since
        gone = running.pid is None or Leftovers(running.pid, running.attempt, self._sweep.sweep).kill(self._protected())
        if not gone and waited < CLEANING_PATIENCE_S:
            self._timers.add(min(0.05, 0.002 + waited / 4), lambda: self._clean(running))
            return
        if not gone:
            self._say(f"run {running.attempt} left processes that cannot be killed; its slot is used all the same")
        died_of_term = running.ended.get("status") == signal.SIGTERM and running.asked_to_end is None
        if died_of_term and waited < SIGTERM_DOUBT_S:  # Slurm may have sent it to every process of the job
            self._timers.add(0.1, lambda: self._clean(running))
            return
        self._end(running)

    def _protected(self) -> set[int]:
        """The children of ours that no run has left behind."""
        runs = {each.pid for each in self.running.values() if each.pid is not None and each.ended is None}
        return runs | self._errands.pids | {self._starter.pid}

    def _end(self, running: Running) -> None:
        del self.running[running.slot.index]
        verdict = running.verdict(self._oom.kills())
        kept = running.report.get("result_kept")
        if kept is None:
            self._writer.record([running.ended_as(verdict)])
        else:
            because = running.report.get("kept_because", "")
            self._say(f"the result of run {running.attempt} is kept on the node's own disk for now: {because}")
            self._writer.record_with_result(running.ended_as(verdict), Path(kept))
        if running.tmpdirs:
            self._errands.send(["rm", "-rf", "--", *running.tmpdirs.values()])
        if self._settings.verbose or verdict.state is not State.COMPLETED or verdict.reason:
            self._say(f"run {running.attempt} ended {verdict.state}{': ' if verdict.reason else ''}{verdict.reason}")
        self._on_end(running, verdict)

    def ask_to_end(self, slot: int, ending: tuple[State, str], grace_s: float, with_job: bool) -> Running | None:
        """Ask the run in a slot to end, in this state and for this reason, and kill it ``grace_s`` seconds later.

        Returns the attempt if the fork server was never told of it: then it is forgotten, and nothing is recorded.
        """
        running = self.running[slot]
        if running.asked_to_end is not None:
            return None
        running.asked_to_end = ending
        running.with_job = with_job
        if self._starter.take_back(running):
            del self.running[slot]
            return running
        self._press_to_end(running, grace_s)
        return None

    def tell(self, number: signal.Signals, meaning: State) -> None:
        """Send a signal to the runs that have a handler of their own for it.

        One that then ends itself unsuccessfully has done what it was told: it ends in the state ``meaning``.
        """
        for running in self.running.values():
            if running.pid is not None and handles(running.pid, number):
                self._say(f"run {running.attempt} handles {number.name} and is told")
                running.warned_of = meaning
                signal_group(running.pid, number)

    def _press_to_end(self, running: Running, grace_s: float) -> None:
        def kill() -> None:
            if running.pid is not None and running.ended is None:
                signal_group(running.pid, signal.SIGKILL)

        if running.pid is not None and running.ended is None:
            signal_group(running.pid, signal.SIGTERM)
            self._timers.add(grace_s, kill)

    def _run_out_of_time(self, running: Running) -> None:
        if running.ended is None and running.asked_to_end is None:
            limit = f"it ran longer than run_timeout_min={self._settings.run_timeout_min:g}"
            running.asked_to_end = (State.TIMEOUT, limit)
            self._press_to_end(running, self._settings.grace_s)

    def close(self) -> None:
        """Have the fork server end."""
        self._starter.close()
