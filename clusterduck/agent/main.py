"""The agent's composition root: what submitit calls inside the job, and how the parts are put together there."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clusterduck.agent.settings import AgentSettings

if TYPE_CHECKING:
    from clusterduck.agent.writer import Writer
    from clusterduck.model import Slot

#: prctl(2): orphans of the runs become our children, so that none escapes.
PR_SET_CHILD_SUBREAPER = 36

#: For how long the agent tries to write its last reports before it ends without them, in seconds.
CLOSING_PATIENCE_S = 60.0


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
            SystemExit: with 1 if not all of the runs completed, so that the job's exit code says so.
        """
        exit_code = run_agent(self.settings, dict(os.environ))
        if exit_code:
            raise SystemExit(exit_code)
        return 0


def say(line: str) -> None:
    """Print a line into the job's log, with the time."""
    print(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] clusterduck: {line}", flush=True)  # noqa: T201 - the job's log


def run_agent(settings: AgentSettings, environ: dict[str, str]) -> int:
    """Run this node's share of a batch.

    Returns the exit code: 0 only if every attempt that was started here completed.
    """
    from clusterduck import queue
    from clusterduck.agent.writer import Writer
    from clusterduck.events import AgentEnded
    from clusterduck.journal import JournalWriter
    from clusterduck.model import AgentId
    from clusterduck.paths import SweepPaths

    wakeup = _take_signals()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if settings.cluster == "local":
        environ.pop("CUDA_VISIBLE_DEVICES", None)
        if settings.cuda_visible_devices is not None:
            environ["CUDA_VISIBLE_DEVICES"] = settings.cuda_visible_devices
    agent = AgentId(settings.batch, int(environ.get("SLURM_RESTART_COUNT", 0)), int(environ.get("SLURM_NODEID", 0)))
    sweep = SweepPaths(Path(settings.sweep_root))
    homes = queue.divide(settings.first_run, settings.stop_run, settings.nodes)
    candidates = queue.order_of_looking(
        homes[agent.node],
        (settings.first_run, settings.stop_run),
        (settings.plan_first, settings.plan_stop) if settings.share_runs else None,
    )
    try:
        scratch = Path(tempfile.mkdtemp(prefix="clusterduck-"))
    except OSError as error:
        say(f"the node's own temporary folder {tempfile.gettempdir()} cannot be written ({error}): nothing was started")
        return 1
    writer = Writer(
        folder=sweep.agent(agent),
        journal=JournalWriter(sweep.agent(agent), sweep.sweep, f"agent {agent}"),
        claims=queue.Claims(sweep.claims, str(agent)),
        candidates=candidates,
        spool=scratch / "spool.jsonl",
        wake=wakeup.wake,
        say=say,
    )
    writer.start()
    try:
        reason, succeeded = _work(
            settings, environ, left=len(candidates), scratch=scratch, wakeup=wakeup.reader, writer=writer
        )
    except Exception:
        say(traceback.format_exc())
        reason, succeeded = "the agent itself failed; its log has the traceback", False
    say(reason)
    exit_code = 0 if succeeded else 1
    writer.record([AgentEnded(reason=reason, exit_code=exit_code)])
    lost = writer.close(CLOSING_PATIENCE_S)
    if lost:
        exit_code = 1
        say(f"{len(lost)} reports could not be written to {sweep.agent(agent)}; they follow here, and nowhere else:")
        sys.stdout.buffer.write(b"".join(lost))
        sys.stdout.buffer.flush()
    shutil.rmtree(scratch, ignore_errors=True)
    return exit_code


def _work(
    settings: AgentSettings, environ: dict[str, str], *, left: int, scratch: Path, wakeup: int, writer: Writer
) -> tuple[str, bool]:
    """Find out what the node gives and run attempts there until none is left. Returns how it went, and whether well."""
    from clusterduck.agent.node import discover
    from clusterduck.agent.process import run_environment
    from clusterduck.agent.slots import build_slots, describe
    from clusterduck.agent.supervisor import Supervisor
    from clusterduck.errors import ConfigError
    from clusterduck.events import AgentStarted

    job_id = _job_id(environ)
    slots: list[Slot] = []
    trouble = None
    try:
        node = discover(environ, settings.cluster)
        os.sched_setaffinity(0, node.cpus)
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
            )
        ]
    )
    if trouble is not None:
        return trouble, False
    supervisor = Supervisor(
        settings=settings,
        slots=slots,
        left=left,
        alone=settings.nodes == 1 and not settings.share_runs,
        job_id=job_id,
        environ=run_environment(environ),
        scratch=scratch,
        wakeup=wakeup,
        writer=writer,
        say=say,
    )
    supervisor.run()
    completed, unsuccessful = supervisor.completed, supervisor.unsuccessful
    reason = supervisor.fatal or f"{completed} runs completed, {unsuccessful} did not"
    return reason, not (unsuccessful or supervisor.fatal)


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


def _job_id(environ: dict[str, str]) -> str:
    array, index = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    if array and index:
        return f"{array}_{index}"
    return environ.get("SLURM_JOB_ID") or environ.get("SUBMITIT_LOCAL_JOB_ID") or str(os.getpid())
