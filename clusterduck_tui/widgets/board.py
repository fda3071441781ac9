"""The cards of all nodes at work on one board that scrolls, with a cursor on a slot.

Only what is in view is painted, and of that only what changed: a slot's lines are kept until it is told anew, and with
the time only the lines that show it change.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from clusterduck.ledger.queries import SlotNow
from clusterduck_tui.messages import Load, Node, NodesRead
from clusterduck_tui.theme import BOLD, DIM
from clusterduck_tui.widgets.card import SLOT_LINES, TIME_LINE, head, slot_lines, time_line

#: A slot takes so many columns: about this, at most that.
SLOT_WIDTH = 24
SLOT_MOST = 48


@dataclass(frozen=True)
class _Card:
    """Where a node's card stands, and how its slots are laid out."""

    node: Node
    left: int
    top: int
    width: int
    per_line: int
    slot_width: int
    height: int


@dataclass(frozen=True)
class _Block:
    """A slot's lines as they were painted, and what they show."""

    slot: SlotNow
    history: Sequence[Load]
    width: int
    cursor: Style | None
    strips: Sequence[Strip]


class NodesBoard(ScrollView, can_focus=True):
    """The cards; only those in view are painted. The cursor is on a slot."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", "Left", show=False),
        Binding("right,l", "move(1)", "Right", show=False),
        Binding("up,k", "line(-1)", "Up", show=False),
        Binding("down,j", "line(1)", "Down", show=False),
        Binding("pageup,ctrl+b", "page(-1.0)", show=False),
        Binding("pagedown,ctrl+f", "page(1.0)", show=False),
        Binding("ctrl+u", "page(-0.5)", show=False),
        Binding("ctrl+d", "page(0.5)", show=False),
        Binding("home,g", "first", "First", show=False),
        Binding("end,G", "last", "Last", show=False),
        Binding("enter", "enter", "Run"),
    ]
    DEFAULT_CSS = "NodesBoard { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; }"
    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--cursor"}

    class Moved(Message):
        """The cursor is on another slot now."""

        def __init__(self, slot: SlotNow | None) -> None:
            super().__init__()
            self.slot = slot

    class Entered(Message):
        """Enter was pressed on a slot that holds a run."""

        def __init__(self, slot: SlotNow) -> None:
            super().__init__()
            self.slot = slot

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.nodes: Sequence[Node] = ()
        self.varying: dict[str, Sequence[str]] = {}
        self.typical: dict[str, float | None] = {}
        self.cursor = 0
        self._cards: list[_Card] = []
        self._slots: list[tuple[int, int]] = []  # card and slot of each cursor position
        self._lines: list[list[int]] = []  # cursor positions on each line of slots
        self._blocks: dict[tuple[int, int], _Block] = {}
        self._painted: dict[tuple[int, int], Strip] = {}  # by card and line of it
        self._now = time.time()
        self._width, self._style = 0, Style()

    def show(self, message: NodesRead, nodes: Sequence[Node]) -> None:
        """Show these nodes; the cursor stays on its slot."""
        here = self.slot_here
        is_same_board = [_key(slot) for node in nodes for slot in node.slots] == [
            _key(slot) for node in self.nodes for slot in node.slots
        ]
        if message.varying != self.varying:
            self._blocks.clear()
            self._painted.clear()
        self.nodes, self.varying, self.typical = nodes, message.varying, message.typical
        before = self._cards
        self._lay_out()
        same = {number for number, both in enumerate(zip(before, self._cards, strict=False)) if both[0] == both[1]}
        self._painted = {place: strip for place, strip in self._painted.items() if place[0] in same}
        if here is not None and not is_same_board:
            for place, (card, index) in enumerate(self._slots):
                if _key(self._cards[card].node.slots[index]) == _key(here):
                    self.cursor = place
        self._paint_anew({self.cursor})  # it may be on another slot, if its own is gone
        self.pass_time()
        self.refresh()

    def pass_time(self) -> None:
        """The time has gone on: paint the lines that show it anew."""
        self._now = time.time()
        y, height = round(self.scroll_offset.y), self.size.height
        lines = set()
        for number, line in [place for place in self._painted if _shows_time(place[1])]:
            del self._painted[number, line]
            lines.add(self._cards[number].top + line)
        regions = [Region(0, line - y, self.size.width, 1) for line in lines if y <= line < y + height]
        if regions:
            self.refresh(*regions)

    @property
    def slot_here(self) -> SlotNow | None:
        """The slot under the cursor."""
        if not 0 <= self.cursor < len(self._slots):
            return None
        card, index = self._slots[self.cursor]
        return self._cards[card].node.slots[index]

    @property
    def node_here(self) -> Node | None:
        """The node whose slot is under the cursor."""
        return self._cards[self._slots[self.cursor][0]].node if 0 <= self.cursor < len(self._slots) else None

    def _lay_out(self) -> None:
        width = max(20, self.scrollable_content_region.width)
        self._cards, self._slots = [], []
        most = max((len(node.slots) for node in self.nodes), default=1) or 1
        least = most * (SLOT_WIDTH + 1) + 1
        beside = max(1, min(len(self.nodes) or 1, width // max(least, 40)))
        card_width = min(width // beside, most * (SLOT_MOST + 1) + 1) if beside > 1 else width
        card_width = max(card_width, min(40, width))
        top = 0
        for start in range(0, len(self.nodes), beside):
            heights = []
            for place, node in enumerate(self.nodes[start : start + beside]):
                room = card_width - 1
                count = max(1, len(node.slots))
                slot_width = min(SLOT_MOST, max(room // count, 19))
                per_line = max(1, min(count, (room + 1) // slot_width))
                lines = 1 + -(-count // per_line) * (SLOT_LINES + 1)
                heights.append(lines)
                card = _Card(node, place * card_width, top, card_width, per_line, slot_width, lines)
                self._cards.append(card)
                self._slots += [(len(self._cards) - 1, index) for index in range(len(node.slots))]
            top += max(heights)
        by_line: dict[int, list[int]] = {}
        for place in range(len(self._slots)):
            by_line.setdefault(self._lines_of(place)[0], []).append(place)
        self._lines = [by_line[line] for line in sorted(by_line)]
        self.virtual_size = Size(width, top)
        self.cursor = max(0, min(self.cursor, len(self._slots) - 1))

    def on_resize(self, event: events.Resize) -> None:
        """As many cards side by side as there is room for; coming to the front is no change."""
        self._fit()
        self.refresh()

    def watch_show_vertical_scrollbar(self) -> None:
        """A scroll bar that comes or goes changes the room for cards."""
        self.call_later(self._fit)

    def _fit(self) -> None:
        if self.scrollable_content_region.width != self.virtual_size.width:
            self._lay_out()
            self._blocks.clear()
            self._painted.clear()
            self.refresh()

    def notify_style_update(self) -> None:
        """The theme is another one."""
        super().notify_style_update()
        self._painted.clear()

    def on_focus(self) -> None:
        """The cursor looks otherwise."""
        self._paint_anew({self.cursor})

    def on_blur(self) -> None:
        """The cursor looks otherwise."""
        self._paint_anew({self.cursor})

    def _paint_anew(self, places: set[int]) -> None:
        """Paint the slots at these of the cursor's places anew."""
        y = round(self.scroll_offset.y)
        for place in places.intersection(range(len(self._slots))):
            number = self._slots[place][0]
            top, height = self._lines_of(place)
            for line in range(top, top + height):
                self._painted.pop((number, line - self._cards[number].top), None)
            self.refresh(Region(0, top - y, self.size.width, height))

    # --- the cursor

    def go_to(self, place: int) -> None:
        """Put the cursor on a slot."""
        before, self.cursor = self.cursor, max(0, min(place, len(self._slots) - 1))
        if self._slots:
            top, height = self._lines_of(self.cursor)
            view = max(1, self.scrollable_content_region.height)
            y = round(self.scroll_offset.y)
            if top < y:
                self.scroll_to(y=max(0, top), animate=False, immediate=True)
            elif top + height > y + view:
                self.scroll_to(y=top + height - view, animate=False, immediate=True)
            self._paint_anew({before, self.cursor})
        self.post_message(self.Moved(self.slot_here))

    def _lines_of(self, place: int) -> tuple[int, int]:
        card, index = self._slots[place]
        its = self._cards[card]
        line = index // its.per_line
        above = 1 if line == 0 else 0  # the first line of slots shows the card's head, too
        return its.top + 1 + line * (SLOT_LINES + 1) - above, SLOT_LINES + 1 + above

    def action_move(self, count: int) -> None:
        """To another slot."""
        self.go_to(self.cursor + count)

    def action_line(self, count: int) -> None:
        """To the slot below or above."""
        if not self._slots:
            return
        x = self._x(self.cursor)
        here = next(number for number, places in enumerate(self._lines) if self.cursor in places)
        on_line = self._lines[max(0, min(here + count, len(self._lines) - 1))]
        self.go_to(min(on_line, key=lambda place: abs(self._x(place) - x)))

    def _x(self, place: int) -> int:
        card, index = self._slots[place]
        its = self._cards[card]
        return its.left + index % its.per_line * its.slot_width

    def action_page(self, pages: float) -> None:
        """Some pages of slots down, or up."""
        lines = int(self.size.height * pages / (SLOT_LINES + 2)) or (1 if pages > 0 else -1)
        self.action_line(lines)

    def action_first(self) -> None:
        """To the first slot."""
        self.go_to(0)

    def action_last(self) -> None:
        """To the last slot."""
        self.go_to(len(self._slots) - 1)

    def action_enter(self) -> None:
        """Open the run in the slot."""
        slot = self.slot_here
        if slot is not None and slot.run is not None:
            self.post_message(self.Entered(slot))

    def on_click(self, event: events.Click) -> None:
        """A click moves the cursor to a slot; one more opens its run."""
        x, y = event.x, event.y + round(self.scroll_offset.y)
        for place in range(len(self._slots)):
            top, height = self._lines_of(place)
            left = self._x(place)
            width = self._cards[self._slots[place][0]].slot_width
            if top <= y < top + height and left <= x < left + width:
                if place == self.cursor:
                    self.action_enter()
                else:
                    self.go_to(place)
                return

    # --- painting

    def render_lines(self, crop: Region) -> list[Strip]:
        """What is the same for all lines is asked for once."""
        self._width, self._style = self.scrollable_content_region.width, self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """A line through the cards that stand side by side there."""
        width, base = self._width, self._style
        line = y + round(self.scroll_offset.y)
        strips = []
        at = 0
        for number, card in enumerate(self._cards):
            if card.top <= line < card.top + card.height:
                place = number, line - card.top
                if place not in self._painted:
                    self._painted[place] = self._paint(*place).crop_extend(0, card.width, None)
                if card.left > at:
                    strips.append(Strip.blank(card.left - at, base))
                strips.append(self._painted[place])
                at = card.left + card.width
        return Strip.join(strips).crop_extend(0, width, base).apply_style(base)

    def _paint(self, number: int, line: int) -> Strip:
        """A line of a card: its head, or what its slots that stand side by side there have on it."""
        card = self._cards[number]
        if line == 0:
            return self._strip(head(card.node, self._now, card.width - 1))
        row, line = divmod(line - 1, SLOT_LINES + 1)
        if line == SLOT_LINES:
            return Strip([])
        parts: list[Strip] = []
        for index in range(len(card.node.slots))[row * card.per_line : (row + 1) * card.per_line]:
            parts += [_BETWEEN, self._time_line(card, index) if line == TIME_LINE else self._slot(number, index)[line]]
        return Strip.join([*parts[1:], _END])

    def _time_line(self, card: _Card, index: int) -> Strip:
        slot = card.node.slots[index]
        return self._strip(time_line(slot, self.typical.get(slot.sweep), self._now, card.slot_width - 1))

    def _slot(self, number: int, index: int) -> Sequence[Strip]:
        """A slot's lines, all but the one that changes as time goes on."""
        card = self._cards[number]
        slot = card.node.slots[index]
        history = card.node.history.get(slot.slot, ())
        width = card.slot_width - 1
        cursor = None
        if self._slots[self.cursor] == (number, index):
            cursor = (self.get_component_rich_style("table--cursor") if self.has_focus else Style(reverse=True)) + BOLD
        block = self._blocks.get((number, index))
        shown = (slot, history, width, cursor)
        if block is None or (block.slot, block.history, block.width, block.cursor) != shown:
            texts = slot_lines(slot, self.varying.get(slot.sweep, ()), history, width)
            if cursor is not None:
                texts[0].stylize(cursor)
            block = _Block(*shown, [self._strip(text) for text in texts])
            self._blocks[number, index] = block
        return block.strips

    def _strip(self, text: Text) -> Strip:
        return Strip(text.render(self.app.console))


def _shows_time(line: int) -> bool:
    """Whether this line of a card changes as time goes on."""
    return line == 0 or (line - 1) % (SLOT_LINES + 1) == TIME_LINE


_BETWEEN, _END = Strip([Segment("│", DIM)], 1), Strip([Segment(" ", DIM)], 1)


def _key(slot: SlotNow) -> tuple[str, str, int, int, int]:
    return (slot.sweep, slot.batch, slot.restart, slot.node, slot.slot)
