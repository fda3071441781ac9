"""The questions before something is done: each is asked once, and says what would happen."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Checkbox, Input, Label, Static

from clusterduck_tui.acting import Deed, Requeue
from clusterduck_tui.theme import BOLD, DIM, shortened

#: What the box says, ticked or not: not by its colour alone.
_CODE = {False: "runs today's code", True: "runs the function as it was submitted"}


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
    """Whether to send runs again, and with which launcher options; what is left empty stays as it was."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "answer(False)", "No"),
        Binding("ctrl+s", "answer(True)", "Requeue"),
    ]

    def __init__(self, act: Requeue) -> None:
        super().__init__()
        self.act = act

    def compose(self) -> ComposeResult:
        """What would happen, a form, and two buttons."""
        offers = self.act.offers
        with VerticalScroll(classes="dialog"):
            yield Static(Text(f"{shortened(self.act.title, 200)}?", BOLD), markup=False)
            yield Static(Text(f"\n{shortened(self.act.description, 1000)}"), markup=False, id="effects")
            hint = "Changed launcher options need new jobs: with any of them, all runs go there.\n"
            yield Static(Text(hint, DIM), markup=False)
            for name, about in (("timeout_min", "minutes per job"), ("mem_gb", "memory per node")):
                offer = offers.get(name)
                was = "" if offer is None or offer[1] is None else f", was {offer[1]:g}"
                with Horizontal(classes="field"):
                    yield Label(f"{name} ({about}{was})", markup=False)
                    yield Input(
                        "" if offer is None else f"{offer[0]:g}", id=name, placeholder="as it was", compact=True
                    )
            with Horizontal(classes="field"):
                yield Label("other options (name=value ...)", markup=False)
                yield Input(id="others", placeholder="partition=long nodes=1", compact=True)
            with Horizontal(classes="field"):
                yield Label("overrides to add (key=value ...)", markup=False)
                yield Input(id="overrides", placeholder="+lr=1e-4", compact=True)
            yield Checkbox(_CODE[False], id="as-submitted", compact=True)
            with Horizontal(classes="buttons"):
                yield Button("Requeue", id="yes", variant="warning", compact=True)
                yield Button("No", id="no", compact=True)

    def on_mount(self) -> None:
        """Enter says yes."""
        self.query_one("#yes", Button).focus()

    def action_answer(self, answer: bool) -> None:
        """Take the form, and answer."""
        if answer:
            fields = {name: self.query_one(f"#{name}", Input).value.strip() for name in ("timeout_min", "mem_gb")}
            changes = [f"{name}={value}" for name, value in fields.items() if value]
            self.act.changes = (*changes, *self.query_one("#others", Input).value.split())
            self.act.overrides = tuple(self.query_one("#overrides", Input).value.split())
            self.act.as_submitted = self.query_one("#as-submitted", Checkbox).value
        self.dismiss(answer)

    @on(Checkbox.Changed)
    def _code_changed(self, event: Checkbox.Changed) -> None:
        event.checkbox.label = _CODE[event.value]

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.query_one("#yes", Button).focus()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.action_answer(event.button.id == "yes")
