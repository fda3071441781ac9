"""The least that a Textual app can be, a text that a key changes: what bench_dashboard.py measures the dashboard by."""

from __future__ import annotations

from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.widgets import Footer, Static


class Bare(App[None]):
    """A screen full of one letter."""

    BINDINGS = [Binding("j", "next", "Next"), Binding("q", "quit", "Quit")]  # noqa: RUF012  # as every small app has it
    ENABLE_COMMAND_PALETTE = False

    def __init__(self) -> None:
        super().__init__()
        self._number = 0

    def compose(self) -> ComposeResult:
        """The text, and a footer."""
        yield Static("bare", id="text")
        yield Footer()

    def action_next(self) -> None:
        """Another letter."""
        self._number += 1
        letter = "ab"[self._number % 2]
        self.query_one("#text", Static).update("\n".join([letter * 190] * 45))


if __name__ == "__main__":
    Bare().run()
