"""The agent's one wait loop: it carries out what the state machine decides, and tells it what happened.

It waits for the fork server, for reports of runs, for the writer's answers, for signals, and for the next timer; it
never touches the shared file system and never waits for anything else.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clusterduck import git
from clusterduck.agent import state as decisions
from clusterduck.agent.deadline import Deadline
from clusterduck.agent.errands import Errands
from clusterduck.agent.load import LoadWatch
from clusterduck.agent.memory import OomCounter
from clusterduck.agent.process import ForkServer, Leftovers, Verdict, handles, signal_group
from clusterduck.agent.recovery import requeued_event
from clusterduck.agent.reports import Reports
from clusterduck.agent.running import Running, own_tmpdirs
from clusterduck.agent.samples import Sampler
from clusterduck.agent.settings import AgentSettings
from clusterduck.agent.starter import Starter
from clusterduck.agent.timers import Timers
from clusterduck.agent.writer import ClaimsMade, InboxRead, PayloadFetched, QueueSeen, Writer
from clusterduck.events import AttemptEnded, Heartbeat, RunsClosed
from clusterduck.inbox import Request
from clusterduck.model import FAILED_STATES, AgentId, Attempt, Slot, State
from clusterduck.paths import SweepPaths
from clusterduck.queue import Requeued, following

#: How often the agent shows that it is alive, in seconds; each beat carries the newest sample of every slot's load.
HEARTBEAT_S = 10.0

#: How often the inbox is looked into, in seconds, if no signal says that there is something.
INBOX_S = 3.0

#: How often an agent with an empty slot looks for what was put into the queue, in seconds.
IDLE_LOOK_S = 3.0

#: How often git is asked which commit the code is at, in seconds.
CODE_LOOK_S = 60.0

#: From asking a run to end to killing it when the job has to end, in seconds: Slurm's own KillWait may be short.
JOB_END_GRACE_S = 5.0

#: For how long a run that died of SIGTERM waits for the agent to get one too, which tells that the job was ended, in
#: seconds.
SIGTERM_DOUBT_S = 0.3

#: For how long what a run left behind is killed again and again before its slot is used all the same, in seconds.
CLEANING_PATIENCE_S = 20.0


class Supervisor:
    """Runs the attempts of one agent until there is nothing left to do.

    Args:
        settings: what the launch asked for.
        agent: which agent this is.
        slots: the node's slots.
        deadline: the job's end.
        left: how many attempts there may be to claim.
        alone: whether no other agent claims from the same runs.
        job_id: the job's id, for the runs.
        environ: what every run's environment starts from.
        scratch: a folder on the node's own disk, for us alone.
        payload_copy: where a launch's payload lies on it.
        wakeup: the read end of the pipe that signals and the writer's answers are announced on.
        writer: the thread that touches the shared file system.
        say: prints a line into the job's log.
    """

    def __init__(
        self,
        *,
        settings: AgentSettings,
        agent: AgentId,
        slots: list[Slot],
        deadline: Deadline,
        left: int,
        alone: bool,
        job_id: str,
        environ: Mapping[str, str],
        scratch: Path,
        payload_copy: Callable[[int], Path],
        wakeup: int,
        writer: Writer,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._agent = agent
        self._sweep = SweepPaths(Path(settings.sweep_root))
        self._slots = slots
        self._deadline = deadline
        self._state = decisions.AgentState(len(slots), left, alone)
        self._environ = environ
        self._wakeup = wakeup
        self._writer = writer
        self._say = say
        self._oom = OomCounter()
        self._commit: git.Commit | None = None
        self._running: dict[int, Running] = {}
        self._requeued: dict[Attempt, Requeued] = {}
        self._timers = Timers()
        self._errands = Errands(say)
        self._started_at = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._finished = False
        self._reports = Reports(scratch)
        self._load = LoadWatch(Sampler(slots), self._groups, HEARTBEAT_S)
        self._starter = Starter(
            environ=environ,
            common={
                "sweep_root": settings.sweep_root,
                "batch": settings.batch,
                "job_id": job_id,
                "verbose": settings.verbose,
                "report_address": self._reports.address,
            },
            payload_copy=payload_copy,
            attach=self._attach,
            say=say,
        )
        self.fatal: str | None = None  # why the agent could not do its work, if so
        self.timed_out = False  # whether the job's time limit kept it from doing all

    @property
    def unsuccessful(self) -> int:
        """How many attempts ended otherwise than COMPLETED."""
        return self._state.unsuccessful

    @property
    def completed(self) -> int:
        """How many attempts ended COMPLETED."""
        return self._state.completed

    def run(self) -> None:
        """Do the work; returns when nothing runs any more and nothing more will."""
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_wakeup)
        self._selector.register(self._reports, selectors.EVENT_READ, self._take_reports)
        self._writer.fetch(self._settings.launch)
        self._every(HEARTBEAT_S, self._beat)
        self._every(INBOX_S, self._writer.read_inbox)
        self._every(IDLE_LOOK_S, self._look_if_idle)
        self._every(self._settings.publish_interval_s, self._publish)
        self._every(CODE_LOOK_S, self._look_at_code)
        self._look_at_code()
        if self._deadline.last_call is not None:
            self._timers.add(max(0.0, self._deadline.last_call - time.time()), self._last_call)
        while not self._finished:
            for key, _ in self._selector.select(self._timers.wait_s()):
                key.data()
            self._timers.run_due()
        self._beat()
        self._close()

    # --- wiring

    def _every(self, interval_s: float, action: Callable[[], None]) -> None:
        def again() -> None:
            action()
            self._timers.add(interval_s, again)

        self._timers.add(interval_s, again)

    def _attach(self, server: ForkServer, alive: bool) -> None:
        if alive:
            self._selector.register(server, selectors.EVENT_READ, self._on_server)
        else:
            self._selector.unregister(server)

    def _decide(self, event: decisions.Event) -> None:
        for command in self._state.handle(event):
            if isinstance(command, decisions.Claim):
                self._writer.claim(command.count)
            elif isinstance(command, decisions.Start):
                self._start(command)
            elif isinstance(command, decisions.Release):
                self._writer.release(command.attempts)
            elif isinstance(command, decisions.AskToEnd):
                self._ask_to_end(command)
            elif isinstance(command, decisions.Drop):
                self._record_dropped(command)
            else:
                self._finished = True

    def _on_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._wakeup, 4096):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._stop(*self._deadline.meaning_of_term(time.time()))
                elif number == signal.SIGUSR2:
                    self._on_warning()
                elif number == signal.SIGUSR1:
                    self._writer.read_inbox()
        self._reap()
        for answer in self._writer.answers():
            if isinstance(answer, ClaimsMade):
                self._on_claims(answer)
            elif isinstance(answer, QueueSeen):
                self._decide(decisions.MoreToClaim(answer.left))
            elif isinstance(answer, InboxRead):
                self._on_inbox(answer)
            elif isinstance(answer, PayloadFetched):
                self._on_payload(answer.error)

    def _on_payload(self, error: str | None) -> None:
        if error is not None:
            self._give_up(error)
            return
        self._starter.prepare(self._settings.launch)
        self._mind_the_clock()
        for slot in self._slots:
            delay = slot.start_delay_s - (time.monotonic() - self._started_at)
            opened = decisions.SlotOpened(slot.index)
            self._timers.add(max(0.0, delay), lambda opened=opened: self._decide(opened))  # type: ignore[misc]

    def _on_claims(self, answer: ClaimsMade) -> None:
        haul = answer.haul
        self._requeued.update(haul.requeued)
        if haul.closed:
            reason = f"never started: max_failures={self._settings.max_failures} runs of the sweep had failed"
            self._say(
                f"claiming nothing more: max_failures={self._settings.max_failures} runs of the sweep have failed"
            )
            self._writer.record([RunsClosed(ranges=haul.closed, state=State.CANCELLED.value, reason=reason)])
        self._decide(decisions.Claimed(answer.asked, tuple(haul.attempts), haul.left))

    def _on_inbox(self, answer: InboxRead) -> None:
        for request in answer.requests:
            self._obey(request)
        if answer.superseded:
            self._stop(State.PREEMPTED, "the job was started again; this is what was left of its earlier start")

    def _obey(self, request: Request) -> None:
        self._say(f"{request.by} asks to {request.kind} {', '.join(map(str, request.attempts[:20]))}".rstrip())
        if request.kind == "cancel":
            wanted = frozenset(request.attempts)
            self._decide(decisions.CancelAsked(wanted, f"cancelled by {request.by}", request.grace_s))
        elif request.kind == "drain":
            self._decide(decisions.Drained())
        else:
            self._look_if_idle()

    # --- the job's end

    def _stop(self, state: State, why: str) -> None:
        """End the job: claim nothing more, ask what runs to end, and see to it that it does."""
        if not self._state.stopping:
            self._say(f"ending the job: {why}")
            self.timed_out = self.timed_out or state is State.TIMEOUT
            self._decide(decisions.StopAsked(state, why, JOB_END_GRACE_S))

    def _give_up(self, why: str) -> None:
        self.fatal = self.fatal or why
        self._stop(State.FAILED, why)

    def _last_call(self) -> None:
        if self._running or self._state.left:
            self._stop(State.TIMEOUT, "the job's time limit was reached")

    def _on_warning(self) -> None:
        """Slurm's signal before the end: runs that handle it get it, so that they can save their work; the others run
        on."""
        self._say(f"{self._deadline.warned(time.time())}: no further run is started")
        self._leave_the_rest()
        for running in self._running.values():
            if running.pid is not None and handles(running.pid, signal.SIGUSR2):
                self._say(f"run {running.attempt} handles the signal and is told")
                signal_group(running.pid, signal.SIGUSR2)

    def _leave_the_rest(self) -> None:
        """Claim nothing more for want of time."""
        self.timed_out = self.timed_out or bool(self._state.left)
        self._decide(decisions.Drained())

    def _mind_the_clock(self) -> None:
        if not self._state.draining and self._state.left:
            why = self._deadline.too_short_for_a_run(time.time())
            if why is not None:
                self._say(why)
                self._leave_the_rest()

    # --- an attempt, from start to end

    def _groups(self) -> Mapping[int, int]:
        return {
            slot: running.pid
            for slot, running in list(self._running.items())
            if running.pid is not None and running.ended is None
        }

    def _find(self, attempt: str) -> Running | None:
        return next((running for running in self._running.values() if str(running.attempt) == attempt), None)

    def _start(self, command: decisions.Start) -> None:
        slot, attempt = self._slots[command.slot], command.attempt
        requeued = self._requeued.get(attempt)
        running = Running(
            attempt=attempt,
            slot=slot,
            launch=requeued.launch if requeued else self._settings.launch,
            requeued=requeued,
            log=str(self._sweep.logs / f"{attempt}.log"),
            tmpdirs=own_tmpdirs(slot, self._environ, self._sweep.sweep, attempt),
            oom_kills_before=self._oom.kills(),
        )
        self._running[slot.index] = running
        self._starter.start(running)

    def _on_server(self) -> None:
        messages = self._starter.receive(lambda: [each for each in self._running.values() if each.pid is None])
        self._take_reports()  # what a run said comes before the news that it ended
        for message in messages:
            running = self._find(message["attempt"])
            if running is None:
                continue
            if message["did"] == "started":
                self._on_started(running, message["pid"])
            else:
                self._on_ended(running, message)
        if self._starter.broken and self.fatal is None:
            self._give_up("the fork server ends as soon as it is started; see above for its own words")

    def _on_started(self, running: Running, pid: int) -> None:
        running.pid = pid
        running.started_at = time.time()
        if self._settings.verbose:
            self._say(f"run {running.attempt} starts in slot {running.slot.index} as process {pid}")
        self._writer.record([running.started(self._commit)])
        if running.asked_to_end is not None:  # before it existed
            self._press_to_end(running, 0.0)
        if self._settings.run_timeout_min is not None:
            self._timers.add(self._settings.run_timeout_min * 60, lambda: self._run_out_of_time(running))

    def _take_reports(self) -> None:
        for report in self._reports.receive():
            running = self._find(str(report.pop("attempt", "")))
            if running is None:
                continue
            if report.pop("located", False):
                running.log, running.run_dir = report["log"], report["run_dir"]
                self._writer.record([running.located()], sync=False)
            else:
                running.report = report

    def _reap(self) -> None:
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
        running = next((each for each in self._running.values() if each.pid == pid), None)
        if running is not None:  # before it is collected, its process id cannot be anybody else's
            signal_group(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        if running is not None and running.ended is None:
            self._take_reports()
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
            self._timers.add(SIGTERM_DOUBT_S / 3, lambda: self._clean(running))
            return
        self._end(running)

    def _protected(self) -> set[int]:
        """The children of ours that no run has left behind."""
        runs = {each.pid for each in self._running.values() if each.pid is not None and each.ended is None}
        return runs | self._errands.pids | {self._starter.pid}

    def _end(self, running: Running) -> None:
        del self._running[running.slot.index]
        verdict = running.verdict(self._oom.kills())
        self._writer.record([running.ended_as(verdict)])
        if running.tmpdirs:
            self._errands.send(["rm", "-rf", "--", *running.tmpdirs.values()])
        if self._settings.verbose or verdict.state is not State.COMPLETED:
            self._say(f"run {running.attempt} ended {verdict.state}{': ' if verdict.reason else ''}{verdict.reason}")
        if verdict.state is State.COMPLETED and running.started_at is not None:
            self._deadline.ran(time.time() - running.started_at)
        elif not running.with_job:
            self._retry_or_mark(running, verdict)
        self._mind_the_clock()
        self._decide(decisions.Ended(running.slot.index, verdict.state))

    def _retry_or_mark(self, running: Running, verdict: Verdict) -> None:
        """Put a run that failed back into the queue if the launch asked for that, else count its failure."""
        retries = running.requeued.retries if running.requeued else 0
        if verdict.state.value in self._settings.retry_on and retries < self._settings.max_retries:
            entry = following(
                running.attempt,
                running.requeued,
                launch=running.launch,
                kind="retry",
                reason=f"retry {retries + 1} of {self._settings.max_retries}: {verdict.state}",
                by=f"agent {self._agent}",
                folder=running.run_dir,
            )
            self._say(f"run {running.attempt.run} is put back into the queue: {entry.reason}")
            self._writer.record([requeued_event(entry)])
            self._writer.put_back(entry)
        elif verdict.state in FAILED_STATES:
            self._writer.mark_failure(running.attempt)

    def _ask_to_end(self, command: decisions.AskToEnd) -> None:
        running = self._running[command.slot]
        if running.asked_to_end is None:
            running.asked_to_end = (command.state, command.reason)
            running.with_job = command.with_job
            if self._starter.take_back(running):
                self._forget(running, command)
            else:
                self._press_to_end(running, command.grace_s)

    def _forget(self, running: Running, command: decisions.AskToEnd) -> None:
        """End an attempt that the fork server was never told of: if the job has to end, anybody else may take it."""
        del self._running[running.slot.index]
        if command.with_job:
            self._writer.release([running.attempt])
        else:
            self._record_dropped(decisions.Drop((running.attempt,), command.reason))
        self._decide(decisions.Ended(running.slot.index, command.state))

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

    def _record_dropped(self, command: decisions.Drop) -> None:
        self._writer.record(
            AttemptEnded(run=attempt.run, attempt=attempt.number, state=State.CANCELLED.value, reason=command.reason)
            for attempt in command.attempts
        )

    # --- now and then

    def _beat(self) -> None:
        self._mind_the_clock()
        self._writer.record([Heartbeat(busy=len(self._groups()), samples=self._load.take())], sync=False)

    def _look_if_idle(self) -> None:
        if self._state.idle:
            self._writer.look()

    def _look_at_code(self) -> None:
        """Ask which commit the code is at, for the record of each attempt."""

        def note(printed: bytes) -> None:
            self._commit = git.parse(printed)

        self._errands.send(git.command(self._settings.cwd), note)

    def _publish(self) -> None:
        """Have the ledger published by a process of its own, at low priority, if nobody else just did."""
        module, age = "clusterduck.ledger.publish", str(self._settings.publish_interval_s)
        self._errands.send([sys.executable, "-m", module, self._settings.ledger, "--if-older-than", age])

    def _close(self) -> None:
        self._starter.close()
        self._selector.close()
        self._reports.close()
        self._load.close()
        self._errands.close()
