"""The agent's side of processes: the fork server's handle, killing all that a run started, and reading how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterduck.agent.forkserver import IGNORED, MESSAGE_BYTES
from clusterduck.model import Attempt, State

#: Variables that tell a program which rank of a parallel job it is; a run is none (Lightning and MPI would believe it).
RANK_VARIABLES = (
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_TASKS_PER_NODE",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_GTIDS",
    "SLURM_TASK_PID",
)
RANK_PREFIXES = ("SLURM_STEP_", "SLURM_STEPID", "SLURM_STEPMGR", "PMI_", "PMI2_", "PMIX_", "PMIX", "OMPI_")


def run_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that every run starts from: the job's, with the job's rank hidden."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in RANK_VARIABLES and not name.startswith(RANK_PREFIXES)
    }
    return {**kept, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


@contextlib.contextmanager
def _kept_from(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Processes started meanwhile get none of these signals until they let them through (sigprocmask(2)).

    What comes meanwhile for the process itself comes when this is over.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ForkServer:
    """A fork server that is running, and the connection to it.

    Args:
        environ: the environment of the server, and so of every run.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, _kept_from(IGNORED):
            self.process = subprocess.Popen(
                [sys.executable, "-m", "clusterduck.agent.forkserver", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=dict(environ),
                start_new_session=True,
            )
        self._connection.setblocking(False)
        self._unsent: deque[bytes] = deque()

    def fileno(self) -> int:
        """The descriptor that becomes readable when there is something to :meth:`receive`."""
        return self._connection.fileno()

    @property
    def is_behind(self) -> bool:
        """Whether it has not taken all that it was sent: :meth:`receive` goes on once the descriptor is writable."""
        return bool(self._unsent)

    def send(self, message: Mapping[str, Any]) -> None:
        """Have the server do something.

        Raises:
            OSError: if it is gone.
        """
        data = json.dumps(message).encode()
        if len(data) > MESSAGE_BYTES:
            raise OSError(f"a message of {len(data)} bytes is too long for the fork server")
        self._unsent.append(data)
        self._send_on()

    def _send_on(self) -> None:
        """Send what it has room for: many slots that begin at once are more than a socket holds."""
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._connection.send(self._unsent[0])
                self._unsent.popleft()

    def receive(self) -> list[dict[str, Any]] | None:
        """What the server has to say, or None once it is gone and all it said has been read."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end is about to be read
            self._send_on()
        found: list[dict[str, Any]] = []
        while True:
            try:
                data = self._connection.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return found
            except ConnectionResetError:
                continue  # it died before it had read all, which comes before what it said last (unix(7))
            if not data:
                return found or None
            found.append(json.loads(data))

    def close(self) -> None:
        """Hang up: the server kills what still runs, and ends."""
        self._connection.close()


@dataclass(frozen=True)
class Leftovers:
    """What a run may leave behind: its process group and session, and what escaped from both.

    What a run started and then orphaned becomes the agent's child, since the agent is a sub-reaper; it is known by its
    session or by the variables that every run has.
    """

    pid: int
    attempt: Attempt
    sweep: str

    def kill(self, protected: set[int]) -> bool:
        """Kill all that is left, except for ``protected`` process ids. Returns whether nothing was there any more."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
            return False
        orphans = [pid for pid in children() if pid not in protected and self._owns(pid)]
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return not orphans

    def _owns(self, pid: int) -> bool:
        try:
            if os.getsid(pid) == self.pid:
                return True
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False  # gone, or another user's
        marks = {
            b"CLUSTERDUCK_SWEEP=" + os.fsencode(self.sweep),
            b"CLUSTERDUCK_RUN=%d" % self.attempt.run,
            b"CLUSTERDUCK_ATTEMPT=%d" % self.attempt.number,
        }
        return marks <= set(environ)


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a run's process group, or to the run alone if it is too young to have one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            os.kill(pid, number)


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal: ``SigCgt`` of ``/proc/<pid>/status`` (proc(5))."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (number - 1) & 1)


def children() -> list[int]:
    """The process ids of our own children, orphans of the runs among them."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


@dataclass(frozen=True)
class Exit:
    """How a run's process ended.

    Attributes:
        status: what wait() gave, or None if nobody could tell.
        report: what the run itself said at its end, if it came that far (see ``agent.run``).
        oom_kills: how many processes of the job the kernel killed for want of memory while the run ran, if it counts
            them.
        asked_to_end: whether the agent had asked the run to end, and the state that follows from its reason.
    """

    status: int | None
    report: Mapping[str, Any] | None
    oom_kills: int | None = None
    asked_to_end: tuple[State, str] | None = None


@dataclass(frozen=True)
class Verdict:
    """The state an exit amounts to, with a reason that a person can read.

    ``with_job`` says that it ended because its job has to.
    """

    state: State
    reason: str
    exit_code: int | None
    signal: int | None
    with_job: bool = False


def judge(end: Exit) -> Verdict:
    """Tell how an attempt ended, from the process's exit, its own report, and what the kernel counted."""
    code = os.waitstatus_to_exitcode(end.status) if end.status is not None else None
    number = -code if code is not None and code < 0 else None
    exit_code = code if number is None else None
    report = end.report
    if report is not None and report.get("state") == State.COMPLETED.value:
        reason = str(report.get("reason", ""))
        if number is not None and not end.asked_to_end:
            reason = "; ".join(filter(None, [reason, f"killed by {signal_name(number)} after it had returned"]))
        return Verdict(State.COMPLETED, reason, exit_code, number)
    if end.asked_to_end is not None:
        return Verdict(*end.asked_to_end, exit_code, number)
    if report is not None:
        return Verdict(State.FAILED, str(report.get("reason", "")), exit_code, number)
    if number == signal.SIGKILL and end.oom_kills:
        return Verdict(State.OUT_OF_MEMORY, "killed by the kernel: the job was out of memory", None, number)
    if number is not None:
        reason = f"killed by {signal_name(number)}{_likely_cause(number)}"
    elif code is None:
        reason = "its process vanished, nobody saw how"
    else:
        reason = f"its process ended by itself with exit code {code}, without returning"
    return Verdict(State.FAILED, reason, exit_code, number)


def signal_name(number: int) -> str:
    """A signal's name, e.g. ``SIGSEGV``; ``signal 40`` where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _likely_cause(number: int) -> str:
    causes = {
        signal.SIGKILL: "; often this means out of memory, or somebody killed it",
        signal.SIGSEGV: "; native code accessed memory it should not have",
        signal.SIGBUS: "; often a full /dev/shm, or a mapped file that was cut short",
        signal.SIGABRT: "; native code gave up, see its log",
        signal.SIGILL: "; native code was built for another processor",
        signal.SIGFPE: "; native code divided by zero",
    }
    return causes.get(signal.Signals(number), "") if number in list(signal.Signals) else ""
