"""The agent's composition root: what submitit calls inside the job, and how the parts are put together there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clusterduck.agent.joblog import JobLog
from clusterduck.agent.settings import AgentSettings

if TYPE_CHECKING:
    from clusterduck.agent.claiming import Claiming
    from clusterduck.agent.writer import Writer
    from clusterduck.model import AgentId, Slot, State
    from clusterduck.paths import SweepPaths

#: How long Slurm may take to say when the job ends, in seconds.
END_TIME_PATIENCE_S = 5.0

#: How long publishing the ledger at the end may take, in seconds.
PUBLISHING_PATIENCE_S = 60.0

#: For how long the agent tries to write its last reports before it ends without them, in seconds; and the same if the
#: job was told to end, when Slurm's KillWait may leave half a minute for everything.
CLOSING_PATIENCE_S = 60.0
HURRIED_PATIENCE_S = 12.0

#: For how long it waits for the last lines of the job's log to be written, in seconds.
LOG_PATIENCE_S = 5.0

_log = JobLog()


@dataclass(frozen=True)
class AgentJob:
    """The callable that submitit pickles into the job; by reference, so that unpickling it imports nothing of the
    user's.

    It has no ``checkpoint`` method: the agent handles Slurm's signals itself.
    """

    settings: AgentSettings

    def __call__(self) -> int:
        """Be the agent of this node.

        Raises:
            SystemExit: with 1 if not all of the runs completed, so that the job's exit code says so; with another code
            where that makes submitit start the job again.
        """
        exit_code = run_agent(self.settings, dict(os.environ))
        if exit_code:
            raise SystemExit(exit_code)
        return 0


def say(line: str) -> None:
    """Print a line into the job's log, with the time; never waits, never fails."""
    _log.say(line)


def run_agent(settings: AgentSettings, environ: dict[str, str]) -> int:
    """Run this node's share of a batch.

    Returns the exit code: 0 only if every attempt that was started here completed, and all of it could be written.
    """
    try:
        return _run_agent(settings, environ)
    finally:
        _log.close(LOG_PATIENCE_S)


def _run_agent(settings: AgentSettings, environ: dict[str, str]) -> int:
    from clusterduck.agent import prctl
    from clusterduck.agent.claiming import Claiming
    from clusterduck.agent.recovery import Recovery
    from clusterduck.agent.scratch import make_scratch
    from clusterduck.agent.send_back import send_back
    from clusterduck.agent.writer import Writer
    from clusterduck.events import AgentEnded, Event
    from clusterduck.journal import JournalWriter
    from clusterduck.paths import SweepPaths

    wakeup = _take_signals()
    prctl.adopt_orphans()
    if settings.cluster == "local":
        environ.pop("CUDA_VISIBLE_DEVICES", None)
        if settings.cuda_visible_devices is not None:
            environ["CUDA_VISIBLE_DEVICES"] = settings.cuda_visible_devices
    sweep = SweepPaths(Path(settings.sweep_root))
    agent = _who(settings, sweep, environ)
    scratch = make_scratch(say)
    if scratch is None:
        return 1
    claiming = Claiming(settings, agent, scratch, say)
    writer = Writer(
        folder=sweep.agent(agent),
        journal=JournalWriter(sweep.agent(agent), sweep.sweep, f"agent {agent}"),
        claiming=claiming,
        spool=scratch / "spool.jsonl",
        wake=wakeup.wake,
        say=say,
    )
    left = claiming.left
    writer.start()
    if agent.restart:
        writer.show_up()
        writer.do(Recovery(settings, agent, claiming, say).run, "see what the job's earlier agents left unfinished")
    writer.look()
    try:
        end = _work(
            settings,
            environ,
            agent=agent,
            claiming=claiming,
            left=left,
            scratch=scratch,
            wakeup=wakeup.reader,
            writer=writer,
        )
    except Exception:
        say(traceback.format_exc())
        end = _End("the agent itself failed; its log has the traceback", succeeded=False)
    say(end.reason)
    if end.superseded:
        writer.do(Recovery(settings, agent, claiming, say).hand_over, "put back what this agent leaves")
    exit_code = 0 if end.succeeded else 1

    def last_words(result_lost: bool) -> Event:
        nonlocal exit_code
        exit_code = 1 if result_lost else exit_code
        state = None if end.state is None else end.state.value
        return AgentEnded(
            reason=end.reason, exit_code=exit_code, timed_out=end.timed_out, state=state, drained=end.drained
        )

    lost = writer.close(HURRIED_PATIENCE_S if end.hurried else CLOSING_PATIENCE_S, last_words)
    if lost:
        exit_code = 1
        say(
            f"{len(lost)} reports{_on_runs(lost)} could not be written to {sweep.agent(agent)}; they follow here, and "
            "nowhere else:"
        )
        _log.write(b"".join(lost))
    _publish_last(settings, HURRIED_PATIENCE_S if end.hurried else PUBLISHING_PATIENCE_S)
    if not (lost or end.superseded) and (end.timed_out or settings.nodes > 1):
        job_id = _job_id(environ, settings.cluster)
        exit_code = send_back(settings, agent, job_id, say, hurried=end.hurried) or exit_code
    shutil.rmtree(scratch, ignore_errors=True)
    return exit_code


def _publish_last(settings: AgentSettings, patience_s: float) -> None:
    """Have the ledger published with how all this ended: nobody may look for a long time."""
    from clusterduck.agent.errands import at_low_priority

    command = at_low_priority([sys.executable, "-m", "clusterduck.ledger.publish", settings.ledger])
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=patience_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"the ledger was not published at the end ({error}); whoever looks next does it")


