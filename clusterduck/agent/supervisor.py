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
from clusterduck.agent.errands import Errands
from clusterduck.agent.memory import OomCounter
from clusterduck.agent.process import ForkServer, Leftovers
from clusterduck.agent.reports import Reports
from clusterduck.agent.running import Running, own_tmpdirs
from clusterduck.agent.samples import Sampler
from clusterduck.agent.settings import AgentSettings
from clusterduck.agent.timers import Timers
from clusterduck.agent.writer import ClaimsMade, PayloadFetched, Writer
from clusterduck.events import Heartbeat
from clusterduck.model import Slot, State
from clusterduck.paths import SweepPaths

#: How often the agent shows that it is alive, in seconds; each beat carries a sample of every slot's load.
HEARTBEAT_S = 10.0

#: How often git is asked which commit the code is at, in seconds.
CODE_LOOK_S = 60.0

#: From asking a run to end (SIGTERM) to killing it, in seconds. Slurm's own KillWait is 30 s, on some clusters less.
GRACE_S = 5.0

#: For how long a run that died of SIGTERM waits for the agent to get one too, which tells that the job was ended, in
# seconds.
SIGTERM_DOUBT_S = 0.3

#: For how long what a run left behind is killed again and again before its slot is used all the same, in seconds.
CLEANING_PATIENCE_S = 20.0

#: How many times in a row the fork server may die without having started a run.
FORK_SERVER_TRIES = 3


