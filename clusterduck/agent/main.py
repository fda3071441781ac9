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
from dataclasses import dataclass
from pathlib import Path

from clusterduck.agent.settings import AgentSettings

#: prctl(2): orphans of the runs become our children, so that none escapes.
PR_SET_CHILD_SUBREAPER = 36

#: For how long the agent tries to write its last reports before it ends without them, in seconds.
CLOSING_PATIENCE_S = 60.0


@dataclass(frozen=True)
class AgentJob:
    """The callable that submitit pickles into the job; by reference, so that unpickling it imports nothing of the user's.

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
    """Run this node's share of a batch. Returns the exit code: 0 only if every attempt that was started here completed."""
    from clusterduck import queue  # noqa: PLC0415 - kept out of the launching process
    from clusterduck.agent.node import discover  # noqa: PLC0415
    from clusterduck.agent.process import run_environment  # noqa: PLC0415
    from clusterduck.agent.slots import build_slots, describe  # noqa: PLC0415
    from clusterduck.agent.supervisor import Supervisor  # noqa: PLC0415
    from clusterduck.agent.writer import Writer  # noqa: PLC0415
    from clusterduck.errors import ClusterduckError  # noqa: PLC0415
    from clusterduck.events import AgentEnded, AgentStarted  # noqa: PLC0415
    from clusterduck.journal import JournalWriter  # noqa: PLC0415
    from clusterduck.model import AgentId  # noqa: PLC0415
    from clusterduck.paths import SweepPaths, make_private_folder  # noqa: PLC0415

    wakeup = _take_signals()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if settings.cluster == "local":
        environ.pop("CUDA_VISIBLE_DEVICES", None)
        if settings.cuda_visible_devices is not None:
            environ["CUDA_VISIBLE_DEVICES"] = settings.cuda_visible_devices
    job_id = _job_id(environ)
    agent = AgentId(settings.batch, int(environ.get("SLURM_RESTART_COUNT", 0)), int(environ.get("SLURM_NODEID", 0)))
    sweep = SweepPaths(Path(settings.sweep_root))
    folder = sweep.agent(agent)
    make_private_folder(folder.parent)
    make_private_folder(folder)
    homes = queue.divide(settings.first_run, settings.stop_run, settings.nodes)
    candidates = queue.order_of_looking(
        homes[agent.node],
        (settings.first_run, settings.stop_run),
        (settings.plan_first, settings.plan_stop) if settings.share_runs else None,
    )
    scratch = Path(tempfile.mkdtemp(prefix="clusterduck-"))
    writer = Writer(
        JournalWriter(folder, sweep.sweep, f"agent {agent}"),
        queue.Claims(sweep.claims, str(agent)),
        candidates,
        scratch / "spool.jsonl",
        wakeup.wake,
        say,
    )
    writer.start()
    fatal = None
    supervisor = None
    try:
        node = discover(environ, settings.cluster)
        slots = build_slots(node, settings.parallel_runs_per_node, settings.resources)
    except ClusterduckError as error:
        fatal = str(error)
        slots = []
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
    if fatal is None:
        os.sched_setaffinity(0, node.cpus)
        if settings.verbose:
            for line in describe(node, slots):
                say(line)
        supervisor = Supervisor(
            settings=settings,
            slots=slots,
            left=len(candidates),
            alone=settings.nodes == 1 and not settings.share_runs,
            job_id=job_id,
            environ=run_environment(environ),
            scratch=scratch,
            wakeup=wakeup.reader,
            writer=writer,
            say=say,
        )
        supervisor.run()
        fatal = supervisor.fatal
    completed = supervisor.completed if supervisor else 0
    unsuccessful = supervisor.unsuccessful if supervisor else 0
    exit_code = 1 if fatal or unsuccessful else 0
    reason = fatal or f"{completed} runs completed, {unsuccessful} did not"
    say(reason)
    writer.record([AgentEnded(reason=reason, exit_code=exit_code)])
    lost = writer.close(CLOSING_PATIENCE_S)
    if lost:
        exit_code = 1
        say(f"{lost} reports could not be written to {folder}; they follow here, and nowhere else:")
        sys.stdout.buffer.write((scratch / "spool.jsonl").read_bytes())
        sys.stdout.buffer.flush()
    shutil.rmtree(scratch, ignore_errors=True)
    return exit_code


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
