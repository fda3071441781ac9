"""The launching process's side of submitting local jobs: starts ``clusterduck.launch.submit`` and hears what it did."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType

from clusterduck.agent.settings import AgentSettings
from clusterduck.errors import SubmissionError
from clusterduck.launch.options import Options


class LocalSubmission:
    """A process that will submit jobs here; made early, because it takes a moment to be ready.

    Args:
        python: the interpreter of the jobs.
    """

    def __init__(self, python: str = sys.executable) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "clusterduck.launch.submit"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def __enter__(self) -> LocalSubmission:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let it end: if it was given nothing to submit, it submits nothing; after an error here, nothing more."""
        if error is not None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def submit(self, options: Options, agents: Sequence[AgentSettings]) -> Iterator[tuple[str, str]]:
        """Submit a job for each; yields its process id and submitit's folder of it, as soon as it is known.

        Raises:
            SubmissionError: if one could not be started.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(pickle.dumps((options, list(agents))))
            self._process.stdin.close()
        except BrokenPipeError:
            raise SubmissionError(f"No job could be started on this machine: {self._last_words()}") from None
        count = 0
        for line in self._process.stdout:
            said = json.loads(line)
            if isinstance(said, str):
                raise SubmissionError(f"No job could be started on this machine: {said}")
            count += 1
            yield said[0], said[1]
        if count < len(agents):
            raise SubmissionError(f"No job could be started on this machine: {self._last_words()}")

    def _last_words(self) -> str:
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"the submitting process ended with exit code {self._process.wait()}"
