"""Two processes that try a file system on each other, on one host or on two nodes of a Slurm job.

Run as ``python -m clusterduck.doctor.pair FOLDER [RANK]``; without a rank it is the task's in its Slurm step. The two
find each other by files in the folder, race for names, and watch how soon and how whole they see what the other writes.
Each prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: How long each waits for the other to come, and from then on to take the next step, in seconds.
MEETING_S = 20.0
STEP_S = 8.0

#: Pauses between two looks, in seconds.
LOOK_S = 0.01

#: How many names they race for in each way, how many things one shows the other, and for how long one renames.
RACES = 40
SHOWN = 12
SHOWN_EVERY_S = 0.04
RENAMING_S = 1.0
CLOCK_ROUNDS = 5

#: The length of a file that is renamed into place, in bytes.
WHOLE_BYTES = 8192


class Alone(Exception):
    """The other one is not to be seen."""


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


class Pair:
    """One of the two."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._answer: dict[str, Any] = {"rank": rank, "host": socket.gethostname(), "error": None, "refused": None}

    def run(self) -> dict[str, Any]:
        """Take all steps, and say what came of them."""
        try:
            self._meet("meet", MEETING_S)
            for step in (self._clocks, self._races, self._append, self._listing, self._rename):
                step()
                self._meet(f"after{step.__name__}")
        except Alone as alone:
            self._answer["error"] = f"the other process did not show up: {alone}"
        except OSError as error:
            self._answer["refused"] = f"{error.strerror or error}"
        return self._answer

    def _meet(self, name: str, patience_s: float | None = None) -> None:
        _create(self._folder / f"{name}.{self._rank}")
        self._wait(lambda: f"{name}.{1 - self._rank}" in self._names() or None, name, patience_s)

    def _names(self) -> list[str]:
        return os.listdir(self._folder)

    def _wait(self, fact: Callable[[], Any], what: str, patience_s: float | None = None) -> Any:
        patience_s = STEP_S if patience_s is None else patience_s
        deadline = time.monotonic() + patience_s
        while True:
            found = fact()
            if found is not None:
                return found
            if time.monotonic() >= deadline:
                raise Alone(f"{what}, {patience_s:.0f} s")
            time.sleep(LOOK_S)

    def _begins(self, start: str) -> str | None:
        return next((name[len(start) :] for name in self._names() if name.startswith(start)), None)

    def _clocks(self) -> None:
        """How far the second one's clock is ahead: it answers with its time what the first one asks."""
        best: tuple[float, float] | None = None
        for turn in range(CLOCK_ROUNDS):
            if self._rank:
                self._wait(lambda turn=turn: self._begins(f"ping-{turn}"), "clocks")  # type: ignore[misc]
                _create(self._folder / f"pong-{turn}-{time.time()!r}")
            else:
                asked = time.time()
                _create(self._folder / f"ping-{turn}")
                told = float(self._wait(lambda turn=turn: self._begins(f"pong-{turn}-"), "clocks"))  # type: ignore[misc]
                took = time.time() - asked
                if best is None or took / 2 < best[1]:
                    best = told - (asked + took / 2), took / 2
        if best is not None:
            self._answer["clock"] = {"ahead_s": round(best[0], 4), "give_or_take_s": round(best[1], 4)}

    def _races(self) -> None:
        """Both try to make the same names; 1 stands for each that was this one's."""
        _create(self._folder / f"mine.{self._rank}")
        ways: dict[str, Callable[[Path], None]] = {
            "create": _create,
            "link": lambda path: os.link(self._folder / f"mine.{self._rank}", path),
            "symlink": lambda path: os.symlink(str(self._rank), path),
            "mkdir": lambda path: os.mkdir(path, 0o700),
        }
        self._answer["wins"] = {}
        for way, make in ways.items():
            self._meet(f"race-{way}")
            wins = ""
            for turn in range(RACES):
                try:
                    make(self._folder / f"{way}-{turn}")
                    wins += "1"
                except FileExistsError:
                    wins += "0"
                except OSError as error:
                    wins = f"{error.strerror}"
                    break
            self._answer["wins"][way] = wins

    def _append(self) -> None:
        """The first one appends the time to a file; the second opens it anew again and again."""
        path = self._folder / "appended"
        if not self._rank:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with contextlib.closing(os.fdopen(fd, "wb", buffering=0)) as file:
                for _ in range(SHOWN):
                    file.write(b"%.6f\n" % time.time())
                    os.fsync(file.fileno())
                    time.sleep(SHOWN_EVERY_S)
            return

        def lines() -> list[str]:
            with contextlib.suppress(FileNotFoundError):
                return path.read_bytes().decode("ascii", "replace").split("\n")[:-1]
            return []

        self._answer["append"] = self._watch(lines)

    def _listing(self) -> None:
        """The first one makes files; the second lists the folder again and again."""
        if not self._rank:
            for _ in range(SHOWN):
                _create(self._folder / f"shown-{time.time():.6f}")
                time.sleep(SHOWN_EVERY_S)
            return
        self._answer["listing"] = self._watch(
            lambda: sorted(name[len("shown-") :] for name in self._names() if name.startswith("shown-"))
        )

    def _watch(self, look: Callable[[], list[str]]) -> dict[str, Any]:
        """How old each thing was when it was first seen; its name or text is the time at which it was made."""
        ages: list[float] = []
        deadline = time.monotonic() + STEP_S - 1.0
        while len(ages) < SHOWN and time.monotonic() < deadline:
            found = look()
            now = time.time()
            ages += [now - float(text) for text in found[len(ages) :]]
            time.sleep(LOOK_S)
        return {"seen": len(ages), "ages_s": [round(age, 3) for age in ages]}

    def _rename(self) -> None:
        """The first one renames numbered files into one place; the second reads there, and wants each whole."""
        place = self._folder / "whole"
        if not self._rank:
            deadline = time.monotonic() + RENAMING_S
            number = 0
            while time.monotonic() < deadline:
                beside = self._folder / "beside"
                beside.write_bytes(b"%07d\n" % number * (WHOLE_BYTES // 8))
                os.rename(beside, place)
                number += 1
            _create(self._folder / "renamed")
            self._answer["renames"] = number
            return
        tally = {"reads": 0, "torn": 0, "backwards": 0, "failed": 0}
        latest = -1
        deadline = time.monotonic() + STEP_S - 1.0
        while time.monotonic() < deadline:
            is_last = "renamed" in self._names()
            for _ in range(20):
                try:
                    data = place.read_bytes()
                except FileNotFoundError:
                    tally["failed"] += latest >= 0  # before the first rename there is none
                except OSError:
                    tally["failed"] += 1
                else:
                    tally["reads"] += 1
                    is_whole = len(data) == WHOLE_BYTES and data == data[:8] * (WHOLE_BYTES // 8) and data[:7].isdigit()
                    tally["torn"] += not is_whole
                    if is_whole:
                        tally["backwards"] += int(data[:7]) < latest
                        latest = int(data[:7])
            if is_last:
                break
        self._answer["rename"] = tally


def main(arguments: list[str]) -> int:
    """Be one of the two."""
    from clusterduck.doctor.host import facts

    rank = int(arguments[1] if len(arguments) > 1 else os.environ["SLURM_PROCID"])
    answer = Pair(Path(arguments[0]), rank).run() | {"facts": facts()}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
