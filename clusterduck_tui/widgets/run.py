"""One run: what is known of it and of each attempt, the config it got, and its log as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Static

from clusterduck.ledger.queries import AttemptInfo, Run
from clusterduck.model import State
from clusterduck.wording import attempt_facts, json_value, short, visible, visible_lines
from clusterduck_tui.known import Known
from clusterduck_tui.messages import Interest, RunRead
from clusterduck_tui.theme import BOLD, DIM, shortened, state_style, state_text
from clusterduck_tui.widgets.logview import LogView
from clusterduck_tui.widgets.view import View

#: From this width on, details and log stand side by side.
WIDE = 130

PANES = ("details", "log", "config")


class Details(VerticalScroll, can_focus=True):
    """Scrolls like everything else."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("k", "scroll_up", show=False),
        Binding("j", "scroll_down", show=False),
        Binding("g", "scroll_home", show=False),
        Binding("G", "scroll_end", show=False),
        Binding("ctrl+u", "page_up", show=False),
        Binding("ctrl+d", "page_down", show=False),
    ]


class RunView(View):
    """Everything about one run."""

    subject = "run"
    title = "Run"
    about = (
        "One run: its overrides, how each attempt stands and why, where its files lie, its log as it grows, and the "
        "config it got. The log follows its end like less +F until you scroll up. The same on the command line: "
        "clusterduck show SWEEP/RUN and clusterduck logs SWEEP/RUN -f."
    )
    keys = (
        ("t", "on to the details, the log, the config (side by side where there is room)"),
        ("[ ]", "the attempt before, the next attempt"),
        ("J K", "the next run of the list, the one before"),
        ("/ n N", "search in the log; next and previous match"),
        ("e", "the first error in the log"),
        ("g G F", "top; end, and follow"),
        ("w", "wrap long lines"),
        ("p E", "open the log in $PAGER, in $EDITOR"),
        ("y Y", "copy the run's name, its folder, to the clipboard (OSC 52)"),
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "pane", "Panes"),
        Binding("slash", "search", "Search", priority=True),
        Binding("left_square_bracket", "attempt(-1)", "Attempt before", show=False),
        Binding("right_square_bracket", "attempt(1)", "Next attempt", show=False),
        Binding("J", "neighbour(1)", "Next run", show=False),
        Binding("K", "neighbour(-1)", "Run before", show=False),
        Binding("p", "open('PAGER')", "Pager", show=False),
        Binding("E", "open('EDITOR')", "Editor", show=False),
    ]

    class Open(Message):
        """A file is to be opened in a program of the person's choice (the name of its variable)."""

        def __init__(self, variable: str, path: str) -> None:
            super().__init__()
            self.variable = variable
            self.path = path

    class Neighbour(Message):
        """The run listed before or after this one is wanted."""

        def __init__(self, number: int, step: int) -> None:
            super().__init__()
            self.number = number
            self.step = step

    def __init__(self, known: Known) -> None:
        super().__init__(known)
        self.number: int | None = None
        self.run: Run | None = None
        self._attempts: Sequence[AttemptInfo] = ()
        self._attempt: int | None = None
        self._pane = "details"
        self._shown: object = None

    def compose(self) -> ComposeResult:
        """A line above, and the panes."""
        yield Static(id="run-title", markup=False, classes="title")
        yield Input(id="log-search", placeholder="search in the log", compact=True)
        with Horizontal(id="panes"):
            with Details(id="details"):
                yield Static(id="details-text", markup=False)
            with Vertical(id="log-pane"):
                yield LogView(id="log", nothing="no log yet")
                yield LogView(id="config", follow=False, nothing="no config yet")

    def on_mount(self) -> None:
        """The details first."""
        self.part("log-search", Input).display = False
        self._arrange()
        self._show()

    def inner(self) -> Widget:
        """The pane in front."""
        return self.part(self._pane, Widget)

    def interest(self) -> Interest:
        """The run."""
        return Interest(self.subject, self.known.chosen, run=self.number)

    def open_run(self, number: int) -> None:
        """Show another run."""
        if number != self.number or self.run is None or self.run.sweep != self.known.chosen:
            self.number, self.run, self._attempts, self._attempt = number, None, (), None
            self._show()

    def forget(self) -> None:
        """Another sweep was chosen: there is no run any more."""
        if self.run is not None and self.run.sweep != self.known.chosen:
            self.number, self.run, self._attempts, self._attempt = None, None, (), None
            self._show()

    def receive(self, message: Message) -> None:
        """Show the run."""
        if isinstance(message, RunRead) and (message.sweep, message.number) == (self.known.chosen, self.number):
            self.run, self._attempts = message.run, message.attempts
            self._show()

    def show_known(self) -> None:
        """Elapsed times."""
        if self.run is not None and self.run.state == State.RUNNING.value:
            self._show()

    @property
    def attempt(self) -> AttemptInfo | None:
        """The attempt that is shown: the latest, unless another one was chosen."""
        if not self._attempts:
            return None
        chosen = [attempt for attempt in self._attempts if attempt.number == self._attempt]
        return chosen[0] if chosen else self._attempts[-1]

    def _show(self) -> None:
        attempt = self.attempt
        self.say("run-title", self._title())
        text = self._details()
        if text != self._shown:
            self._shown = text
            self.part("details-text", Static).update(text)
        log = Path(attempt.log) if attempt is not None and attempt.log else None
        self.part("log", LogView).show_file(log)
        folder = attempt.folder if attempt is not None else None
        self.part("config", LogView).show_file(Path(folder) / ".hydra" / "config.yaml" if folder else None)

    def _title(self) -> Text:
        if self.number is None:
            return Text("no run chosen: press 4, and Enter on one", DIM)
        text = Text()
        text.append(shortened(f"{self.known.chosen}/{self.number}", 60), BOLD)
        if self.run is None:
            return text
        text.append("  ")
        text.append_text(state_text(self.run.state))
        attempt = self.attempt
        if attempt is not None:
            text.append(f"  attempt {attempt.number} of {self._attempts[-1].number}")
        if reason := self.known.why(self.run):
            text.append(f"  {shortened(reason, 200)}", state_style(self.run.state))
        return text

    def _details(self) -> Text:
        if self.run is None:
            return Text("" if self.number is None else "…")
        text = Text()
        for position, override in enumerate(self.run.overrides):
            _field(text, "" if position else "overrides", override)
        if not self.run.overrides:
            _field(text, "overrides", "none")
        _field(text, "returned", short(json_value(self.run.return_value), places=None))
        if not self._attempts:
            waits = not State(self.run.state).is_terminal and self.run.batch is not None
            waits = waits and self.known.in_vain(self.run) is None
            _field(text, "waits for", f"batch {self.run.batch}" if waits else None)
            _field(text, "reason", self.known.why(self.run))
        shown = self.attempt
        for attempt in reversed(self._attempts):
            _attempt(text, attempt, is_shown=attempt is shown and len(self._attempts) > 1)
        return text

    def runs_meant(self) -> list[int]:
        """This run."""
        return [] if self.run is None else [self.run.number]

    # --- panes

    def _arrange(self) -> None:
        """Side by side where there is room, else one at a time."""
        is_wide = self.size.width >= WIDE
        self.part("details", Widget).display = is_wide or self._pane == "details"
        self.part("log-pane", Widget).display = is_wide or self._pane != "details"
        self.part("log", Widget).display = self._pane != "config"
        self.part("config", Widget).display = self._pane == "config"

    def on_resize(self) -> None:
        """More room, or less."""
        self._arrange()

    def action_pane(self) -> None:
        """On to the next pane."""
        self.show_pane(PANES[(PANES.index(self._pane) + 1) % len(PANES)])

    def show_pane(self, name: str) -> None:
        """Bring a pane to the front."""
        self._pane = name
        self._arrange()
        self.screen.set_focus(self.inner())

    def went_back(self) -> bool:
        """Esc closes the search, then goes from log or config to the details."""
        field = self.part("log-search", Input)
        if field.display:
            field.display = False
            self.screen.set_focus(self.inner())
            return True
        if self._pane != "details":
            self.show_pane("details")
            return True
        return False

    def action_attempt(self, step: int) -> None:
        """Another attempt."""
        attempt = self.attempt
        if attempt is not None:
            numbers = [one.number for one in self._attempts]
            place = min(max(0, numbers.index(attempt.number) + step), len(numbers) - 1)
            self._attempt = None if place == len(numbers) - 1 else numbers[place]
            self._show()

    def action_neighbour(self, step: int) -> None:
        """Another run of the list."""
        if self.number is not None:
            self.post_message(self.Neighbour(self.number, step))

    def action_search(self) -> None:
        """Ask what to search for."""
        if self._pane == "details":
            self.show_pane("log")
        field = self.part("log-search", Input)
        field.display = True
        self.screen.set_focus(field)

    @on(Input.Submitted, "#log-search")
    def _searched(self, event: Input.Submitted) -> None:
        self.part("log-search", Input).display = False
        pane = self.inner()
        self.screen.set_focus(pane)
        if isinstance(pane, LogView):
            pane.search(event.value)

    def action_open(self, variable: str) -> None:
        """Open the log, or the config if that is in front, in another program."""
        path = self.part("config" if self._pane == "config" else "log", LogView).path
        if path is None:
            self.notify("There is no such file yet.", markup=False)
        else:
            self.post_message(self.Open(variable, str(path)))


def _attempt(text: Text, attempt: AttemptInfo, *, is_shown: bool) -> None:
    text.append(f"\nattempt {attempt.number}  ", BOLD)
    text.append_text(state_text(attempt.state))
    text.append("  (its log is shown)\n" if is_shown else "\n", DIM)
    _field(text, "reason", attempt.reason)
    if attempt.traceback:
        lines = [f"  {visible_lines(line)}\n" for line in attempt.traceback.replace("\r", "\n").split("\n") if line]
        text.append("".join(lines), state_style(attempt.state))
    elif attempt.exception_type:
        message = f"  {visible(attempt.exception_type)}: {visible(attempt.exception_message or '')}\n"
        text.append(message, state_style(attempt.state))
    for name, value in attempt_facts(attempt):
        _field(text, name, value)


def _field(text: Text, name: str, value: str | None) -> None:
    if value:
        text.append(f"{name:<10}", DIM)
        text.append(f"{visible(value)}\n")
