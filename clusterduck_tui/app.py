"""The app: starts and stops the threads that read, and passes on what they tell."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from textual import on
from textual.app import App, SuspendNotSupported
from textual.message import Message

from clusterduck.errors import ClusterduckError, NotFoundError
from clusterduck.ledger import queries
from clusterduck.ledger.queries import Sweep
from clusterduck.paths import LedgerPaths, find_ledger
from clusterduck_tui import hangup, opening
from clusterduck_tui import options as options_of
from clusterduck_tui.acting import Deed, Drain, DrawTimeline, Requeue, Worker
from clusterduck_tui.commands import ActionCommands
from clusterduck_tui.feed import Feed, JobsWatch
from clusterduck_tui.known import Known
from clusterduck_tui.messages import (
    ActDone,
    ActivityRead,
    JobsRead,
    LanesRead,
    LedgerState,
    NeglectRead,
    NodesRead,
    Planned,
    Progress,
    RunRead,
    RunsRead,
    SweepsRead,
)
from clusterduck_tui.screens.ask import AskRequeue, Confirm
from clusterduck_tui.screens.main import MainScreen
from clusterduck_tui.theme import shortened
from clusterduck_tui.widgets.activity import Activity
from clusterduck_tui.widgets.run import RunView
from clusterduck_tui.widgets.timeline import Timeline

#: Seconds between two looks at the clock: elapsed times go on.
CLOCK_S = 1.0


class Dashboard(App[None]):
    """The dashboard."""

    TITLE = "clusterduck"
    CSS_PATH = "clusterduck.tcss"
    COMMANDS = App.COMMANDS | {ActionCommands}
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar = []

    def __init__(
        self,
        sweep: str | None = None,
        *,
        ledger: str | None = None,
        read_only: bool = False,
        refresh_s: float = 1.0,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        start = self._folder = folder or Path.cwd()
        found = find_ledger(start, ledger)
        read_only = read_only or (found is not None and found.parent.is_dir() and not LedgerPaths(found).is_own)
        self.known = Known(read_only=read_only)
        self._wanted = sweep
        self._is_leaving = False
        self.feed = Feed(self.post_message, lambda: find_ledger(start, ledger), refresh_s, self.known.looks)
        self.jobs_watch = JobsWatch(self.post_message, lambda: find_ledger(start, ledger), read_only)
        self.worker = Worker(self.post_message)
        self.main = MainScreen(self.known, self.feed)

    async def on_mount(self) -> None:
        """Begin to read."""
        await self.push_screen(self.main)
        self.feed.start()
        self.jobs_watch.start()
        self.set_interval(CLOCK_S, self._tick)
        loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):  # killed, or its terminal is: leave it as it was
                loop.add_signal_handler(number, self.exit, None, 128 + number)
        if not self.is_headless:
            leave = partial(loop.call_soon_threadsafe, self.exit, None, hangup.EXIT_CODE)
            hangup.HangupWatch(sys.stdin.fileno(), leave).start()

    async def on_unmount(self) -> None:
        """Read no more; nobody waits for what is being read."""
        self.feed.stop()
        self.jobs_watch.stop()

    def _tick(self) -> None:
        if self.screen_stack and self.screen is self.main:  # a tick may come when the screens are gone already
            self.main.show_known()

    # --- what the threads tell

    @on(LedgerState)
    def _ledger_state(self, message: LedgerState) -> None:
        self.known.ledger = message.ledger
        self.known.trouble = message.trouble
        self.known.is_reading = message.is_reading
        if message.ledger is None:
            self.known.is_caught_up = False
        if message.is_caught_up and not self.known.is_caught_up:
            self.known.is_caught_up = True
            if self._is_to_choose_wanted and self.known.sweeps:
                self._choose_wanted(self.known.sweeps)
        self.main.show_known()

    @on(SweepsRead)
    def _sweeps_read(self, message: SweepsRead) -> None:
        known = self.known
        known.sweeps, known.batches, known.paces = message.sweeps, message.batches, message.paces
        for sweep in message.sweeps:
            known.new_failures(sweep)
        ids = [sweep.id for sweep in message.sweeps]
        if self._is_to_choose_wanted and ids:
            self._choose_wanted(message.sweeps)
        elif known.chosen not in ids or not (known.is_caught_up or known.has_chosen):
            self.main.choose(ids[0] if ids else None)
        self.main.show_known()

    @property
    def _is_to_choose_wanted(self) -> bool:
        """Whether a sweep was named on the command line, and nobody has chosen one since."""
        return self._wanted is not None and not self.known.has_chosen

    def _choose_wanted(self, sweeps: Sequence[Sweep]) -> None:
        """The sweep that was named on the command line, or the newest if there is none; for good once all is read."""
        assert self._wanted is not None
        ids = [sweep.id for sweep in sweeps]
        trouble = None
        try:
            chosen = queries.resolve_among(ids, self._wanted)
        except NotFoundError as error:
            chosen, trouble = ids[0], str(error)
        if self.known.is_caught_up:
            self._wanted = None
            self.known.has_chosen = trouble is None
            if trouble is not None:
                self.notify(trouble, severity="warning", markup=False, timeout=10)
        self.main.choose(chosen)

    @on(JobsRead)
    def _jobs_read(self, message: JobsRead) -> None:
        self.known.jobs = message.jobs
        self.known.slurm_trouble = message.trouble
        self.main.show_known()

    @on(NeglectRead)
    def _neglect_read(self, message: NeglectRead) -> None:
        self.known.neglected = message.found
        self.main.show_known()

    @on(NodesRead)
    @on(LanesRead)
    @on(RunsRead)
    @on(RunRead)
    @on(ActivityRead)
    def _pass_on(self, message: Message) -> None:
        self.main.deliver(message, _SUBJECTS[type(message)])

    # --- acts

    @on(MainScreen.Do)
    def _do(self, message: MainScreen.Do) -> None:
        """Think it through first."""
        if self.known.ledger is not None and not self.known.read_only:
            self.worker.plan(self.known.ledger, message.act, self.known.jobs)

    @on(Timeline.Export)
    def _export(self) -> None:
        """Write the picture of the chosen sweep beside where the dashboard was started; it changes nothing else."""
        if self.known.ledger is not None and self.known.chosen is not None:
            name = f"{shortened(self.known.chosen, 60)}-timeline.html"
            self.worker.carry_out(self.known.ledger, DrawTimeline(self.known.chosen, self._folder / name), {})

    @on(Planned)
    def _planned(self, message: Planned) -> None:
        """Ask once, or say that there is nothing to do."""
        act = message.act
        if act.is_empty:
            self.notify(shortened(act.description, 500), title=shortened(act.title, 100), markup=False)
        elif isinstance(act, Requeue):
            self.push_screen(AskRequeue(act, self._rethink), lambda answer: self._answered(act, answer))
        else:
            verb = "Drain" if isinstance(act, Drain) else "Cancel"
            self.push_screen(Confirm(act, verb), lambda answer: self._answered(act, answer))

    def _rethink(self, act: Requeue, post: Callable[[Message], object]) -> None:
        """Think another version of what is being asked about through, and tell the asker."""
        if self.known.ledger is not None:
            self.worker.plan(self.known.ledger, act, self.known.jobs, post)

    def _answered(self, act: Deed, answer: bool | None) -> None:
        if answer and self.known.ledger is not None:
            self.known.marked.clear()
            self.worker.carry_out(self.known.ledger, act, self.known.jobs)
            self.notify("…", title=shortened(act.title, 100), markup=False, timeout=2)

    @on(Progress)
    def _progress(self, message: Progress) -> None:
        self.notify(shortened(message.words, 300), title=shortened(message.title, 100), markup=False, timeout=4)

    @on(ActDone)
    def _act_done(self, message: ActDone) -> None:
        self.worker.done(message.title)
        activity = self.main.view("activity")
        assert isinstance(activity, Activity)
        activity.note_done(message)
        severity: Literal["information", "error"] = "information" if message.went_well else "error"
        words = shortened(" ".join(message.sentences), 800)
        title = shortened(message.title, 100)
        self.notify(words, title=title, severity=severity, markup=False, timeout=8 if message.went_well else 20)
        self.feed.look_now()
        self.main.show_known()

    def action_leave(self) -> None:
        """Quit; a second time is needed in the middle of something."""
        if self.worker.busy and not self._is_leaving:
            self._is_leaving = True
            what = shortened(self.worker.busy[0], 100)
            self.notify(f"{what} is not done yet; q again quits all the same.", severity="warning", markup=False)
        else:
            self.exit()

    # --- other programs

    @on(RunView.Open)
    def _open(self, event: RunView.Open) -> None:
        """Open a file in the person's pager or editor, and come back; nothing is read meanwhile."""
        self.feed.pause()
        self.jobs_watch.pause()
        try:
            with self.suspend():
                trouble = opening.open_file(event.variable, event.path)
        except SuspendNotSupported:
            trouble = "Another program cannot be shown in this terminal."
        finally:
            self.feed.resume()
            self.jobs_watch.resume()
        if trouble is not None:
            self.notify(shortened(trouble, 400), severity="error", markup=False)


_SUBJECTS: dict[type[Message], str] = {
    NodesRead: "nodes",
    LanesRead: "timeline",
    RunsRead: "runs",
    RunRead: "run",
    ActivityRead: "activity",
}


def run(options: argparse.Namespace) -> int:
    """Run the dashboard with these options until it is quit."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):  # Textual draws on stderr
        sys.stderr.write("The dashboard needs a terminal; clusterduck status and its fellows print instead.\n")
        return 1
    app = Dashboard(options.sweep, ledger=options.ledger, read_only=options.read_only, refresh_s=options.refresh)
    app.run()
    return app.return_code or 0


def main(arguments: Sequence[str] | None = None) -> int:
    """``clusterduck-tui``."""
    parser = argparse.ArgumentParser(
        prog="clusterduck-tui",
        description="The sweeps, nodes and runs of a ledger, live, in a terminal. Keys: press ? inside.",
    )
    options_of.add_to(parser)
    parser.add_argument(
        "--ledger",
        metavar="FILE",
        help="the ledger (default: CLUSTERDUCK_LEDGER, else .clusterduck/ledger.db here or in a folder above)",
    )
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except ClusterduckError as error:
        sys.stderr.write(f"clusterduck-tui: {error}\n")
        return 1
