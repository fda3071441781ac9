"""Starts runs through the fork server, and starts a new fork server when one dies: the runs it had go on as our
children."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clusterduck.agent.process import ForkServer, children
from clusterduck.agent.running import Running

#: How many times in a row the fork server may die before it has loaded a payload.
TRIES = 3


class Starter:
    """The fork server of the moment, and the orders it has not carried out yet.

    ``broken`` says that none can be had, ``trouble`` why the one there is can start no run at all.

    Args:
        environ: the environment of every run.
        common: what every run is told.
        payload_copy: where a launch's payload lies on the node's own disk.
        attach: called with each new server, to have the wait loop watch it; and with the one to be forgotten.
        say: prints a line into the job's log.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        common: Mapping[str, Any],
        payload_copy: Callable[[int], Path],
        attach: Callable[[ForkServer, bool], None],
        say: Callable[[str], None],
    ) -> None:
        self._environ = environ
        self._common = common
        self._payload_copy = payload_copy
        self._attach = attach
        self._say = say
        self._failures = 0
        self._prepared: set[int] = set()
        self._asked_to_prepare: set[int] = set()
        self._waiting: list[Running] = []
        self._standbys: list[Running] = []
        self._server = self._new_server()
        self.broken = False
        self.trouble: str | None = None

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._server.process.pid

    def prepare(self, launch: int) -> None:
        """Have the server load a launch's payload, which must lie on the node's own disk."""
        if launch not in self._asked_to_prepare:
            self._asked_to_prepare.add(launch)
            self._send(
                {
                    "do": "prepare",
                    "launch": launch,
                    "payload_file": str(self._payload_copy(launch)),
                    **self._common,
                }
            )

    def start(self, running: Running) -> None:
        """Have a run started, as soon as its launch's payload is loaded."""
        if running in self._standbys:
            self._standbys.remove(running)
        self.prepare(running.launch)
        if running.launch in self._prepared:
            self._send(running.order())
        else:
            self._waiting.append(running)

    def stand_by(self, running: Running) -> None:
        """Have a run's process prepared, to wait until it is started or dismissed."""
        self._standbys.append(running)
        self.prepare(running.launch)
        if running.launch in self._prepared:
            self._send(running.order("stand by"))

    def dismiss(self, running: Running) -> None:
        """Have what was prepared for a run end without a trace."""
        self._standbys.remove(running)
        self._send(running.order("dismiss"))

    def take_back(self, running: Running) -> bool:
        """Do not start a run after all. False if the server has been told to already."""
        if running not in self._waiting:
            return False
        self._waiting.remove(running)
        return True

    def receive(
        self, unstarted: Callable[[], list[Running]], started: Callable[[], list[Running]]
    ) -> list[dict[str, Any]]:
        """What the server has to say of runs: messages that they ``started``, ``ended``, or were ``refused``.

        Args:
            unstarted: tells which runs it was told to start and has not reported; a new server is told again.
            started: tells which runs it has started that have not ended. Those whose processes are gone have ended
                without its word; a new server kills those of an earlier one, too, when we die.
        """
        messages = self._server.receive()
        if messages is None:
            return self._replace(unstarted(), started())
        found: list[dict[str, Any]] = []
        for message in messages:
            if message["did"] == "prepared":
                self._failures = 0
                self._prepared.add(message["launch"])
                self._start_waiting(message["launch"])
            elif message["did"] == "cannot serve":
                self.trouble = message["error"]
            elif message["did"] == "failed to prepare":
                self._asked_to_prepare.discard(message["launch"])
                found += self._refuse(self._forget_waiting(message["launch"]), message["error"])
            else:
                found.append(message)
        return found

    def reap(self) -> None:
        """Collect the server's process, which has ended; its connection tells the rest."""
        self._server.process.wait()

    def close(self) -> None:
        """Have the server kill what still runs, and end."""
        if not self.broken:
            self._attach(self._server, False)
        self._server.close()
        self._server.process.wait()

    def _new_server(self) -> ForkServer:
        server = ForkServer(self._environ)
        self._attach(server, True)
        return server

    def _replace(self, unstarted: list[Running], started: list[Running]) -> list[dict[str, Any]]:
        self._attach(self._server, False)
        self._server.close()
        self._server.process.wait()
        ours = set(children())  # its children are ours now, also those that have ended
        gone = [running for running in started if running.pid not in ours]
        ended: list[dict[str, Any]] = [
            {"did": "ended", "attempt": str(running.attempt), "status": None} for running in gone
        ]
        self._failures += not self._prepared
        launches, self._asked_to_prepare = self._asked_to_prepare, set()
        self._prepared = set()
        if self._failures >= TRIES:
            self.broken = True
            self._waiting = []
            words = "the fork server ends as soon as it is started; the job's log has its words"
            return [*ended, *self._refuse(unstarted, words)]
        self._waiting += [running for running in unstarted if running not in self._waiting]
        self._server = self._new_server()
        self._send({"do": "mind", "pids": [running.pid for running in started if running not in gone]})
        self._say("the fork server died; its runs go on, a new one is started")
        for launch in launches:
            self.prepare(launch)
        return ended

    def _start_waiting(self, launch: int) -> None:
        for running in self._forget_waiting(launch):
            self._send(running.order())
        for running in self._standbys:
            if running.launch == launch:
                self._send(running.order("stand by"))

    def _forget_waiting(self, launch: int) -> list[Running]:
        mine = [running for running in self._waiting if running.launch == launch]
        self._waiting = [running for running in self._waiting if running.launch != launch]
        return mine

    @staticmethod
    def _refuse(runs: list[Running], error: str) -> list[dict[str, Any]]:
        return [{"did": "refused", "attempt": str(running.attempt), "error": error} for running in runs]

    def _send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead: its end is about to be read
            self._server.send(message)
