"""Who does something, and where: for the record of every launch and act."""

from __future__ import annotations

import getpass
import os
import socket


def user() -> str:
    """The user's name; the number where the host knows no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError until Python 3.12, OSError since
        return str(os.getuid())


def host() -> str:
    """This host's name."""
    return socket.gethostname()


def user_at_host() -> str:
    """Both, as people write them."""
    return f"{user()}@{host()}"
