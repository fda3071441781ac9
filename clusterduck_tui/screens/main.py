"""The main screen: six views of which one is in front, a notice where something is wrong, and the keys of all views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from clusterduck_tui.acting import Cancel, Deed, Drain, Requeue
from clusterduck_tui.actions import ACTIONS
from clusterduck_tui.feed import Feed
from clusterduck_tui.known import Known
from clusterduck_tui.screens.help import Help
from clusterduck_tui.theme import shortened
from clusterduck_tui.widgets.activity import Activity
from clusterduck_tui.widgets.board import NodesBoard
from clusterduck_tui.widgets.nodes import Nodes
from clusterduck_tui.widgets.overview import Overview
from clusterduck_tui.widgets.run import RunView
from clusterduck_tui.widgets.runs import Runs
from clusterduck_tui.widgets.table import WindowedTable
from clusterduck_tui.widgets.tabs import ViewTabs
from clusterduck_tui.widgets.timeline import Timeline
from clusterduck_tui.widgets.view import View


class MainScreen(Screen[None]):
    """Shows what is known, and asks the feed for what the view in front wants."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(action.key, action.name, action.title, show=action.in_footer) for action in ACTIONS),
        # With priority: the keys after them, which a slow line brings in one burst, belong to the view they bring.
        *(Binding(str(n), f"show_number({n})", f"View {n}", show=False, priority=True) for n in range(1, 7)),
        Binding("tab", "next_view(1)", "Next view", show=False, priority=True),
        Binding("shift+tab", "next_view(-1)", "View before", show=False, priority=True),
        Binding("escape", "back", "Back"),
        Binding("question_mark", "help", "Help"),
        Binding("q", "app.leave", "Quit"),
    ]

    class Do(Message):
        """Something is to be done, once it is thought through and agreed to."""

        def __init__(self, act: Deed) -> None:
            super().__init__()
            self.act = act

    def __init__(self, known: Known, feed: Feed) -> None:
        super().__init__()
        self.known = known
        self._feed = feed
        self._trail: list[str] = []
        self.views: Sequence[View] = (
            Overview(known),
            Nodes(known),
            Timeline(known),
            Runs(known),
            RunView(known),
            Activity(known),
        )
        self._front: View = self.views[0]
        self._offered: tuple[bool, ...] = ()
        self._tabs = ViewTabs([(view.subject, view.title) for view in self.views], id="tabs")
        self._notice = Static(id="notice", markup=False)
        self._noticed = ""

    def compose(self) -> ComposeResult:
        """Tabs, views, a notice, the footer."""
        yield self._tabs
        with Vertical(id="views"):
            for view in self.views:
                view.display = view is self._front
                yield view
        yield self._notice
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """The overview in front."""
        self.show_known()
        self.set_focus(self._front.inner())
        self._watch()

    # --- what is in front

    @property
    def front(self) -> View:
        """The view that is seen."""
        return self._front

    def view(self, subject: str) -> View:
        """A view by its subject."""
        return next(view for view in self.views if view.subject == subject)

    def action_show_number(self, number: int) -> None:
        """Bring a view to the front."""
        self.bring(self.views[number - 1].subject)

    def action_show_view(self, subject: str) -> None:
        """Bring a view to the front."""
        self.bring(subject)

    def action_next_view(self, step: int) -> None:
        """The next view, or the one before."""
        place = (self.views.index(self._front) + step) % len(self.views)
        self.bring(self.views[place].subject)

    def bring(self, subject: str, *, remember: bool = True) -> None:
        """Bring a view to the front, ask for what it shows, and give it the keys."""
        view = self.view(subject)
        if view is not self._front:
            if remember:
                self._trail = [*self._trail, self._front.subject][-20:]
            self._front.display = False
            self._front = view
            view.display = True
        if isinstance(view, RunView) and view.number is None:
            runs = self.view("runs")
            if isinstance(runs, Runs) and isinstance(runs.table.chosen, int):
                view.open_run(runs.table.chosen)
        view.show_known()
        self.set_focus(view.inner())
        self._show_line()
        self._watch()
        self._may_offer_other_things()

    def action_back(self) -> None:
        """Close what is open in the view, else go back to the view before; never quits."""
        if self._front.went_back():
            return
        if self._trail:
            self.bring(self._trail.pop(), remember=False)

    def action_help(self) -> None:
        """Help for the view in front."""
        self.app.push_screen(Help(self._front))

    def _watch(self) -> None:
        self._feed.watch(self._front.interest())

    # --- what is known

    def choose(self, sweep: str | None) -> None:
        """Another sweep."""
        if sweep != self.known.chosen:
            self.known.chosen = sweep
            run = self.view("run")
            if isinstance(run, RunView):
                run.forget()
            self._watch()
            self.show_known()
            self._may_offer_other_things()

    def show_known(self) -> None:
        """What all views share has changed, or the time has gone on."""
        self._show_line()
        self._front.show_known()
        self._may_offer_other_things()

    def _show_line(self) -> None:
        known = self.known
        pace = known.paces.get(known.chosen or "")
        figure = f"{pace.busy}/{pace.slots} slots" if pace is not None and pace.slots else ""
        self._tabs.show(self._front.subject, known.chosen or "", figure)
        words = [known.trouble, known.slurm_trouble, known.neglect]
        if known.is_reading:
            words.append("Reading what the runs have reported; this takes a moment once on each host.")
        text = "\n".join(shortened(word, 400) for word in words if word)
        notice = self._notice
        if bool(text) != notice.display:
            notice.display = bool(text)
        if text and text != self._noticed:
            self._noticed = text
            notice.update(text)

    def deliver(self, message: Message, subject: str) -> None:
        """Something was read for a view."""
        self.view(subject).receive(message)
        self._may_offer_other_things()

    @on(View.InterestChanged)
    def _interest_changed(self) -> None:
        self._watch()

    @on(View.Wants)
    def _wants(self, event: View.Wants) -> None:
        self.known.has_chosen = True
        self.choose(event.sweep)
        if event.what == "runs":
            self.bring("runs")
        elif event.what == "run" and event.run is not None:
            run = self.view("run")
            assert isinstance(run, RunView)
            run.open_run(event.run)
            self.bring("run")

    @on(ViewTabs.Clicked)
    def _tab_clicked(self, event: ViewTabs.Clicked) -> None:
        self.bring(event.subject)

    @on(RunView.Neighbour)
    def _neighbour(self, event: RunView.Neighbour) -> None:
        runs, run = self.view("runs"), self.view("run")
        assert isinstance(runs, Runs)
        assert isinstance(run, RunView)
        number = runs.neighbour(event.number, event.step)
        if number is None:
            number = event.number + event.step
            if self.known.sweep is None or not 0 <= number < self.known.sweep.runs:
                return
        run.open_run(number)
        self._watch()

    # --- actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What can be done now; the footer and the palette show nothing else."""
        if isinstance(self.focused, Input) and action in ("next_view", "show_number"):
            return False
        if action in ("copy_name", "copy_folder"):
            return self.known.sweep is not None
        if action in ("requeue", "cancel", "drain"):
            if self.known.read_only or self.known.sweep is None:
                return False
            if action == "drain":
                return self._front.job_meant() is not None
            return self._front.subject == "overview" or bool(self._front.runs_meant())
        return True

    @on(events.DescendantFocus)
    @on(WindowedTable.Moved)
    @on(NodesBoard.Moved)
    def _may_offer_other_things(self) -> None:
        """Have the footer made anew, which takes a while, only if something else can be done now."""
        offered = tuple(bool(self.check_action(action.name, ())) for action in ACTIONS)
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def action_cancel(self) -> None:
        """Cancel what is meant: runs, a job, or the sweep."""
        sweep = self._front.sweep_meant()
        job = self._front.job_meant()
        runs = tuple(self._front.runs_meant())
        if sweep is None:
            return
        if self._front.subject == "overview" and job is not None:
            self.post_message(self.Do(Cancel(job[0], job=job[1])))
        elif self._front.subject == "overview":
            self.post_message(self.Do(Cancel(sweep.id)))
        elif runs:
            self.post_message(self.Do(Cancel(sweep.id, runs)))

    def action_requeue(self) -> None:
        """Send again what is meant: runs, or all failed ones of the sweep."""
        sweep = self._front.sweep_meant()
        runs = tuple(self._front.runs_meant())
        if sweep is not None:
            self.post_message(self.Do(Requeue(sweep.id, runs or None)))

    def action_drain(self) -> None:
        """Have the job finish."""
        job = self._front.job_meant()
        if job is not None:
            self.post_message(self.Do(Drain(*job)))

    def _subject_of_copy(self) -> tuple[str, str | None]:
        """The name and folder of what is looked at: a run, or the sweep."""
        sweep = self._front.sweep_meant()
        assert sweep is not None
        runs, run = self.view("runs"), self.view("run")
        if self._front is runs and isinstance(runs, Runs) and runs.table.run_here is not None:
            here = runs.table.run_here
            return f"{here.sweep}/{here.number}", here.folder
        if self._front is run and isinstance(run, RunView) and run.run is not None:
            attempt = run.attempt
            return f"{run.run.sweep}/{run.run.number}", attempt.folder if attempt is not None else run.run.folder
        return sweep.id, sweep.folder

    def action_copy_name(self) -> None:
        """Copy the run's or sweep's name."""
        self._copy(self._subject_of_copy()[0])

    def action_copy_folder(self) -> None:
        """Copy the run's or sweep's folder."""
        folder = self._subject_of_copy()[1]
        if folder is None:
            self.notify("It has no folder yet.", markup=False)
        else:
            self._copy(folder)

    def _copy(self, text: str) -> None:
        self.app.copy_to_clipboard(text)
        self.notify(f"copied: {shortened(text, 200)}", markup=False, timeout=3)

    def action_look_now(self) -> None:
        """Read what is new at once."""
        self._feed.look_now()
