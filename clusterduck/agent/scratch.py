"""The agent's own folder on the node: payloads, what cannot be written elsewhere yet, and the runs' way to report.

It lies in the node's temporary folder; where that is missing, full or not ours to write, in memory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

#: Where else there is room for small files on every Linux machine.
IN_MEMORY = "/dev/shm"

#: So much must find room at the start, in bytes: a payload and some reports.
ROOM_BYTES = 256 * 1024


def make_scratch(say: Callable[[str], None]) -> Path | None:
    """Make the folder, for us alone. None if there is no place for it, which is said."""
    refused = []
    for where in (tempfile.gettempdir, lambda: IN_MEMORY):
        try:
            folder = Path(where())
            scratch = _with_room(folder)
        except OSError as error:  # whoever looks for a temporary folder and finds none raises one, too
            refused.append(str(error))
            continue
        if refused:
            say(f"the node has no temporary folder to write to ({refused[0]}): {scratch} is used, which is in memory")
        return scratch
    say(f"the node's own temporary folder cannot be written ({'; '.join(refused)}): nothing was started")
    return None


def _with_room(folder: Path) -> Path:
    scratch = Path(tempfile.mkdtemp(prefix="clusterduck-", dir=folder))
    try:
        probe = scratch / "room"
        probe.write_bytes(os.urandom(ROOM_BYTES))
        probe.unlink()
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return scratch
