"""Who occupied which slot when: the chart of the chosen sweep, live."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from clusterduck.wording import duration
from clusterduck_tui.known import Known
from clusterduck_tui.messages import Interest, LanesRead
from clusterduck_tui.theme import BOLD, DIM, LETTERS, shortened, state_style
from clusterduck_tui.widgets.chart import IDLE, TimelineChart
from clusterduck_tui.widgets.view import View


class Timeline(View):
    """Who occupied which slot when."""

    subject = "timeline"
    title = "Timeline"
    about = (
        "The slots of the chosen sweep over time: a row for each, a bar for each attempt with its state's letter and "
        "the run's number. Where many share a column, the last in trouble stands for them, or else the last; and of "
        f"very many, several columns are one. {IDLE} marks a slot that was there and held no run. Time goes on by "
        "itself while its end is in view. As a file that any browser opens: clusterduck timeline SWEEP -o FILE."
    )
    keys = (
        ("+ -", "look closer, from farther away"),
        ("h l", "earlier, later"),
        ("g G", "to the beginning; to the end, and on with it"),
        ("0", "all of it"),
        ("e", "write the picture into a file"),
    )

    BINDINGS: ClassVar[list[BindingType]] = [Binding("e", "export", "Export")]

    class Export(Message):
        """The picture is to be written into a file."""

    def compose(self) -> ComposeResult:
        """A line above, and the chart."""
        yield Static(id="timeline-title", markup=False, classes="title")
        yield TimelineChart(id="chart")

    def __init__(self, known: Known) -> None:
        super().__init__(known)
        self._sweep: str | None = None
        self._asked: Interest | None = None

    def inner(self) -> Widget:
        """The chart."""
        return self.part("chart", TimelineChart)

    def interest(self) -> Interest:
        """The slots around the screen, for the time around what is in view."""
        chart = self.part("chart", TimelineChart)
        rows, (span, columns) = chart.rows_wanted(), chart.span_wanted()
        wanted = Interest(self.subject, self.known.chosen, rows=rows, span=span, columns=columns)
        self._asked = wanted
        return wanted

    def receive(self, message: Message) -> None:
        """Show the slots."""
        if isinstance(message, LanesRead) and message.sweep == self.known.chosen:
            chart = self.part("chart", TimelineChart)
            if message.sweep != self._sweep:
                self._sweep = message.sweep
                chart.action_fit()
            chart.show(message)
            self._show_title()
            self.call_after_refresh(self._ask)  # a bar to scroll with may have taken a column

    def show_known(self) -> None:
        """The time has gone on."""
        chart = self.part("chart", TimelineChart)
        if self.known.chosen != self._sweep:
            chart.show(None)
            self._sweep = self.known.chosen
        if chart.is_open:
            chart.pass_time()
            self._show_title()
            self._ask()

    def on_timeline_chart_looked(self) -> None:
        """Another stretch of time is in view, or other slots are."""
        self._show_title()
        self._ask()

    def _ask(self) -> None:
        """Ask for what has come near."""
        before = self._asked
        if self.is_in_front and before != self.interest():
            self.post_message(self.InterestChanged())

    def action_export(self) -> None:
        """Write the picture into a file."""
        self.post_message(self.Export())

    def _show_title(self) -> None:
        chart = self.part("chart", TimelineChart)
        text = Text()
        text.append(shortened(self.known.chosen or "", 30), BOLD)
        if chart.lanes:
            low, high = chart.window
            text.append(f"  {len(chart.lanes)} slots, {duration(high - low)} in view  ")
            text.append(f"{IDLE} idle ", "yellow")
            for state in ("COMPLETED", "RUNNING", "FAILED", "TIMEOUT", "CANCELLED"):
                text.append(f"{LETTERS[state]} {state.lower()} ", state_style(state))
        else:
            text.append("  no job of this sweep has begun yet", DIM)
        self.say("timeline-title", text)
