"""A file in a program of the person's choice: ``$PAGER`` or ``$EDITOR``, which may have options and quotes in it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What is used where the variable is not set.
FALLBACK = {"PAGER": "less", "EDITOR": "vi"}


def open_file(variable: str, path: str) -> str | None:
    """Open a file, and wait until the person is done with it.

    Args:
        variable: the name of the environment variable that names the program.
        path: the file.

    Returns:
        What went wrong, in a sentence.
    """
    if not Path(path).is_file():
        return f"{path} is not there (any more)."
    value = os.environ.get(variable, "").strip() or FALLBACK[variable]
    try:
        command = shlex.split(value)
    except ValueError as error:
        return f"{variable} cannot be understood: {value} ({error})."
    try:
        with _left_to_the_program():
            done = subprocess.run([*command, path], check=False)
    except OSError as error:
        return f"{variable}={value} cannot be started: {error.strerror}."
    if done.returncode < 0:
        return f"{value} was ended by {signal.Signals(-done.returncode).name}."
    return f"{value} ended with exit code {done.returncode}." if done.returncode else None


@contextmanager
def _left_to_the_program() -> Iterator[None]:
    """Ctrl-C and Ctrl-\\ go to all programs of a terminal; the one in front deals with them, and we go on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
