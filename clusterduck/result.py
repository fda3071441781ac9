"""The result of one attempt as a file of its own: Hydra's ``JobReturn``, and beside it a report that needs no
unpickling.

The file begins with an ordinary pickle, so ``pickle.load`` reads it. Behind the pickle stand the report (one JSON
object) and its length in eight digits and a line feed; whoever only wants to know how the run ended reads the file's
tail. The file is written beside its place, fsynced and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from clusterduck.errors import JournalError
from clusterduck.paths import require_own_up_to

_FOOTER_BYTES = 9

#: How long to wait before trying again what the file system refused, in seconds.
RETRY_S = 0.25


def write_result(path: Path, dump: Callable[[IO[bytes]], None], report: dict[str, Any]) -> None:
    """Write what ``dump`` writes (a pickle), then ``report``, and rename the whole into place.

    Raises:
        OSError: if it could not be written; nothing stands at ``path`` then.
    """

    def write(file: IO[bytes]) -> None:
        dump(file)
        tail = json.dumps(report).encode("ascii")
        file.write(tail + b"%08d\n" % len(tail))

    _write_whole(path, write)


def write_or_keep(
    path: Path,
    kept: Path,
    dump: Callable[[IO[bytes]], None],
    report: dict[str, Any],
    *,
    refused_s: float,
    stalled_s: float,
) -> str | None:
    """As :func:`write_result`; but where the file system goes on refusing, or hangs, the result is written to ``kept``,
    on the node's own disk.

    A thread writes, because nothing else can be done while the file system hangs. It is left behind then, and ends with
    the process.

    Args:
        refused_s: for how long a refusal is taken for one that passes, in seconds.
        stalled_s: for how long the file system may do nothing, in seconds.

    Returns:
        Why the result was kept, in words; None if it is in its place.

    Raises:
        OSError: if it could be written nowhere.
        Exception: what ``dump`` raises.
    """
    attempt = _Attempt(path, dump, report, refused_s)
    threading.Thread(target=attempt.run, name="result", daemon=True).start()
    before, since = attempt.signs, time.monotonic()
    while not attempt.is_over.wait(stalled_s / 10):
        signs = attempt.signs
        if signs is None or signs != before:
            before, since = signs, time.monotonic()
        elif time.monotonic() - since >= stalled_s:
            why = f"the file system took nothing of it for {stalled_s:.0f} s"
            break
    else:
        if attempt.error is None:
            return None
        if not isinstance(attempt.error, OSError):
            raise attempt.error
        why = str(attempt.error)
    write_result(kept, dump, report)
    return why


class _Attempt(io.RawIOBase):
    """Somebody's trying to write a result, and the file it is dumped to, which tells how that goes on."""

    def __init__(self, path: Path, dump: Callable[[IO[bytes]], None], report: dict[str, Any], refused_s: float) -> None:
        self._path = path
        self._do_dump = dump
        self._report = report
        self._refused_s = refused_s
        self._file: IO[bytes] | None = None
        self._is_pickling = False  # which is the user's own affair, and may take as long as it will
        self._calls = 0
        self.is_over = threading.Event()
        self.error: BaseException | None = None

    @property
    def signs(self) -> int | None:
        """Changes as long as the file system does something; None while it is not asked to."""
        return None if self._is_pickling else self._calls

    def run(self) -> None:
        until = time.monotonic() + self._refused_s
        while True:
            try:
                write_result(self._path, self._dump, self._report)
            except OSError as error:
                if time.monotonic() <= until:
                    time.sleep(RETRY_S)
                    continue
                self.error = error
            except BaseException as error:
                self.error = error
            self.is_over.set()
            return

    def _dump(self, file: IO[bytes]) -> None:
        self._file = file
        self._is_pickling = True
        try:
            self._do_dump(cast("IO[bytes]", self))
        finally:
            self._is_pickling = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        assert self._file is not None
        self._calls += 1
        self._is_pickling = False
        try:
            return self._file.write(data)
        finally:
            self._is_pickling = True


def move_result(kept: Path, path: Path) -> None:
    """Put a result that was kept on another file system into its place, whole or not at all; again is no harm.

    Raises:
        OSError: if it could not be written; it is still kept then.
    """
    with kept.open("rb") as source:
        _write_whole(path, lambda file: shutil.copyfileobj(source, file))
    kept.unlink()


def with_lost_result(reason: str, error: object) -> str:
    """An attempt's reason, and that its result is lost."""
    return "; ".join(filter(None, [reason, f"its result could not be written: {error}"]))


def _write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    # A name of its own each time: what a failed try left behind may be impossible to remove just then
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def read_report(path: Path) -> dict[str, Any]:
    """The report in a result file: the fields of ``events.AttemptEnded`` that the run itself knows.

    Raises:
        OSError: if there is no such file.
        JournalError: if it is not a result.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _FOOTER_BYTES))
        footer = file.read()
        if len(footer) != _FOOTER_BYTES or not footer[:8].isdigit() or int(footer[:8]) > size - _FOOTER_BYTES:
            raise JournalError(f"{path} is not the result of a run, or not the whole of one.")
        file.seek(size - _FOOTER_BYTES - int(footer[:8]))
        try:
            report = json.loads(file.read(int(footer[:8])))
        except ValueError:
            report = None
    if not isinstance(report, dict):
        raise JournalError(f"{path} is not the result of a run, or not the whole of one.")
    return report


def read_job_return(path: Path) -> Any:
    """Unpickle an attempt's ``JobReturn``; only from a file in a sweep's ``results`` that nobody else could have put
    there.

    Raises:
        UnsafePathError: if somebody else could have.
        Exception: whatever unpickling the user's own objects raises.
    """
    require_own_up_to(path, path.parent.parent)
    with path.open("rb") as file:
        return pickle.load(file)
