"""A program in a pseudo-terminal, as a person would meet it: keys go in, and each picture that comes out is timed.

The terminal says that it can take a picture at once (synchronized output), so that it knows when one is complete.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: What ends a picture; what a program asks whether that is understood, and the answer; a terminal's other words.
_PICTURE_ENDS = b"\x1b[?2026l"
_ASKED, _ANSWER = b"\x1b[?2026$p", b"\x1b[?2026;2$y"
_ESCAPES = re.compile(rb"\x1b(\[[0-9;?<>=$]*[a-zA-Z]|[()][A-Z0-9]|\][^\x07]*\x07)")


class Terminal:
    """A process with a terminal of its own."""

    def __init__(self, command: Sequence[str], folder: Path, environ: Mapping[str, str], size: tuple[int, int]) -> None:
        self.begun = time.perf_counter()
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(command[0], list(command), {**environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"})
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self._seen = b""
        self._is_answered = False

    def _read(self, seconds: float) -> bool:
        """Take what has come, or comes within the time; tells whether anything did."""
        if not select.select([self._fd], [], [], max(0.0, seconds))[0]:
            return False
        try:
            self._seen += os.read(self._fd, 1 << 20)
        except OSError:  # the program is gone
            return False
        if not self._is_answered and _ASKED in self._seen:
            self._is_answered = True
            os.write(self._fd, _ANSWER)
        return True

    def wait_for(self, text: str, seconds: float = 60.0) -> float:
        """Wait until a picture holds ``text`` in one place; returns the seconds since the program's start.

        Raises:
            TimeoutError: if none does.
        """
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            if self._read(deadline - time.perf_counter()):
                plain = _ESCAPES.sub(b"", self._seen)
                if text.encode() in plain:
                    return time.perf_counter() - self.begun
        raise TimeoutError(f"{text!r} did not come; the last words were {self._seen[-300:]!r}")

    def press(self, key: str, seconds: float = 2.0) -> float | None:
        """Press a key; returns the seconds until a picture that came after it was complete, None if none came."""
        while self._read(0.0):
            pass
        self._seen = b""
        at = time.perf_counter()
        os.write(self._fd, key.encode())
        while time.perf_counter() - at < seconds:
            if self._read(seconds - (time.perf_counter() - at)) and _PICTURE_ENDS in self._seen:
                return time.perf_counter() - at
        return None

    def rest(self, seconds: float) -> None:
        """Go on reading for so long, so that the program is never held up by its terminal."""
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            self._read(deadline - time.perf_counter())

    @property
    def cpu_s(self) -> float:
        """Processor seconds of all its threads since its start."""
        return time.clock_gettime((~self.pid << 3) | 2)  # the kernel's name for another process's clock

    @property
    def memory_mb(self) -> float:
        """The most memory that it ever held."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def quit(self, key: str = "q", seconds: float = 10.0) -> float:
        """Press the key that ends it; returns the seconds until it is gone."""
        at = time.perf_counter()
        os.write(self._fd, key.encode())
        while time.perf_counter() - at < seconds:
            self._read(0.005)
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                os.close(self._fd)
                return time.perf_counter() - at
        self.kill()
        raise TimeoutError("it did not end")

    def kill(self) -> None:
        """End it in any case."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)
