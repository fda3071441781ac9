"""The line at the top: the views with their keys, and the chosen sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.style import Style
from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget

from clusterduck_tui.theme import shortened


class ViewTabs(Widget):
    """Names of views, one of them in front; a click brings another one there."""

    DEFAULT_CSS = "ViewTabs { height: 1; dock: top; background: $panel; }"

    class Clicked(Message):
        """A view's name was clicked."""

        def __init__(self, subject: str) -> None:
            super().__init__()
            self.subject = subject

    def __init__(self, views: Sequence[tuple[str, str]], **options: Any) -> None:
        super().__init__(**options)
        self._views = tuple(views)
        self._front = ""
        self._right = Text()

    def show(self, front: str, right: Text) -> None:
        """Show which view is in front, and at the right end of the line something else."""
        if (front, right) != (self._front, self._right):
            self._front, self._right = front, right
            self.refresh()

    def _labels(self) -> list[tuple[str, str]]:
        return [(subject, f" {number} {title} ") for number, (subject, title) in enumerate(self._views, 1)]

    def render(self) -> Text:
        """The line."""
        text = Text(no_wrap=True)
        for subject, label in self._labels():
            text.append(label, Style(bold=True, reverse=True) if subject == self._front else Style())
        room = self.size.width - len(text) - 1
        right = self._right.copy()
        if len(right) > room:
            right = Text(shortened(right.plain, max(0, room)))
        text.append(" " * max(1, room - len(right)))
        text.append_text(right)
        return text

    def on_click(self, event: events.Click) -> None:
        """Bring the view that was clicked to the front."""
        x = event.x
        for subject, label in self._labels():
            if x < len(label):
                self.post_message(self.Clicked(subject))
                return
            x -= len(label)
