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
from collections.abc import Callable, Mapping
from pathlib import Path

from clusterduck import clock, git, losses
from clusterduck.agent import state as decisions
from clusterduck.agent.answers import ClaimsMade, FolderGone, InboxRead, NotSuperseded, PayloadFetched, QueueSeen
from clusterduck.agent.attendance import Attendance
from clusterduck.agent.deadline import Deadline
from clusterduck.agent.errands import Errands
from clusterduck.agent.fence import Pulse
from clusterduck.agent.load import LoadWatch
from clusterduck.agent.process import ForkServer, Verdict
from clusterduck.agent.recovery import requeued_event
from clusterduck.agent.reports import Reports
from clusterduck.agent.rhythm import READINGS_YOUNG_S, Rhythm
from clusterduck.agent.running import Running
from clusterduck.agent.samples import Sampler
from clusterduck.agent.settings import AgentSettings
from clusterduck.agent.timers import Timers
from clusterduck.agent.writer import Writer
from clusterduck.events import AttemptEnded, Heartbeat, RunsClosed
from clusterduck.inbox import Request
from clusterduck.model import FAILED_STATES, AgentId, Attempt, Slot, State
from clusterduck.queue import Requeued, following

#: How often the inbox is looked into, in seconds, if no signal says that there is something.
INBOX_S = 3.0

#: How often an agent with an empty slot looks for what was put into the queue, in seconds.
IDLE_LOOK_S = 3.0

#: How often git is asked which commit the code is at, in seconds.
CODE_LOOK_S = 60.0

#: So many runs at most are prepared ahead of time: each is a process that waits, some megabytes of its own.
MOST_STANDBYS = 64

#: From asking a run to end to killing it when the job has to end, in seconds: Slurm's own KillWait may be short.
JOB_END_GRACE_S = 5.0


