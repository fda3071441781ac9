"""Where the runs of a node report to their agent: a datagram socket on the node's own disk, a JSON object a message."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

#: The longest address of a Unix socket that is surely taken, in bytes; unix(7) allows 108 with the closing zero.
ADDRESS_BYTES = 100

#: No report is longer, in bytes: ``agent.run`` bounds what it sends.
REPORT_BYTES = 1 << 18


class Reports:
    """The agent's end of that socket.

    Args:
        scratch: a folder for us alone; if its path is too long for a socket, the socket gets one below /tmp.
    """

    def __init__(self, scratch: Path) -> None:
        self._folder: str | None = None
        address = scratch / "reports"
        if len(os.fsencode(address)) > ADDRESS_BYTES:
            self._folder = tempfile.mkdtemp(prefix="clusterduck-", dir="/tmp")
            address = Path(self._folder, "reports")
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(self.address)

    def fileno(self) -> int:
        """The descriptor that becomes readable when there is something to :meth:`receive`."""
        return self._socket.fileno()

    def receive(self) -> list[dict[str, Any]]:
        """All reports that have come, oldest first; each names its ``attempt``."""
        found: list[dict[str, Any]] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                report = json.loads(self._socket.recv(REPORT_BYTES))
                if isinstance(report, dict):
                    found.append(report)
        return found

    def close(self) -> None:
        """Take no more reports."""
        self._socket.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
