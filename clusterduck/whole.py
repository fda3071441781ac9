"""Files that people asked for: whole under their names or not there at all, and errors name them as people did."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A text file beside ``path``, renamed to it in the end, so that nobody finds half of it; links are not followed.

    Raises:
        OSError: if it cannot be written, with ``path`` as its filename; what had the name before is still there.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                yield file
            os.replace(beside, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(beside)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
