"""An open dashboard as a test sees it: its screen as text, keys, and waiting for facts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from journals_builder import SweepBuilder
from textual.pilot import Pilot

from clusterduck.events import RunsPlanned
from clusterduck_tui.app import Dashboard

HOSTILE = ["opt=[adam,sgd]", "x=\x1b]0;owned\x07\x1b[31mred\n[/oops]\u202e", "lr=漢字"]

#: A fact that has not come about after so many seconds never will.
PATIENCE_S = 60.0

#: What a widget tells after a key is handed on at most so many times, from widget to view, to screen, to app.
HOPS = 8

#: What must never reach a terminal from data: C0, DEL and C1 characters, and those that turn text.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


async def until(fact: Callable[[], bool], pilot: Pilot[None]) -> None:
    """Let the app work until something is the case."""
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not come about within {PATIENCE_S:g} s:\n{text_of(pilot.app)}")
        await pilot.pause(0.02)


def text_of(app: object) -> str:
    """What stands on the screen, a line for each of its lines, without trailing blanks."""
    assert isinstance(app, Dashboard)
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


@dataclass
class Opened:
    """The app and its pilot."""

    app: Dashboard
    pilot: Pilot[None]

    @property
    def text(self) -> str:
        """The screen."""
        return text_of(self.app)

    @property
    def prose(self) -> str:
        """The screen as one line, so that what was wrapped in a box is found."""
        return re.sub(r"[\s▌▏▎│╭╮╰╯]+", " ", self.text)

    async def press(self, *keys: str) -> None:
        """Press keys, each when all that the one before means has been done, however busy the machine is."""
        for key in keys:
            await self.pilot.press(key)
            for _ in range(HOPS):
                await self.pilot.pause(0)  # every widget has taken what it was sent until now

    async def see(self, *words: str) -> str:
        """Wait until all of these stand on the screen; returns it."""
        await until(lambda: all(word in self.text or word in self.prose for word in words), self.pilot)
        return self.text

    async def miss(self, word: str) -> str:
        """Wait until this stands on the screen no longer; returns it."""
        await until(lambda: word not in self.text, self.pilot)
        return self.text

    async def fact(self, fact: Callable[[], bool]) -> None:
        """Wait until something is the case."""
        await until(fact, self.pilot)


Open = Callable[..., AbstractAsyncContextManager[Opened]]
Slurm = Callable[[str], None]


def make_live(project: Path, overrides: list[str] | None = None) -> SweepBuilder:
    """The live sweep; ``overrides`` are those of run 3, which runs."""
    built = SweepBuilder(project, "train-bb3fg", start=time.time() - 200)
    launch = built.launch(8)
    if overrides is not None:
        launch = [
            RunsPlanned(time=e.time, launch=0, runs=[(n, overrides if n == 3 else o) for n, o in e.runs])
            if isinstance(e, RunsPlanned)
            else e
            for e in launch
        ]
    built.write(built.launch_journal(), launch)
    at = built.start + 100
    events = [built.agent_started(at, "node7"), built.started(at + 1, 0), built.ended(at + 21, 0, started_at=at + 1)]
    events += [built.started(at + 1, 1, slot=1), built.ended(at + 31, 1, started_at=at + 1)]
    events += [built.started(at + 2, 2, slot=2), built.ended(at + 9, 2, state="FAILED", started_at=at + 2)]
    events += [built.started(at + 30 + run, run, slot=run - 3) for run in (3, 4, 5)]
    events += [built.beat(at + second, 3) for second in (40, 60, 80, 95)]
    built.write(built.agent_journal(), events, close=False)
    return built