class Supervisor:
    """Runs the attempts of one agent until there is nothing left to do.

    Args:
        settings: what the launch asked for.
        agent: which agent this is.
        slots: the node's slots.
        deadline: the job's end.
        left: how many attempts there may be to claim.
        claimants: how many slots there are in all agents that claim from the same runs; 0 if no other does.
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
        claimants: int,
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
        self._slots = slots
        self._deadline = deadline
        most_standbys = 0 if settings.prefetch == "off" else MOST_STANDBYS
        self._state = decisions.AgentState(len(slots), left, claimants, most_standbys)
        self._wakeup = wakeup
        self._writer = writer
        self._say = say
        self._requeued: dict[Attempt, Requeued] = {}
        self._timers = Timers()
        self._errands = Errands(say)
        self._selector = selectors.DefaultSelector()
        self._server: ForkServer | None = None
        self._finished = False
        self._reports = Reports(scratch)
        sampler = Sampler(slots)
        self._attendance = Attendance(
            settings=settings,
            job_id=job_id,
            environ=environ,
            reports=self._reports,
            scratch=scratch,
            payload_copy=payload_copy,
            attach=self._attach,
            timers=self._timers,
            errands=self._errands,
            writer=writer,
            on_begin=sampler.begins,
            on_end=self._on_end,
            say=say,
        )
        self._load = LoadWatch(sampler, self._attendance.groups, READINGS_YOUNG_S)
        self._rhythm = Rhythm(clock.now())
        self._pulse = Pulse()
        self._postponed: list[Callable[[], None]] = []  # until it is known whether the job was started again
        self._failures = 0
        self._too_many_failures = f"never started: max_failures={settings.max_failures} runs of the sweep had failed"
        self.fatal: str | None = None  # why the agent could not do its work, if so
        self.told_to_end: tuple[State, str] | None = None  # how and why the job had to end before its work was done
        self.timed_out = False  # whether the job's time limit kept it from doing all
        self.superseded = False  # whether a later restart of the job has taken over
        self.drained = False  # whether somebody asked to claim nothing more
        self.result_lost = False  # whether the result of a run could be kept nowhere

    @property
    def unsuccessful(self) -> int:
        """How many attempts ended otherwise than COMPLETED."""
        return self._state.unsuccessful

    @property
    def hurried(self) -> bool:
        """Whether the job was told to end."""
        return self._state.stopping

    @property
    def completed(self) -> int:
        """How many attempts ended COMPLETED."""
        return self._state.completed

    def run(self) -> None:
        """Do the work; returns when nothing runs any more and nothing more will."""
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_wakeup)
        self._selector.register(self._reports, selectors.EVENT_READ, self._attendance.take_reports)
        self._writer.read_inbox()  # before anything is claimed
        self._writer.fetch(self._settings.launch)
        self._timers.add(self._rhythm.pause_s(clock.now()), self._beat_on)
        self._every(INBOX_S, self._writer.read_inbox)
        self._every(IDLE_LOOK_S, self._look_if_idle)
        self._every(self._settings.publish_interval_s, self._publish)
        self._every(CODE_LOOK_S, self._look_at_code)
        self._look_at_code()
        if self._deadline.last_call is not None:
            until = max(0.0, self._deadline.last_call - clock.now())
            self._timers.add(until, lambda: self._unless_in_doubt(self._last_call))
        while not self._finished:
            self._watch_server()
            ready = self._selector.select(self._timers.wait_s())
            self._doubt_after_a_lapse()
            for key, _ in ready:
                key.data()
            self._timers.run_due()
        self._beat()
        self._close()

    # --- after standing still

    def _doubt_after_a_lapse(self) -> None:
        """If this process stood still for long, start nothing before it is known whether the job was started again."""
        if self._pulse.lapsed() and not self._state.stopping:
            self._say("the agent stood still for a while: looking whether the job was started again meanwhile")
            self._decide(decisions.Doubted())
            self._writer.look_for_restart()
        self._pulse.mark()

    def _unless_in_doubt(self, action: Callable[[], None]) -> None:
        """Do it now, or as soon as it is known that the job was not started again."""
        if self._state.in_doubt:
            self._postponed.append(action)
        else:
            action()

    def _reassure(self) -> None:
        postponed, self._postponed = self._postponed, []
        for action in postponed:  # first: that a run failed may mean that more is to be done, or nothing more
            action()
        self._decide(decisions.Reassured())

    def _step_down(self) -> None:
        """End, and at once: whatever a run still wrote might be over what its successor has written."""
        if not self.superseded:
            self.superseded = True
            why = "the job was started again; this is what was left of its earlier start"
            self._stop(State.PREEMPTED, why, grace_s=0.0)

    # --- wiring

    def _every(self, interval_s: float, action: Callable[[], None]) -> None:
        def again() -> None:
            action()
            self._timers.add(interval_s, again)

        self._timers.add(interval_s, again)

    def _attach(self, server: ForkServer, alive: bool) -> None:
        self._server = server if alive else None
        if alive:
            self._selector.register(server, selectors.EVENT_READ, self._on_server)
        else:
            self._selector.unregister(server)

    def _watch_server(self) -> None:
        """Wait for the fork server to take more, as long as it has not taken all."""
        if self._server is not None:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._server.is_behind else 0)
            if self._selector.get_key(self._server).events != events:
                self._selector.modify(self._server, events, self._on_server)

    def _decide(self, event: decisions.Event) -> None:
        for command in self._state.handle(event):
            if isinstance(command, decisions.Claim):
                self._writer.claim(command.count)
            elif isinstance(command, (decisions.Start, decisions.StandBy)):
                self._start(command)
            elif isinstance(command, decisions.Dismiss):
                self._attendance.dismiss(command.slot)
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
                    self._stop(*self._deadline.meaning_of_term(clock.now()))
                elif number == signal.SIGUSR2:
                    self._on_warning()
                elif number == signal.SIGUSR1:
                    self._writer.read_inbox()
        self._attendance.reap()
        for answer in self._writer.answers():
            if isinstance(answer, ClaimsMade):
                self._on_claims(answer)
            elif isinstance(answer, QueueSeen):
                self._decide(decisions.MoreToClaim(answer.left))
            elif isinstance(answer, FolderGone):
                self._give_up(f"The sweep's folder {answer.folder} is gone: it was moved or deleted while the job ran.")
            elif isinstance(answer, InboxRead):
                self._on_inbox(answer)
            elif isinstance(answer, NotSuperseded):
                self._reassure()
            elif isinstance(answer, PayloadFetched):
                self._on_payload(answer.error)

    def _on_payload(self, error: str | None) -> None:
        if error is not None:
            self._give_up(error)
            return
        self._attendance.prepare(self._settings.launch)
        self._mind_the_clock()
        for slot in self._slots:
            opened = decisions.SlotOpened(slot.index)
            self._timers.add(slot.start_delay_s, lambda opened=opened: self._decide(opened))  # type: ignore[misc]

    def _on_claims(self, answer: ClaimsMade) -> None:
        haul = answer.haul
        self._requeued.update(haul.requeued)
        if haul.closed:
            self._say(
                f"claiming nothing more: max_failures={self._settings.max_failures} runs of the sweep have failed"
            )
            self._writer.record(
                [RunsClosed(ranges=haul.closed, state=State.CANCELLED.value, reason=self._too_many_failures)]
            )
        together = {
            attempt: losses.most_together(entry.losses, len(self._slots))
            for attempt, entry in haul.requeued.items()
            if losses.is_set_apart(entry.losses)
        }
        self._decide(decisions.Claimed(answer.asked, tuple(haul.attempts), haul.left, together))

    def _on_inbox(self, answer: InboxRead) -> None:
        for request in answer.requests:
            self._obey(request)
        if answer.superseded:
            self._step_down()

    def _obey(self, request: Request) -> None:
        self._say(f"{request.by} asks to {request.kind} {', '.join(map(str, request.attempts[:20]))}".rstrip())
        if request.kind == "cancel":
            wanted = frozenset(request.attempts)
            self._decide(decisions.CancelAsked(wanted, f"cancelled by {request.by}", request.grace_s))
        elif request.kind == "drain":
            self.drained = True
            self._decide(decisions.Drained())
            self._beat()  # so that nobody counts on its empty slots
        else:
            self._look_if_idle()

    # --- the job's end

    def _stop(self, state: State, why: str, grace_s: float = JOB_END_GRACE_S) -> None:
        """End the job: claim nothing more, ask what runs to end, and see to it that it does."""
        if not self._state.stopping:
            self._say(f"ending the job: {why}")
            self.timed_out = self.timed_out or state is State.TIMEOUT
            self.told_to_end = (state, why)
            self._decide(decisions.StopAsked(state, why, grace_s))

    def _give_up(self, why: str) -> None:
        self.fatal = self.fatal or why
        self._stop(State.FAILED, why)

    def _last_call(self) -> None:
        if self._attendance.running or self._state.unstarted:
            self._stop(State.TIMEOUT, "the job's time limit was reached")

    def _on_warning(self) -> None:
        """Slurm's signal before the end: runs that handle it get it, so that they can save their work; the others run
        on."""
        self._say(f"{self._deadline.warned(clock.now())}: no further run is started")
        self._leave_the_rest()
        self._beat()
        self._attendance.tell(signal.SIGUSR2, self._deadline.meaning_of_warning)

    def _leave_the_rest(self) -> None:
        """Claim nothing more for want of time."""
        self.timed_out = self.timed_out or self._state.unstarted > 0
        self._decide(decisions.Drained())

    def _mind_the_clock(self) -> None:
        if not self._state.draining and self._state.unstarted:
            why = self._deadline.too_short_for_a_run(clock.now())
            if why is not None:
                self._say(why)
                self._leave_the_rest()

    # --- attempts

    def _start(self, command: decisions.Start | decisions.StandBy) -> None:
        requeued = self._requeued.get(command.attempt)
        launch = requeued.launch if requeued else self._settings.launch
        start = self._attendance.start if isinstance(command, decisions.Start) else self._attendance.stand_by
        start(self._slots[command.slot], command.attempt, launch, requeued)

    def _ask_to_end(self, command: decisions.AskToEnd) -> None:
        ending = (command.state, command.reason)
        unstarted = self._attendance.ask_to_end(command.slot, ending, command.grace_s, command.with_job)
        if unstarted is not None:
            if command.with_job:  # anybody else may take it
                self._writer.release([unstarted.attempt])
            else:
                self._record_dropped(decisions.Drop((unstarted.attempt,), command.reason))
            self._decide(decisions.Ended(command.slot, command.state))

    def _on_server(self) -> None:
        self._attendance.hear_server()
        if self._attendance.trouble is not None and self.fatal is None:
            self._give_up(self._attendance.trouble)
        if self._attendance.broken and self.fatal is None:
            self._give_up("the fork server ends as soon as it is started; see above for its own words")

    def _on_end(self, running: Running, verdict: Verdict) -> None:
        self.result_lost = self.result_lost or bool(running.report.get("result_lost"))
        if verdict.state is State.COMPLETED and running.started_at is not None:
            self._deadline.ran(clock.now() - running.started_at)
        elif not verdict.with_job:
            self._unless_in_doubt(lambda: self._retry_or_mark(running, verdict))
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
            self._writer.record([requeued_event(entry, self._settings.batch)])
            self._writer.put_back(entry)
            self._decide(decisions.MoreToClaim(self._state.left + 1))  # else this may have been the last one
        elif verdict.state in FAILED_STATES:
            self._writer.mark_failure(running.attempt)
            self._failures += 1
            if self._settings.max_failures is not None and self._failures >= self._settings.max_failures:
                self._stop_claiming_for_failures()

    def _stop_claiming_for_failures(self) -> None:
        """What was claimed ahead is not started either: it is given back, and on record as never to start."""
        ready = self._state.ready
        self._decide(decisions.Drained())
        self._writer.close_the_rest(ready, self._too_many_failures)

    def _record_dropped(self, command: decisions.Drop) -> None:
        self._writer.record(
            AttemptEnded(run=attempt.run, attempt=attempt.number, state=State.CANCELLED.value, reason=command.reason)
            for attempt in command.attempts
        )

    # --- now and then

    def _beat_on(self) -> None:
        self._beat()
        self._timers.add(self._rhythm.pause_s(clock.now()), self._beat_on)

    def _beat(self) -> None:
        self._mind_the_clock()
        readings = self._load.take() if self._rhythm.has_readings(clock.now()) else []
        beat = Heartbeat(
            time=round(clock.now(), 1),  # finer would only be longer, and a long sweep's journals are mostly heartbeats
            busy=len(self._attendance.groups()),
            draining=self._state.draining or self._finished,  # who is about to end has no room, either
            samples=readings,
        )
        self._writer.record([beat], sync=False)

    def _look_if_idle(self) -> None:
        if self._state.idle:
            self._writer.look()

    def _look_at_code(self) -> None:
        """Ask which commit the code is at, for the record of each attempt."""

        def note(printed: bytes) -> None:
            self._attendance.commit = git.parse(printed)

        self._errands.send(git.command(self._settings.cwd), note)

    def _publish(self) -> None:
        """Have the ledger published by a process of its own, at low priority, if nobody else just did."""
        module, age = "clusterduck.ledger.publish_if_old", str(self._settings.publish_interval_s)
        self._errands.send([sys.executable, "-m", module, self._settings.ledger, age])

    def _close(self) -> None:
        self._attendance.close()
        self._selector.close()
        self._reports.close()
        self._load.close()
        self._errands.close()
