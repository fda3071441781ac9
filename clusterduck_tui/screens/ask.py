"""The questions before something is done: each is asked once, and says what would happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Button, Checkbox, Input, Label, Static

from clusterduck_tui.acting import Deed, Requeue
from clusterduck_tui.messages import ActDone, Planned
from clusterduck_tui.theme import ALERT, BOLD, DIM, shortened

#: What the box says, ticked or not: not by its colour alone.
_CODE = {False: "runs today's code", True: "runs the function as it was submitted"}
_FOLDER = {False: "goes on in the run's folder", True: "moves the run's folder aside and starts afresh"}

#: The options that the form always has, and what they and those that may be offered are about.
_ALWAYS = ("timeout_min", "mem_gb")
_ABOUT = {
    "timeout_min": "minutes per job",
    "mem_gb": "memory per node",
    "mem_per_gpu": "memory",
    "mem_per_cpu": "memory",
    "parallel_runs_per_node": "slots",
}

#: Seconds without a key after which a form is thought through.
PAUSE_S = 0.4


class Box(Checkbox):
    """A box that is empty until it is ticked; Textual's has a cross in another colour."""

    BUTTON_INNER = " "


class Confirm(ModalScreen[bool]):
    """Yes or no. ``y`` and Enter say yes, ``n`` and Esc no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape", "answer(False)", "No"),
        Binding("left,h", "app.focus_previous", show=False),
        Binding("right,l", "app.focus_next", show=False),
    ]

    def __init__(self, act: Deed, verb: str) -> None:
        super().__init__()
        self.act = act
        self._verb = verb

    def compose(self) -> ComposeResult:
        """What would happen, and two buttons."""
        with VerticalScroll(classes="dialog"):
            yield Static(Text(f"{shortened(self.act.title, 200)}?", BOLD), markup=False)
            yield Static(Text(f"\n{shortened(self.act.description, 1000)}\n"), markup=False, id="effects")
            with Horizontal(classes="buttons"):
                yield Button(self._verb, id="yes", variant="warning", compact=True)
                yield Button("No", id="no", compact=True)

    def on_mount(self) -> None:
        """Enter says yes."""
        self.query_one("#yes", Button).focus()

    def action_answer(self, answer: bool) -> None:
        """Yes, or no."""
        self.dismiss(answer)

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")


class AskRequeue(ModalScreen[bool]):
    """Whether to send runs again, and how. Whatever is changed in the form, what would happen then is said anew.

    Args:
        act: what is asked about; its fields are the form's when the answer is yes.
        rethink: thinks another version of it through, and tells whom it is given.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "answer(False)", "No"),
        Binding("ctrl+s", "answer(True)", "Requeue"),
    ]

    def __init__(self, act: Requeue, rethink: Callable[[Requeue, Callable[[Message], object]], None]) -> None:
        super().__init__()
        self.act = act
        self._rethink = rethink
        self._latest = act
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """What would happen, a form, and two buttons."""
        offers = {offer.name: offer for offer in self.act.offers or ()}
        with VerticalScroll(classes="dialog"):
            yield Static(Text(f"{shortened(self.act.title, 200)}?", BOLD), markup=False)
            yield Static(Text(f"\n{shortened(self.act.description, 1000)}"), markup=False, id="effects")
            hint = "Changed launcher options need new jobs: with any of them, all runs go there.\n"
            yield Static(Text(hint, DIM), markup=False)
            for name in dict.fromkeys([*_ALWAYS, *offers]):
                offer = offers.get(name)
                with Horizontal(classes="field"):
                    yield Label(f"{name} ({_ABOUT[name]})", markup=False)
                    value = "" if offer is None else offer.value
                    yield Input(value, id=name, placeholder="as it was", compact=True, classes="option")
                    yield Label("" if offer is None else f" {offer.was}", markup=False, classes="was")
            with Horizontal(classes="field"):
                yield Label("other options (name=value ...)", markup=False)
                yield Input(id="others", placeholder="partition=long nodes=1", compact=True)
            with Horizontal(classes="field"):
                yield Label("overrides to add (key=value ...)", markup=False)
                yield Input(id="overrides", placeholder="+lr=1e-4", compact=True)
            yield Box(_CODE[False], id="as-submitted", compact=True)
            yield Box(_FOLDER[False], id="fresh", compact=True)
            with Horizontal(classes="buttons"):
                yield Button("Requeue", id="yes", variant="warning", compact=True)
                yield Button("No", id="no", compact=True)

    def on_mount(self) -> None:
        """Enter says yes."""
        self.query_one("#yes", Button).focus()

    def _filled_in(self) -> Requeue:
        """The act as the form has it."""
        fields = {str(field.id): field.value.strip() for field in self.query(".option").results(Input)}
        return replace(
            self.act,
            changes=(
                *(f"{name}={value}" for name, value in fields.items() if value),
                *self.query_one("#others", Input).value.split(),
            ),
            overrides=tuple(self.query_one("#overrides", Input).value.split()),
            as_submitted=self.query_one("#as-submitted", Checkbox).value,
            fresh=self.query_one("#fresh", Checkbox).value,
        )

    def action_answer(self, answer: bool) -> None:
        """Take the form, and answer."""
        if answer:
            said = self._filled_in()
            self.act.changes, self.act.overrides = said.changes, said.overrides
            self.act.as_submitted, self.act.fresh = said.as_submitted, said.fresh
        self.dismiss(answer)

    # --- what would happen now

    @on(Input.Changed)
    def _changed(self) -> None:
        """Think again once nothing was typed for a moment."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(PAUSE_S, self._think)

    def _think(self) -> None:
        said = self._filled_in()
        if _wish(said) != _wish(self._latest):
            self._latest = said
            self._rethink(said, self.post_message)

    @on(Planned)
    def _planned(self, event: Planned) -> None:
        event.stop()
        if event.act is self._latest:
            self.query_one("#effects", Static).update(Text(f"\n{shortened(event.act.description, 1000)}"))

    @on(ActDone)
    def _mistaken(self, event: ActDone) -> None:
        """It cannot be done like that."""
        event.stop()
        self.query_one("#effects", Static).update(Text(f"\n{shortened(' '.join(event.sentences), 1000)}", ALERT))

    @on(Checkbox.Changed)
    def _ticked(self, event: Checkbox.Changed) -> None:
        event.checkbox.BUTTON_INNER = "X" if event.value else " "
        event.checkbox.label = (_CODE if event.checkbox.id == "as-submitted" else _FOLDER)[event.value]

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.query_one("#yes", Button).focus()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.action_answer(event.button.id == "yes")


def _wish(act: Requeue) -> tuple[object, ...]:
    """What of an act says where runs would go."""
    return act.changes, act.overrides
