"""Who may read what is made: its owner alone, or (with the launcher's ``readable_by``) a group as well, never more.

Which it is, a folder's own permissions say, and all that is made in it follows; so nothing has to be told to agents,
runs and commands. Payloads, results and requests are the owner's alone all the same: nobody else needs them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

#: For folders and for files that a group may read. New folders and files have the group of such a folder.
_FOLDER, _FILE = 0o2750, 0o640


def reading_group(folder: Path) -> int | None:
    """The group that may read what is in one of our folders; None if only its owner may.

    Raises:
        OSError: if it cannot be looked at.
    """
    info = os.stat(folder)
    return info.st_gid if info.st_mode & stat.S_IRGRP else None


def let_read(what: Path | int, group: int | None) -> None:
    """Let a group read a folder or file of ours, whatever the umask; nothing is changed without one.

    Raises:
        OSError: if that cannot be done.
    """
    if group is not None:
        info = os.stat(what)
        if info.st_gid != group:
            os.chown(what, -1, group)
        os.chmod(what, _FOLDER if stat.S_ISDIR(info.st_mode) else _FILE)


def make_folder(path: Path, *, exist_ok: bool = False) -> None:
    """Make a folder that is read by whoever may read the one that it is in.

    Raises:
        FileExistsError: if it is there, unless that is no matter.
        OSError: if it cannot be made.
    """
    group = reading_group(path.parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not exist_ok:
            raise
        return
    let_read(path, group)
