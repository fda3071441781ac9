"""Does what the runs need unpickle in a fresh interpreter? Asked once per sweep, before anything is submitted.

The launching process has everything imported already; a run's process has nothing. What cannot be imported there would
otherwise show up hours later, in every run.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from typing import IO, Any

import cloudpickle

from clusterduck.errors import ConfigError
from clusterduck.launch.payload import Payload, UserSide
from clusterduck.launch.plain import unpickle_user

#: For how long the modules may take to import, in seconds; beyond that it is the runs' own business.
TIMEOUT_S = 600.0

#: How much of the other interpreter's last words is shown, in characters.
_LAST_WORDS = 600


class Probe:
    """A fresh interpreter that unpickles a payload, while this one goes on."""

    def __init__(self, payload: bytes) -> None:
        self._began = time.monotonic()
        self._process, self._errors = _start(payload)

    def wait(self, user: UserSide, payload: Payload) -> float:
        """Wait for its answer.

        Returns:
            How long it took, in seconds.

        Raises:
            ConfigError: naming the object that does not unpickle, and why.
        """
        try:
            said = self._answer()
            if said:
                raise ConfigError(self._complaint(said, user, payload))
        finally:
            self.stop()
        return time.monotonic() - self._began

    def stop(self) -> None:
        """End the other interpreter, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> str:
        """What went wrong there; empty if nothing did, or if it takes too long to tell."""
        try:
            output, _ = self._process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return ""
        try:
            return str(json.loads(output))
        except ValueError:
            self._errors.seek(0)
            words = self._errors.read().decode("utf-8", "replace").strip()[-_LAST_WORDS:]
            return f"the interpreter ended with exit code {self._process.returncode}: {words}"

    def _complaint(self, said: str, user: UserSide, payload: Payload) -> str:
        """Find the object at fault by having the parts unpickled one by one."""
        parts = []
        for label, part in user.parts():
            try:
                parts.append((label, cloudpickle.dumps(part)))
            except Exception:
                continue  # not by itself; the whole was pickled, so it is not at fault
        fault = "what the runs need"
        process, errors = _start(pickle.dumps({"parts": parts, "sys_path": payload.sys_path, "cwd": payload.cwd}))
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
            label, said = json.loads(output)
            fault = label or fault
        except (subprocess.TimeoutExpired, ValueError, TypeError):
            process.kill()
        finally:
            process.wait()
            errors.close()
        return (
            f"The runs would fail to start: in a fresh interpreter, {fault} does not unpickle ({said}). What it uses "
            f"must be importable there too, with the same sys.path, or be defined in the script itself. Nothing was "
            f"submitted."
        )


def _start(request: bytes) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who waits
    with tempfile.TemporaryFile() as file:
        file.write(request)
        file.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=file, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    return process, errors


def main() -> None:
    """Be the fresh interpreter: read the request from stdin, answer in JSON on what was stdout."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the user's modules print
    request = sys.stdin.buffer.read()
    try:
        payload = Payload.load(request)
    except Exception:
        json.dump(_first_fault(pickle.loads(request)), answer)
    else:
        _move(payload.sys_path, payload.cwd)
        try:
            unpickle_user(payload)
            json.dump("", answer)
        except BaseException as error:
            json.dump(_words(error), answer)
    answer.flush()
    os._exit(0)  # whatever threads the user's modules have started


def _first_fault(request: dict[str, Any]) -> tuple[str, str]:
    _move(request["sys_path"], request["cwd"])
    for label, data in request["parts"]:
        try:
            pickle.loads(data)
        except BaseException as error:
            return label, _words(error)
    return "", "only together with the rest"


def _move(sys_path: list[str], cwd: str) -> None:
    os.chdir(cwd)
    sys.path[:] = sys_path


def _words(error: BaseException) -> str:
    """The error, and the last line of the user's code that it passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in _OURS]
    own = [frame for frame in frames if "pickle" not in frame.filename and "importlib" not in frame.filename]
    where = f", at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {error}{where}"


_OURS = frozenset({__file__, sys.modules[unpickle_user.__module__].__file__})


if __name__ == "__main__":
    main()