@dataclass(frozen=True)
class _End:
    """How the work went."""

    reason: str
    succeeded: bool
    state: State | None = None  # how the job had to end, if it was told to
    timed_out: bool = False
    drained: bool = False  # somebody asked it to claim nothing more
    hurried: bool = False  # the job was told to end
    superseded: bool = False  # a later restart of the job has taken over


def _work(
    settings: AgentSettings,
    environ: dict[str, str],
    *,
    agent: AgentId,
    claiming: Claiming,
    left: int,
    scratch: Path,
    wakeup: int,
    writer: Writer,
) -> _End:
    """Find out what the node gives, and run attempts there until none is left."""
    from clusterduck.agent.claiming import claimants
    from clusterduck.agent.deadline import Deadline
    from clusterduck.agent.node import discover
    from clusterduck.agent.process import run_environment
    from clusterduck.agent.slots import build_slots, describe
    from clusterduck.agent.supervisor import Supervisor
    from clusterduck.errors import ConfigError
    from clusterduck.events import AgentStarted

    job_id = _job_id(environ, settings.cluster)
    ends_at = _end_of_job(environ, settings, job_id)
    slots: list[Slot] = []
    trouble = None
    try:
        node = discover(environ, settings.cluster)
        slots = build_slots(node, settings.parallel_runs_per_node, settings.resources)
        if settings.verbose:
            for line in describe(node, slots):
                say(line)
    except ConfigError as error:
        trouble = str(error)
    writer.record(
        [
            AgentStarted(
                host=socket.gethostname(),
                pid=os.getpid(),
                cluster=settings.cluster,
                job_id=job_id,
                slots=[slot.to_json() for slot in slots],
                ends_at=ends_at,
            )
        ]
    )
    if trouble is not None:
        return _End(trouble, succeeded=False)
    supervisor = Supervisor(
        settings=settings,
        agent=agent,
        slots=slots,
        deadline=Deadline(
            ends_at,
            settings.signal_delay_s,
            None if settings.expected_run_min is None else settings.expected_run_min * 60,
        ),
        left=left,
        claimants=claimants(settings),
        job_id=job_id,
        environ=run_environment(environ),
        scratch=scratch,
        payload_copy=claiming.payload_copy,
        wakeup=wakeup,
        writer=writer,
        say=say,
    )
    supervisor.run()
    completed, unsuccessful = supervisor.completed, supervisor.unsuccessful
    reason = supervisor.fatal or f"{completed} runs completed, {unsuccessful} did not"
    succeeded = not (unsuccessful or supervisor.fatal or supervisor.result_lost or supervisor.superseded)
    state = None
    if supervisor.told_to_end is not None:
        state, why = supervisor.told_to_end
        reason = supervisor.fatal or f"{why}; {reason}"
    return _End(
        reason,
        succeeded,
        state=state,
        timed_out=supervisor.timed_out,
        drained=supervisor.drained,
        hurried=supervisor.hurried,
        superseded=supervisor.superseded,
    )


def _on_runs(lines: list[bytes]) -> str:
    """Which runs lines of a journal are about, for people."""
    runs = sorted({int(found) for line in lines for found in re.findall(rb'"run":(\d+)', line)})
    return f" on runs {', '.join(map(str, runs))}" if runs else ""


class _Wakeup:
    """A pipe that wakes the wait loop: Python writes a signal's number into it, the writer thread a zero."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        for fd in (self.reader, self._writer):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def wake(self) -> None:
        """Wake the wait loop."""
        try:
            os.write(self._writer, b"\0")
        except BlockingIOError:
            return  # it is full, so the loop is about to wake anyway


def _take_signals() -> _Wakeup:
    """Replace submitit's signal handlers by ones that only wake the wait loop."""
    wakeup = _Wakeup()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGCONT):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return wakeup


def _job_id(environ: dict[str, str], cluster: str) -> str:
    if cluster == "local":  # it may have been launched inside a Slurm job
        return environ.get("SUBMITIT_LOCAL_JOB_ID", str(os.getpid()))
    array, index = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    if array and index:
        return f"{array}_{index}"
    return environ["SLURM_JOB_ID"]


def _who(settings: AgentSettings, sweep: SweepPaths, environ: dict[str, str]) -> AgentId:
    """Which agent this is. submitit's local executor does not count restarts, so there the folders are counted."""
    from clusterduck.model import AgentId

    if settings.cluster == "local":
        try:
            earlier = sweep.agent_journals(settings.batch)
        except OSError as error:
            say(f"cannot see whether the job ran before ({error}): taken for its first start")
            earlier = {}
        return AgentId(settings.batch, max((agent.restart + 1 for agent in earlier), default=0), 0)
    return AgentId(settings.batch, int(environ.get("SLURM_RESTART_COUNT", 0)), int(environ.get("SLURM_NODEID", 0)))


def _end_of_job(environ: dict[str, str], settings: AgentSettings, job_id: str) -> float | None:
    """When the job will be ended: Slurm 22.05 and later say so in the environment, older ones are asked once."""
    from clusterduck import clock
    from clusterduck.errors import SlurmError
    from clusterduck.slurm.jobs import job_end_time

    latest = clock.now() + settings.timeout_min * 60
    if settings.cluster == "local":
        return latest
    stated = environ.get("SLURM_JOB_END_TIME", "")
    if stated.isdecimal():
        return float(stated)
    try:
        return job_end_time(job_id, timeout_s=END_TIME_PATIENCE_S)
    except SlurmError as error:
        say(f"{error} The job's end is taken to be its time limit from now.")
        return latest
