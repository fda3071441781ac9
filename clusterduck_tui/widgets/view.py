"""What the six views have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from rich.text import Text
from textual.containers import Vertical
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Static

from clusterduck.ledger.queries import Sweep
from clusterduck_tui.known import Known
from clusterduck_tui.messages import Interest

Part = TypeVar("Part", bound=Widget)


class View(Vertical):
    """A view: says what it wants to know, and shows what comes.

    Attributes:
        subject: its id, and what it asks the feed for.
        title: what its tab says.
        about: a paragraph for the help screen.
        keys: keys of its own for the help screen, each with what it does.
    """

    subject: ClassVar[str] = ""
    title: ClassVar[str] = ""
    about: ClassVar[str] = ""
    keys: ClassVar[Sequence[tuple[str, str]]] = ()

    DEFAULT_CSS = "View { height: 1fr; }"

    def __init__(self, known: Known, **options: Any) -> None:
        super().__init__(id=self.subject, **options)
        self.known = known
        self._parts: dict[str, Widget] = {}
        self._said: dict[str, Text] = {}

    def on_mount(self) -> None:
        """Know the parts, also while they are being taken down and a late message comes."""
        self._parts = {widget.id: widget for widget in self.query("*") if widget.id is not None}

    def part(self, name: str, kind: type[Part]) -> Part:
        """A widget of the view by its id."""
        if name not in self._parts:
            self._parts[name] = self.query_one(f"#{name}")
        found = self._parts[name]
        assert isinstance(found, kind)
        return found

    def say(self, name: str, text: Text) -> None:
        """Put a text into a line of its own, if it is another one. Its height stays, so nothing is laid out anew."""
        if self._said.get(name) != text:
            self._said[name] = text
            self.part(name, Static).update(text, layout=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While something is typed, a slash is a letter."""
        is_key = action in ("filter", "search") and self.is_attached
        return not (is_key and isinstance(self.screen.focused, Input))

    class InterestChanged(Message):
        """The view in front wants to know something else now."""

    class Wants(Message):
        """Something is wanted that concerns other views: ``runs``, ``run`` with a number, or ``back``."""

        def __init__(self, what: str, sweep: str | None = None, run: int | None = None) -> None:
            super().__init__()
            self.what = what
            self.sweep = sweep
            self.run = run

    @property
    def is_in_front(self) -> bool:
        """Whether this is the view that is seen."""
        return bool(self.display)

    def interest(self) -> Interest:
        """What the view wants to know now."""
        return Interest(self.subject, self.known.chosen)

    def inner(self) -> Widget:
        """What takes the keys."""
        raise NotImplementedError

    def receive(self, message: Message) -> None:
        """Show what was read for it."""

    def sweep_meant(self) -> Sweep | None:
        """The sweep that an action applies to."""
        return self.known.sweep

    def runs_meant(self) -> list[int]:
        """The runs of the chosen sweep that an action applies to."""
        return []

    def job_meant(self) -> tuple[str, str] | None:
        """The job that an action applies to: its sweep, and its id."""
        return None

    def show_known(self) -> None:
        """Show what all views share (sweeps, jobs), which has just changed, or the time, which has gone on."""

    def went_back(self) -> bool:
        """Esc was pressed: close what is open within the view, and tell whether there was something."""
        return False
