"""A real terminal with a shell in it, as a test sees it: keys, what stands there, and how the terminal is set."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

#: A fact that has not come about after so many seconds never will.
PATIENCE_S = 60.0


class Terminal:
    """A tmux server of its own with one shell in it.

    Args:
        folder: where the shell begins; the server's socket lies there, too.
        width: in columns.
        height: in lines.
        environ: the shell's environment; None: ours.
    """

    def __init__(
        self, folder: Path, width: int = 80, height: int = 24, environ: Mapping[str, str] = os.environ
    ) -> None:
        tmux = shutil.which("tmux", path=f"{os.defpath}:/usr/local/bin")
        if tmux is None:
            pytest.skip("tmux is not installed")
        self._tmux = [tmux, "-S", str(folder / "tmux.sock"), "-f", "/dev/null"]
        self._folder = folder
        shell = ["new-session", "-d", "-x", str(width), "-y", str(height), "-c", str(folder), "sh"]
        settings = {"ENV": "", "PS1": "$ ", "TERM": "screen", "LC_ALL": "C.UTF-8"}
        subprocess.run(
            [*self._tmux, *shell], check=True, env={**(os.environ if environ is None else environ), **settings}
        )
        self.set_before = self.settings()

    def keys(self, *keys: str) -> None:
        """Press keys, by tmux's names of them."""
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    def type(self, text: str) -> None:
        """Type a command, and Enter."""
        subprocess.run([*self._tmux, "send-keys", "-l", text], check=True)
        self.keys("Enter")

    @property
    def text(self) -> str:
        """What stands there."""
        return self._ask("capture-pane", "-p")

    def see(self, *words: str) -> str:
        """Wait until all of these stand there; returns it."""
        self.fact(lambda: all(word in self.text for word in words), f"{words} did not come")
        return self.text

    def miss(self, word: str) -> str:
        """Wait until this stands there no longer; returns what does."""
        self.fact(lambda: word not in self.text, f"{word!r} is still there")
        return self.text

    def fact(self, fact: Callable[[], bool], what: str) -> None:
        """Wait until something is the case."""
        deadline = time.monotonic() + PATIENCE_S
        while not fact():
            assert time.monotonic() < deadline, f"{what}:\n{self.text}"
            time.sleep(0.05)

    def resize(self, width: int, height: int) -> None:
        """Make it larger, or smaller."""
        self._ask("resize-window", "-x", str(width), "-y", str(height))

    def settings(self) -> str:
        """How the line is set, asked of the shell, which has to be in front."""
        file = self._folder / "stty"
        file.unlink(missing_ok=True)
        self.type(f"stty -g > {shlex.quote(str(file))}.new && mv stty.new stty; clear")
        self.fact(file.exists, "the shell does not answer")
        return file.read_text()

    def require_sane(self) -> None:
        """The terminal is as it was: line settings, the normal screen, a cursor, no mouse reports."""
        modes = "#{alternate_on} #{cursor_flag} #{mouse_any_flag} #{keypad_flag}"
        assert self._ask("display-message", "-p", modes).strip() == "0 1 0 0"
        assert self.settings() == self.set_before

    def close(self) -> None:
        """End the shell, and all that runs in it."""
        subprocess.run([*self._tmux, "kill-server"], check=False)

    def _ask(self, *command: str) -> str:
        return subprocess.run([*self._tmux, *command], check=True, capture_output=True).stdout.decode()


def dashboard(*arguments: str) -> str:
    """The command line of the dashboard."""
    return shlex.join([sys.executable, "-m", "clusterduck_tui", *arguments])
