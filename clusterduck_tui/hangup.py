"""Ends the dashboard when its terminal goes away, also where no signal tells it.

A shell that ignores SIGHUP, or a program between, keeps the signal from us when a connection drops; and a main thread
that waits for a terminal to take what it writes hears no signal. Such a dashboard would use up a core of the login node
for ever: Textual reads the end of its input again and again.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

#: What a shell says of a program that a hangup ended.
EXIT_CODE = 128 + signal.SIGHUP

#: Seconds that the dashboard has to end by itself.
GRACE_S = 5.0


class HangupWatch(threading.Thread):
    """Waits until the terminal has gone, asks the app to end, and ends the process if it does not.

    Args:
        terminal: its file descriptor.
        leave: asks the app to end; called by this thread.
    """

    def __init__(self, terminal: int, leave: Callable[[], object]) -> None:
        super().__init__(name="clusterduck-hangup", daemon=True)
        self._terminal = terminal
        self._leave = leave

    def run(self) -> None:
        """Wait; a hangup is told whether or not one asks for it (poll(2))."""
        poll = select.poll()
        poll.register(self._terminal, 0)
        poll.poll()
        with suppress(RuntimeError):  # its loop has ended, so it is ending already
            self._leave()
        time.sleep(GRACE_S)
        os._exit(EXIT_CODE)  # as safe as any kill: what was acknowledged has been written
