"""Run one of Slurm's commands so that nothing it does can hurt us: absence, slowness, or what and how much it prints.

The arguments are a list and never meet a shell. The command runs in the C locale and prints times as seconds since the
epoch. What it prints is taken for hostile: it is bounded, and control characters are removed.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clusterduck.errors import SlurmError

#: Seconds that a command may take. A busy controller answers within a few.
TIMEOUT_S = 20.0

#: The same where a person waits who can do with what was last heard.
QUICK_S = 5.0

#: More output than this is no answer to anything that we ask.
MAX_OUTPUT_BYTES = 16 * 1024 * 1024
MAX_LINE_CHARACTERS = 4096

#: Variables with which users change what these commands print, or which jobs they look at.
_FOREIGN_PREFIXES = ("SQUEUE_", "SACCT_", "SCONTROL_")
_FOREIGN = ("SLURM_JSON", "SLURM_YAML", "SLURM_BITSTR_LEN")

#: Control characters (C0, DEL, C1), line and paragraph separators, and those that change the direction of text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Answer:
    """What a command printed, cleaned, and how it ended."""

    exit_code: int
    lines: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def complaint(self) -> str:
        """The last line of stderr."""
        return "".join(self.errors[-1:])[:300]


class NoAnswerError(SlurmError):
    """A command that was started, and whose answer was not had: whatever it asked for may have been done."""


def run(
    command: str,
    arguments: Sequence[str],
    timeout_s: float = TIMEOUT_S,
    *,
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """Run ``command`` (a name to be found on the PATH) and return what it printed.

    Args:
        command: its name.
        arguments: what it is given.
        timeout_s: how long it may take.
        environment: its variables; None: ours, without those that change what it prints.

    Raises:
        SlurmError: if it is not there.
        NoAnswerError: if it did not end in time, or printed without end.
    """
    try:
        process = subprocess.Popen(
            [command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment() if environment is None else environment,
            start_new_session=True,  # so that it can be killed with all it started
        )
    except FileNotFoundError:
        raise SlurmError(f"Slurm's command {command} is not on this host's PATH.") from None
    except OSError as error:
        raise SlurmError(f"Slurm's command {command} could not be started: {error.strerror}.") from None
    try:
        output, errors = _read(process, command, timeout_s)
    finally:
        _end(process)
    return Answer(process.returncode, clean(output), clean(errors))


def require(answer: Answer, command: str) -> Answer:
    """The answer, if the command ended well.

    Raises:
        SlurmError: with the command's own words, if not.
    """
    if answer.exit_code != 0:
        complaint = answer.complaint.rstrip(". ") or f"exit code {answer.exit_code}"
        raise SlurmError(f"Slurm's command {command} failed: {complaint}.")
    return answer


def clean(output: bytes) -> tuple[str, ...]:
    """Output as lines of bounded length without control characters; empty lines are left out."""
    text = output.decode("utf-8", errors="replace")
    lines = (_CONTROL.sub("", line)[:MAX_LINE_CHARACTERS].strip() for line in text.split("\n"))
    return tuple(line for line in lines if line)


def _environment() -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN_PREFIXES) and name not in _FOREIGN
    }
    environment.update(LC_ALL="C", SLURM_TIME_FORMAT="%s")
    return environment


def _read(process: subprocess.Popen[bytes], command: str, timeout_s: float) -> tuple[bytes, bytes]:
    """All of stdout and stderr, unless they take too long or are too much."""
    assert process.stdout is not None and process.stderr is not None
    deadline = time.monotonic() + timeout_s
    parts: dict[int, bytearray] = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for fd in parts:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in ready:
                data = os.read(key.fd, 65536)
                parts[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
            if sum(map(len, parts.values())) > MAX_OUTPUT_BYTES:
                raise NoAnswerError(
                    f"Slurm's command {command} printed more than anybody asked for; its answer was thrown away."
                )
            if time.monotonic() >= deadline and selector.get_map():
                raise NoAnswerError(f"Slurm's command {command} did not answer within {timeout_s:g} s.")
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"Slurm's command {command} did not end within {timeout_s:g} s.") from None
    output, errors = (bytes(part) for part in parts.values())
    return output, errors


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind: kill what still runs, and close the pipes."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(1.0)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            process.poll()  # gone by itself, or stuck in the kernel: nothing more can be done for it
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
