"""A folder to try things in, which is gone afterwards however the process ends.

A small process of its own waits for the end of this one, which it sees by a pipe, and removes the folder. So nothing
stays behind an interrupt, a kill, or a file system that hangs for a while.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".clusterduck-doctor-"

#: How long the removal is waited for, in seconds; it goes on by itself if the file system is slower.
PATIENCE_S = 5.0

#: What the process does: wait for the pipe's end, then remove until there is nothing left, for a minute at most.
_JANITOR = """
import os, shutil, sys, time
sys.stdin.buffer.read()
for _ in range(600):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.lexists(sys.argv[1]):
        break
    time.sleep(0.1)
"""


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in ``folder``, for this user alone.

    Raises:
        OSError: if it cannot be made.
    """
    path = folder / f"{PREFIX}{secrets.token_hex(8)}"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _JANITOR, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C is for us
    ) as janitor:
        try:
            os.mkdir(path, 0o700)
            yield path
        finally:
            assert janitor.stdin is not None
            janitor.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                janitor.wait(PATIENCE_S)
            if janitor.returncode is None:
                janitor.returncode = 0  # it goes on without us; nobody waits for it any more
