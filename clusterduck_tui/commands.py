"""The palette (Ctrl-p): every action and every view by name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from textual.command import DiscoveryHit, Hit, Hits, Provider

from clusterduck_tui.actions import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator


class ActionCommands(Provider):
    """Offers what the main screen can do."""

    async def discover(self) -> Hits:
        """All of it, before anything is typed."""
        for title, about, name in self._offers():
            yield DiscoveryHit(title, partial(self.app.run_action, f"screen.{name}", self.screen), help=about)

    async def search(self, query: str) -> Hits:
        """What matches."""
        matcher = self.matcher(query)
        for title, about, name in self._offers():
            score = matcher.match(title)
            if score > 0:
                command = partial(self.app.run_action, f"screen.{name}", self.screen)
                yield Hit(score, matcher.highlight(title), command, help=about)

    def _offers(self) -> Iterator[tuple[str, str, str]]:
        from clusterduck_tui.screens.main import MainScreen

        if not isinstance(self.screen, MainScreen):
            return
        for action in ACTIONS:
            if self.screen.check_action(action.name, ()):
                yield f"{action.title} ({action.shown_key})", action.about, action.name
        for number, view in enumerate(self.screen.views, 1):
            yield f"{view.title} ({number})", f"the view {view.title}", f"show_view('{view.subject}')"
