"""The fork server: a fresh, single-threaded interpreter with Hydra loaded and nothing of the user's, which forks one
process per run.

It is started by ``agent.process.ForkServer`` as ``python -m clusterduck.agent.forkserver FD`` and talks to the agent
over that descriptor, one JSON object to a message. When the agent is gone (its end of the connection closes) it kills
every run's process group and ends. It never waits for the shared file system.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

#: What Slurm sends to every process of a job step, and what only the agent should act upon.
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

#: prctl(2): orphans of the runs become our children.
PR_SET_CHILD_SUBREAPER = 36

#: For how long what the runs left is killed again and again once the agent is gone, in seconds.
ORPHANS_PATIENCE_S = 5.0

#: A message is at most this long, in bytes.
MESSAGE_BYTES = 64 * 1024


def main() -> None:
    """Serve until the agent is gone; in a forked child, be a run instead."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    server = _Server(socket.socket(fileno=int(sys.argv[1])))
    order = server.serve()
    if order is not None:
        from clusterduck.agent import run

        sys.exit(run.main(order))


class _Server:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._common: dict[str, Any] = {}
        self._runs: dict[int, str] = {}  # process id -> attempt
        self._minded: dict[int, bytes] = {}  # an earlier server's runs: process id -> when it was started

    def serve(self) -> dict[str, Any] | None:
        """Serve; returns in the server with None at its end, and in every child with what it is to run."""
        reader, writer = os.pipe()
        for fd in (reader, writer):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            selector.register(reader, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if reader in ready:
                    os.read(reader, 4096)
                    self._reap()
                if self._connection.fileno() in ready:
                    message = self._connection.recv(MESSAGE_BYTES)
                    if not message:
                        break
                    order = self._obey(json.loads(message))
                    if order is not None:
                        signal.set_wakeup_fd(-1)
                        os.close(reader)
                        os.close(writer)
                        self._connection.close()
                        return order
        _adopt_orphans()
        for pid in self._runs:
            _kill_group(pid)
        for pid, start in self._minded.items():
            if _start_of(pid) == start:  # else it has ended, and its number may be anybody's
                _kill_group(pid)
        _kill_descendants()
        return None

    def _obey(self, message: dict[str, Any]) -> dict[str, Any] | None:
        if message["do"] == "prepare":
            self._prepare(message)
            return None
        if message["do"] == "mind":
            starts = {pid: _start_of(pid) for pid in message["pids"]}
            self._minded |= {pid: start for pid, start in starts.items() if start is not None}
            return None
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"did": "refused", "attempt": message["attempt"], "error": str(error)})
            return None
        if pid == 0:
            return {**self._common, **message}
        self._runs[pid] = message["attempt"]
        self._tell({"did": "started", "attempt": message["attempt"], "pid": pid})
        return None

    def _prepare(self, message: dict[str, Any]) -> None:
        """Load Hydra, and the plain part of a launch's payload, once for all its runs to come."""
        from clusterduck.agent import run
        from clusterduck.errors import ClusterduckError

        self._common = message
        try:
            run.prepare(message["launch"], Path(message["payload_file"]))
        except (ClusterduckError, OSError) as error:
            self._tell({"did": "failed to prepare", "launch": message["launch"], "error": str(error)})
            return
        gc.collect()
        gc.freeze()  # so that a child's first collection does not copy all of our pages
        self._tell({"did": "prepared", "launch": message["launch"]})

    def _reap(self) -> None:
        """Kill what an ended run left in its group, while its process id cannot be anybody else's; then report it."""
        while self._runs:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            _kill_group(ended.si_pid)
            _, status, usage = os.wait4(ended.si_pid, 0)
            attempt = self._runs.pop(ended.si_pid, None)
            if attempt is not None:
                self._tell(
                    {
                        "did": "ended",
                        "attempt": attempt,
                        "status": status,
                        "peak_memory_bytes": usage.ru_maxrss * 1024,
                        "cpu_time_s": round(usage.ru_utime + usage.ru_stime, 3),
                    }
                )

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self._connection.send(json.dumps(message).encode())
        except (BrokenPipeError, ConnectionResetError):
            return  # the agent is gone: the next look at the connection ends us


def _start_of(pid: int) -> bytes | None:
    """When a process was started, in the kernel's own count (field 22 of ``/proc/<pid>/stat``, proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19]
    except OSError:
        return None


def _adopt_orphans() -> None:
    """The agent, whose children the runs' orphans became until now, is gone: let them become ours (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_descendants() -> None:
    """Kill whatever the runs had started in sessions of their own, and what that had started, until nothing is left."""
    from clusterduck.agent.process import children

    until = time.monotonic() + ORPHANS_PATIENCE_S
    while time.monotonic() < until:
        for pid in children():
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        time.sleep(0.005)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended before it had a group of its own, or nothing of it is left
    except PermissionError:
        return  # what is left of it has become another user's, by a set-user-id program: not ours to kill


if __name__ == "__main__":
    main()
