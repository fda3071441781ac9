"""The fork server: a fresh, single-threaded interpreter with Hydra loaded and nothing of the user's, which forks one
process per run.

It is started by ``agent.process.ForkServer`` as ``python -m clusterduck.agent.forkserver FD`` and talks to the agent
over that descriptor, one JSON object to a message. When the agent is gone (its end of the connection closes) it kills
every run's process group and ends. It never waits for the shared file system.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterduck.agent import ending, prctl

#: What Slurm sends to every process of a job step, and what only the agent should act upon.
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

#: For how long what the runs left is killed again and again once the agent is gone, in seconds.
ORPHANS_PATIENCE_S = 5.0

#: A message is at most this long, in bytes.
MESSAGE_BYTES = 64 * 1024


def main() -> None:
    """Serve until the agent is gone; in a forked child, be a run instead."""
    ending.begin()
    _ignore_signals()
    server = _Server(socket.socket(fileno=int(sys.argv[1])))
    order = server.serve()
    if order is not None:
        from clusterduck.agent import run

        ending.end(run.main(order))


@dataclass(frozen=True)
class _Standby:
    """A process that is prepared for a run, and the descriptor on which it is told to begin."""

    pid: int
    gate: int


def _ignore_signals() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)  # who started us had them wait until now
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only wakes us


class _Server:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._common: dict[str, Any] = {}
        self._runs: dict[int, str] = {}  # process id -> attempt
        self._standbys: dict[str, _Standby] = {}  # attempt -> the process that is prepared for it
        self._minded: dict[int, bytes] = {}  # an earlier server's runs: process id -> when it was started

    def serve(self) -> dict[str, Any] | None:
        """Serve; returns in the server with None at its end, and in every child with what it is to run."""
        reader, writer = os.pipe()
        for fd in (reader, writer):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            selector.register(reader, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if reader in ready:
                    os.read(reader, 4096)
                    self._reap()
                if self._connection.fileno() in ready:
                    try:
                        message = self._connection.recv(MESSAGE_BYTES)
                    except ConnectionResetError:  # it went before it had read all that we told it
                        message = b""
                    if not message:
                        break
                    order = self._obey(json.loads(message))
                    if order is not None:
                        signal.set_wakeup_fd(-1)
                        os.close(reader)
                        os.close(writer)
                        self._connection.close()
                        return order
        prctl.adopt_orphans()  # the agent is gone, whose children they became until now
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
        if message["do"] == "dismiss":
            self._dismiss(message["attempt"])
            return None
        if message["do"] == "stand by":
            return self._stand_by(message)
        return self._start(message)

    def _start(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Start a run: let the process that was prepared for it begin, or fork one.

        It begins once the agent has been told: if we die between, it ends, and nobody else begins it.
        """
        attempt = message["attempt"]
        standby = self._prepared_for(attempt)
        if standby is None:
            try:
                pid, gate = _fork()
            except OSError as error:
                self._tell({"did": "refused", "attempt": attempt, "error": str(error)})
                return None
            if pid == 0:
                if not os.read(gate, 1):
                    os._exit(0)  # the server is gone
                os.close(gate)
                return self._order(message)
            self._runs[pid] = attempt
            standby = _Standby(pid, gate)
        self._tell({"did": "started", "attempt": attempt, "pid": standby.pid})
        with contextlib.suppress(BrokenPipeError):  # it has died meanwhile, as its end will tell
            os.write(standby.gate, b"!")
        os.close(standby.gate)
        return None

    def _stand_by(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Fork a process that prepares a run and waits. If that cannot be, its start will tell."""
        if message["attempt"] in self._standbys:
            return None
        try:
            pid, gate = _fork()
        except OSError:
            return None
        if pid == 0:
            return self._order({**message, "gate": gate})
        self._runs[pid] = message["attempt"]
        self._standbys[message["attempt"]] = _Standby(pid, gate)
        return None

    def _order(self, message: dict[str, Any]) -> dict[str, Any]:
        """In a child: what it is to run, once it holds nothing that is not its own."""
        for standby in self._standbys.values():
            os.close(standby.gate)
        return {**self._common, **message}

    def _prepared_for(self, attempt: str) -> _Standby | None:
        """The process that was prepared for an attempt; None if there is none any more."""
        standby = self._standbys.pop(attempt, None)
        if standby is None or os.waitid(os.P_PID, standby.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return standby
        os.close(standby.gate)
        del self._runs[standby.pid]
        return None

    def _dismiss(self, attempt: str) -> None:
        """Have the process that was prepared for an attempt end without a trace."""
        standby = self._standbys.pop(attempt, None)
        if standby is not None:
            os.close(standby.gate)
            self._runs.pop(standby.pid)
            _kill_group(standby.pid)

    def _prepare(self, message: dict[str, Any]) -> None:
        """Load Hydra, and the plain part of a launch's payload, once for all its runs to come."""
        from clusterduck.agent import run
        from clusterduck.errors import ClusterduckError, ConfigError

        self._common = message
        try:
            run.prepare(message["launch"], Path(message["payload_file"]), message["preload"])
        except ConfigError as error:  # it is the same for every run: none is begun
            self._tell({"did": "cannot serve", "error": str(error)})
            return
        except (ClusterduckError, OSError) as error:
            self._tell({"did": "failed to prepare", "launch": message["launch"], "error": str(error)})
            return
        _ignore_signals()  # whatever the imported modules did to them
        gc.collect()
        gc.freeze()  # so that a child's first collection does not copy all of our pages
        self._tell({"did": "prepared", "launch": message["launch"]})

    def _reap(self) -> None:
        """Kill what an ended run left in its group, while its process id cannot be anybody else's; then report it."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            _kill_group(ended.si_pid)
            _, status, usage = os.wait4(ended.si_pid, 0)
            attempt = self._runs.pop(ended.si_pid, None)
            standby = self._standbys.get(attempt) if attempt is not None else None
            if standby is not None and standby.pid == ended.si_pid:  # its start forks anew
                os.close(standby.gate)
                del self._standbys[str(attempt)]
            elif attempt is not None:
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


def _fork() -> tuple[int, int]:
    """Fork a process that waits at a gate. Returns, as ``os.fork`` does, its id, or 0 in it; and this side of the gate.

    Raises:
        OSError: if there can be no further process, or no further pipe.
    """
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    here, there = (writer, reader) if pid else (reader, writer)
    os.close(there)
    return pid, here


def _start_of(pid: int) -> bytes | None:
    """When a process was started, in the kernel's own count (field 22 of ``/proc/<pid>/stat``, proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19]
    except OSError:
        return None


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
    """Kill a child's process group, or the child alone if it is too young to have one."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended before it had a group of its own, or nothing of it is left
        except PermissionError:
            return  # what is left of it has become another user's, by a set-user-id program: not ours to kill
        else:
            return


if __name__ == "__main__":
    main()
