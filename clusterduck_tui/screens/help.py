"""Help for the view in front: what it shows, its keys, and the commands that do the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from clusterduck_tui.actions import ACTIONS
from clusterduck_tui.theme import BOLD, DIM, legend
from clusterduck_tui.widgets.view import View

_EVERYWHERE: Sequence[tuple[str, str]] = (
    ("1 to 6, Tab", "the views"),
    ("Enter Esc", "in; back (Esc never quits)"),
    ("arrows, h j k l", "move"),
    ("g G, Ctrl-d Ctrl-u", "first, last; half a page down, up"),
    ("Ctrl-p", "the palette: every action by name"),
    ("?", "this help"),
    ("q", "quit"),
)


class Help(ModalScreen[None]):
    """Closed by Esc, ? or q."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", "Close"),
        Binding("j", "scroll(1)", show=False),
        Binding("k", "scroll(-1)", show=False),
    ]

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def compose(self) -> ComposeResult:
        """A box that scrolls."""
        with VerticalScroll(classes="dialog", id="help"):
            yield Static(self._text(), markup=False)

    def action_scroll(self, lines: int) -> None:
        """Down, or up."""
        self.query_one("#help", VerticalScroll).scroll_relative(y=lines, animate=False)

    def _text(self) -> Text:
        text = Text()
        text.append(f"{self._view.title}\n", BOLD)
        text.append(f"{self._view.about}\n\n")
        _keys(text, "Keys of this view", self._view.keys)
        _keys(text, "Keys everywhere", _EVERYWHERE)
        text.append("Actions\n", BOLD)
        for action in ACTIONS:
            text.append(f"  {action.shown_key:<20}", BOLD)
            text.append(f"{action.about}")
            text.append(f"  {action.command}\n" if action.command else "\n", DIM)
        text.append("\nStates\n", BOLD)
        text.append("  ")
        text.append_text(legend())
        return text


def _keys(text: Text, title: str, keys: Sequence[tuple[str, str]]) -> None:
    text.append(f"{title}\n", BOLD)
    for key, what in keys:
        text.append(f"  {key:<20}", BOLD)
        text.append(f"{what}\n")
    text.append("\n")
