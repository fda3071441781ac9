"""The line at the top: the views with their keys, and the chosen sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.style import Style
from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget

from clusterduck.wording import visible


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
        self._sweep = ""
        self._figure = ""

    def show(self, front: str, sweep: str, figure: str) -> None:
        """Show which view is in front, and at the right end of the line the sweep, and a figure on it."""
        if (front, sweep, figure) != (self._front, self._sweep, self._figure):
            self._front, self._sweep, self._figure = front, sweep, figure
            self.refresh()

    def _labels(self) -> list[tuple[str, str]]:
        return [(subject, f" {number} {title} ") for number, (subject, title) in enumerate(self._views, 1)]

    def render(self) -> Text:
        """The line."""
        text = Text(no_wrap=True)
        for subject, label in self._labels():
            text.append(label, Style(bold=True, reverse=True) if subject == self._front else Style())
        room = self.size.width - len(text) - len(self._figure) - 2
        name = visible(self._sweep)
        if len(name) > room:  # its end tells it from its fellows
            name = f"…{name[len(name) - room + 1 :]}" if room > 3 else ""
        text.append(f"{name:>{max(0, room)}} {self._figure}")
        return text

    def on_click(self, event: events.Click) -> None:
        """Bring the view that was clicked to the front."""
        x = event.x
        for subject, label in self._labels():
            if x < len(label):
                self.post_message(self.Clicked(subject))
                return
            x -= len(label)