class Supervisor:
    """Runs the attempts of one agent until there is nothing left to do.

    Args:
        settings: what the launch asked for.
        slots: the node's slots.
        left: how many attempts there may be to claim.
        alone: whether no other agent claims from the same runs.
        job_id: the job's id, for the runs.
        environ: what every run's environment starts from.
        scratch: a folder on the node's own disk, for us alone.
        wakeup: the read end of the pipe that signals and the writer's answers are announced on.
        say: prints a line into the job's log.
    """

    def __init__(
        self,
        *,
        settings: AgentSettings,
        slots: list[Slot],
        left: int,
        alone: bool,
        job_id: str,
        environ: Mapping[str, str],
        scratch: Path,
        wakeup: int,
        writer: Writer,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._sweep = SweepPaths(Path(settings.sweep_root))
        self._slots = slots
        self._state = decisions.AgentState(len(slots), left, alone)
        self._job_id = job_id
        self._environ = environ
        self._scratch = scratch
        self._wakeup = wakeup
        self._writer = writer
        self._say = say
        self._sampler = Sampler(slots)
        self._oom = OomCounter()
        self._commit: git.Commit | None = None
        self._running: dict[int, Running] = {}
        self._timers = Timers()
        self._errands = Errands(say)
        self._started_at = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._finished = False
        self._payload_file = scratch / "payload.pkl"
        self._reports = Reports(scratch)
        self._server: ForkServer | None = None
        self._server_failures = 0
        self._server_is_ready = False
        self._waiting_to_start: list[decisions.Start] = []
        self.fatal: str | None = None  # why the agent could not do its work, if so

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
        self._writer.fetch(self._sweep.payload(self._settings.launch), self._payload_file)
        self._start_server()
        self._look_at_code()
        self._timers.add(HEARTBEAT_S, self._beat)
        self._timers.add(self._settings.publish_interval_s, self._publish)
        while not self._finished:
            for key, _ in self._selector.select(self._timers.wait_s()):
                key.data()
            self._timers.run_due()
        self._record_load()
        self._close()

    def stop(self, why: str) -> None:
        """End the job: claim nothing more, ask what runs to end, and see to it that it does."""
        if not self._state.stopping:
            self._say(f"ending the job: {why}")
            self._stop_state = (State.CANCELLED, why)
            self._decide(decisions.StopAsked())

    # --- wiring

    def _decide(self, event: decisions.Event) -> None:
        for command in self._state.handle(event):
            if isinstance(command, decisions.Claim):
                self._writer.claim(command.count)
            elif isinstance(command, decisions.Start):
                self._start(command)
            elif isinstance(command, decisions.Release):
                self._writer.release(command.attempts)
            elif isinstance(command, decisions.AskToEnd):
                self._ask_to_end(command.slot)
            else:
                self._finished = True

    def _on_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._wakeup, 4096):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self.stop(f"the agent got {signal.Signals(number).name}")
                elif number == signal.SIGUSR2 and not self._state.stopping:
                    self._say("Slurm says that the time limit is near, or that the job is to be preempted")
        self._reap()
        for answer in self._writer.answers():
            if isinstance(answer, ClaimsMade):
                self._decide(decisions.Claimed(answer.asked, answer.attempts, answer.left))
            elif isinstance(answer, PayloadFetched):
                self._on_payload(answer.error)

    def _on_payload(self, error: str | None) -> None:
        if error is not None:
            self._give_up(error)
            return
        self._prepare_server()
        for slot in self._slots:
            delay = slot.start_delay_s - (time.monotonic() - self._started_at)
            if delay > 0:
                self._timers.add(delay, lambda index=slot.index: self._decide(decisions.SlotOpened(index)))  # type: ignore[misc]
            else:
                self._decide(decisions.SlotOpened(slot.index))

    def _give_up(self, why: str) -> None:
        self.fatal = self.fatal or why
        self.stop(why)

    # --- the fork server

    def _start_server(self) -> None:
        self._server_is_ready = False
        self._server = ForkServer(self._environ)
        self._selector.register(self._server, selectors.EVENT_READ, self._on_server)
        if self._payload_file.exists():
            self._prepare_server()

    def _prepare_server(self) -> None:
        self._send_to_server(
            {
                "do": "prepare",
                "payload_file": str(self._payload_file),
                "sweep_root": self._settings.sweep_root,
                "batch": self._settings.batch,
                "job_id": self._job_id,
                "verbose": self._settings.verbose,
                "report_address": self._reports.address,
            }
        )

    def _send_to_server(self, message: Mapping[str, Any]) -> None:
        assert self._server is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead: its end is about to be read
            self._server.send(message)

    def _on_server(self) -> None:
        assert self._server is not None
        messages = self._server.receive()
        if messages is None:
            self._on_server_death()
            return
        self._take_reports()  # what a run said comes before the news that it ended
        for message in messages:
            if message["did"] == "prepared":
                self._server_is_ready = True
                self._server_failures = 0
                waiting, self._waiting_to_start = self._waiting_to_start, []
                for command in waiting:
                    self._start(command)
                continue
            running = self._find(message["attempt"])
            if running is None:
                continue
            if message["did"] == "started":
                self._on_started(running, message["pid"])
            elif message["did"] == "ended":
                running.ended = message
                self._clean(running)
            else:
                running.ended = {"status": None, "refused": message["error"]}
                self._clean(running)

    def _on_server_death(self) -> None:
        """The runs go on, as our own children; whatever the server had not started yet is started by a new one."""
        assert self._server is not None
        self._selector.unregister(self._server)
        self._server.close()
        self._server.process.wait()
        was_ready = self._server_is_ready
        self._server_failures += not was_ready
        if self._server_failures >= FORK_SERVER_TRIES:
            self._server = None
            self._give_up("the fork server ends as soon as it is started; see above for its own words")
            for command in self._waiting_to_start:
                self._abandon_start(command)
            for running in list(self._running.values()):
                if running.pid is None:
                    running.ended = {"status": None, "refused": "there is no fork server"}
                    self._clean(running)
            return
        self._say("the fork server died; its runs go on, a new one is started")
        for running in list(self._running.values()):
            if running.pid is None:
                del self._running[running.slot.index]
                self._waiting_to_start.append(decisions.Start(running.slot.index, running.attempt))
        self._start_server()
        self._reap()

    def _abandon_start(self, command: decisions.Start) -> None:
        self._writer.release([command.attempt])
        self._decide(decisions.Ended(command.slot, State.PENDING))

    # --- an attempt, from start to end

    def _find(self, attempt: str) -> Running | None:
        return next((running for running in self._running.values() if str(running.attempt) == attempt), None)

    def _start(self, command: decisions.Start) -> None:
        if not self._server_is_ready:
            self._waiting_to_start.append(command)
            return
        slot, attempt = self._slots[command.slot], command.attempt
        running = Running(
            attempt=attempt,
            slot=slot,
            log=str(self._sweep.logs / f"{attempt}.log"),
            tmpdirs=own_tmpdirs(slot, self._environ, self._sweep.sweep, attempt),
            oom_kills_before=self._oom.kills(),
        )
        self._running[slot.index] = running
        self._send_to_server(running.order())

    def _on_started(self, running: Running, pid: int) -> None:
        running.pid = pid
        running.started_at = time.time()
        if self._settings.verbose:
            self._say(f"run {running.attempt} starts in slot {running.slot.index} as process {pid}")
        self._writer.record([running.started(self._commit)])
        if self._state.stopping:
            self._ask_to_end(running.slot.index)

    def _take_reports(self) -> None:
        for report in self._reports.receive():
            running = self._find(str(report.pop("attempt", "")))
            if running is None:
                continue
            if report.pop("located", False):
                running.log = report["log"]
                self._writer.record([running.located(report["run_dir"])], sync=False)
            else:
                running.report = report

    def _reap(self) -> None:
        """Collect our own children that have ended: orphans, helpers, and runs that outlived their fork server."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if self._server is not None and ended.si_pid == self._server.process.pid:
                self._server.process.wait()  # its connection tells the rest
                continue
            if self._errands.ended(ended.si_pid):
                continue
            running = next((r for r in self._running.values() if r.pid == ended.si_pid), None)
            if running is not None:  # before it is collected, its process id cannot be anybody else's
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(ended.si_pid, signal.SIGKILL)
            _, status, usage = os.wait4(ended.si_pid, 0)
            if running is not None and running.ended is None:
                self._take_reports()
                running.ended = {
                    "status": status,
                    "peak_memory_bytes": usage.ru_maxrss * 1024,
                    "cpu_time_s": round(usage.ru_utime + usage.ru_stime, 3),
                }
                self._clean(running)

    def _clean(self, running: Running) -> None:
        """See to it that all the run started is gone, then let its slot go."""
        now = time.monotonic()
        if running.cleaning_since is None:
            running.cleaning_since = now
        elif running.slot.index not in self._running:
            return
        waited = now - running.cleaning_since
        assert running.ended is not None
        in_doubt = (
            running.ended.get("status") == signal.SIGTERM
            and running.asked_to_end is None
            and not self._state.stopping
            and waited < SIGTERM_DOUBT_S
        )
        if running.pid is not None:
            left = Leftovers(running.pid, running.attempt, self._sweep.sweep)
            protected = self._errands.pids | {r.pid for r in self._running.values() if r.pid and r.ended is None}
            if self._server is not None:
                protected.add(self._server.process.pid)
            if not left.kill(protected) and waited < CLEANING_PATIENCE_S:
                self._timers.add(min(0.05, 0.002 + waited / 4), lambda: self._clean(running))
                return
            if waited >= CLEANING_PATIENCE_S:
                self._say(
                    f"run {running.attempt} left processes behind that cannot be killed; its slot is used all the same"
                )
        if in_doubt:
            self._timers.add(SIGTERM_DOUBT_S / 3, lambda: self._clean(running))
            return
        self._end(running)

    def _end(self, running: Running) -> None:
        assert running.ended is not None
        del self._running[running.slot.index]
        if running.asked_to_end is None and self._state.stopping and running.ended.get("status") == signal.SIGTERM:
            running.asked_to_end = self._stop_state
        verdict = running.verdict(self._oom.kills())
        self._writer.record([running.ended_as(verdict)])
        if running.tmpdirs:
            self._errands.send(["rm", "-rf", "--", *running.tmpdirs.values()])
        if self._settings.verbose or verdict.state is not State.COMPLETED:
            self._say(f"run {running.attempt} ended {verdict.state}{': ' if verdict.reason else ''}{verdict.reason}")
        self._decide(decisions.Ended(running.slot.index, verdict.state))

    def _ask_to_end(self, slot: int) -> None:
        running = self._running.get(slot)
        if running is None:  # it waits for the fork server
            waiting = [command for command in self._waiting_to_start if command.slot == slot]
            self._waiting_to_start = [command for command in self._waiting_to_start if command.slot != slot]
            for command in waiting:
                self._abandon_start(command)
            return
        running.asked_to_end = self._stop_state
        if running.pid is not None and running.ended is None:
            self._signal(running.pid, signal.SIGTERM)
            self._timers.add(GRACE_S, lambda: self._kill(running))

    def _kill(self, running: Running) -> None:
        if running.pid is not None and running.ended is None:
            self._signal(running.pid, signal.SIGKILL)

    @staticmethod
    def _signal(pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            try:
                os.killpg(pid, number)
            except ProcessLookupError:  # so young that it has no group of its own yet
                os.kill(pid, number)

    # --- now and then

    def _beat(self) -> None:
        self._record_load()
        self._timers.add(HEARTBEAT_S, self._beat)

    def _record_load(self) -> None:
        groups = {index: running.pid for index, running in self._running.items() if running.pid is not None}
        beat = Heartbeat(busy=len(groups), samples=self._sampler.sample(groups))
        self._writer.record([beat], sync=False)

    def _look_at_code(self) -> None:
        """Ask now and then which commit the code is at, for the record of each attempt."""

        def note(printed: bytes) -> None:
            self._commit = git.parse(printed)

        self._errands.send(git.command(self._settings.cwd), note)
        self._timers.add(CODE_LOOK_S, self._look_at_code)

    def _publish(self) -> None:
        """Have the ledger published by a process of its own, at low priority, if nobody else just did."""
        interval = self._settings.publish_interval_s
        self._errands.send(
            [
                sys.executable,
                "-m",
                "clusterduck.ledger.publish",
                self._settings.ledger,
                "--if-older-than",
                str(interval),
            ]
        )
        self._timers.add(interval, self._publish)

    def _close(self) -> None:
        if self._server is not None:
            self._selector.unregister(self._server)
            self._server.close()
            self._server.process.wait()
        self._selector.close()
        self._reports.close()
        self._sampler.close()
        self._errands.close()
