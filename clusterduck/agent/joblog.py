"""The agent's own lines in the job's log, which lies on the shared file system like everything else.

A thread writes them, so that neither the wait loop nor the writer waits for a file server that hangs, or dies of a full
one; what cannot be written yet is kept, and written once it can be.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections import deque

#: What could steer a terminal that shows the log; an exception's message may hold anything.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

#: How long to wait before trying again, in seconds.
RETRY_S = 0.5

#: So many lines are kept at most; the oldest go first.
KEPT_LINES = 10_000


class JobLog:
    """A log that never makes anybody wait or fail.

    Args:
        fd: where it is written to.
    """

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._new: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._abandon = threading.Event()

    def say(self, line: str) -> None:
        """Have a line written, with the time."""
        harmless = CONTROL.sub(lambda found: ascii(found.group())[1:-1], line)
        text = f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] clusterduck: {harmless}\n"
        self.write(text.encode("utf-8", "backslashreplace"))

    def write(self, data: bytes) -> None:
        """Have whole lines written as they are."""
        self._new.put(data)
        if self._thread is None:
            self._abandon.clear()
            self._thread = threading.Thread(target=self._run, name="job log", daemon=True)
            self._thread.start()

    def close(self, patience_s: float) -> None:
        """Wait until everything is written, but no longer than ``patience_s`` seconds."""
        if self._thread is not None:
            self._new.put(None)
            self._thread.join(patience_s)
            self._abandon.set()
            self._thread = None

    def _run(self) -> None:
        kept: deque[bytes] = deque()
        closing = False
        while not (closing and not kept) and not self._abandon.is_set():
            try:
                while not closing:
                    data = self._new.get_nowait() if kept else self._new.get()
                    closing = data is None
                    if data is not None:
                        kept.append(data)
            except queue.Empty:
                pass
            while len(kept) > KEPT_LINES:
                kept.popleft()
            if not self._write(kept):
                self._abandon.wait(RETRY_S)

    def _write(self, kept: deque[bytes]) -> bool:
        try:
            while kept:
                written = os.write(self._fd, kept[0])
                kept[0] = kept[0][written:]
                if not kept[0]:
                    kept.popleft()
        except OSError:
            return False
        return True
