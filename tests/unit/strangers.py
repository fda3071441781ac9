"""What the tests with a second user account share. Only root can become another user."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator, Sequence

STRANGER = 54321


def import_all() -> None:
    """Import all of clusterduck, and what it imports only when a replica is made: a stranger may not see where it
    lies."""
    importlib.import_module("sqlite_utils")
    for package in ("clusterduck", "clusterduck_tui"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)


def as_stranger(action: Callable[[], object], groups: Sequence[int] = ()) -> str:
    """Do something as another user; returns "done", or the name of the error that it met.

    Args:
        action: what; it may import only what is imported already, see :func:`import_all`.
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
