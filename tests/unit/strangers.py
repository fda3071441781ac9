"""What the tests with a second user account share. Only root can become another user."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

STRANGER = 54321


def as_stranger(action: Callable[[], object], groups: Sequence[int] = ()) -> str:
    """Do something as another user; returns "done", or the name of the error that it met.

    Args:
        action: what; it may import only what is imported already, for a stranger may not see where it lies.
        groups: those that the stranger is in.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        told = "done"
        try:
            os.setgroups(groups)
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            os.umask(0)
            action()
        except BaseException as error:
            told = type(error).__name__
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child, 0)
    return told


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
