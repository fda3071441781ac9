"""Every node at work as a card, its slots side by side: is my allocation used?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from clusterduck.ledger.queries import SlotNow
from clusterduck.wording import duration, ids, seconds_of, size
from clusterduck_tui.known import SILENT_S, Known, silence
from clusterduck_tui.messages import Interest, Node, NodesRead
from clusterduck_tui.theme import ALERT, BOLD, DIM, load_bar, shortened, sparkline
from clusterduck_tui.widgets.view import View

#: A slot takes so many columns: about this, at most that.
SLOT_WIDTH = 24
SLOT_MOST = 48

#: Lines of a slot.
SLOT_LINES = 7

#: Columns of load history.
SPARK = 8


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
    DEFAULT_CSS = "NodesBoard { height: 1fr; scrollbar-size-vertical: 1; }"
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
        self._painted: dict[int, list[Strip]] = {}
        self._now = time.time()

    def show(self, message: NodesRead, nodes: Sequence[Node]) -> None:
        """Show these nodes; the cursor stays on its slot."""
        here = self.slot_here
        self.nodes, self.varying, self.typical = nodes, message.varying, message.typical
        self._lay_out()
        if here is not None:
            for place, (card, index) in enumerate(self._slots):
                slot = self._cards[card].node.slots[index]
                if _key(slot) == _key(here):
                    self.cursor = place
        self.repaint()

    def repaint(self) -> None:
        """Paint anew: the time has gone on, or something changed."""
        self._now = time.time()
        self._painted.clear()
        self.refresh()

    @property
    def slot_here(self) -> SlotNow | None:
        """The slot under the cursor."""
        if not 0 <= self.cursor < len(self._slots):
            return None
        card, index = self._slots[self.cursor]
        return self._cards[card].node.slots[index]

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
        self.virtual_size = Size(width, top)
        self.cursor = max(0, min(self.cursor, len(self._slots) - 1))

    def on_resize(self, event: events.Resize) -> None:
        """As many cards side by side as there is room for."""
        self._lay_out()
        self.repaint()

    # --- the cursor

    def go_to(self, place: int) -> None:
        """Put the cursor on a slot."""
        self.cursor = max(0, min(place, len(self._slots) - 1))
        if self._slots:
            top, height = self._lines_of(self.cursor)
            view = max(1, self.scrollable_content_region.height)
            y = round(self.scroll_offset.y)
            if top < y:
                self.scroll_to(y=max(0, top), animate=False, immediate=True)
            elif top + height > y + view:
                self.scroll_to(y=top + height - view, animate=False, immediate=True)
        self._painted.clear()
        self.refresh()
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
        card, index = self._slots[self.cursor]
        its = self._cards[card]
        x = its.left + index % its.per_line * its.slot_width
        here = self._lines_of(self.cursor)[0]
        lines = sorted({self._lines_of(place)[0] for place in range(len(self._slots))})
        line = lines[max(0, min(lines.index(here) + count, len(lines) - 1))]
        on_line = [place for place in range(len(self._slots)) if self._lines_of(place)[0] == line]
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

    def render_line(self, y: int) -> Strip:
        """A line through the cards that stand side by side there."""
        width = self.scrollable_content_region.width
        base = self.rich_style
        line = y + round(self.scroll_offset.y)
        strips = []
        at = 0
        for number, card in enumerate(self._cards):
            if card.top <= line < card.top + card.height:
                if number not in self._painted:
                    self._painted[number] = self._paint(number, card)
                if card.left > at:
                    strips.append(Strip.blank(card.left - at, base))
                strips.append(self._painted[number][line - card.top])
                at = card.left + card.width
        return Strip.join(strips).crop_extend(0, width, base).apply_style(base)

    def _paint(self, number: int, card: _Card) -> list[Strip]:
        lines = [self._head(card)]
        here = self._slots[self.cursor] if self._slots else None
        slots = card.node.slots
        for start in range(0, max(1, len(slots)), card.per_line):
            texts = []
            for index in range(start, min(start + card.per_line, len(slots))):
                is_here = here == (number, index)
                texts.append(self._slot(card, slots[index], card.slot_width - 1, is_here))
            for line in range(SLOT_LINES):
                text = Text()
                for slot in texts:
                    text.append_text(slot[line])
                    text.append("│" if slot is not texts[-1] else " ", DIM)
                lines.append(text)
            lines.append(Text())
        console = self.app.console
        return [Strip(text.render(console)).crop_extend(0, card.width, None) for text in lines]

    def _head(self, card: _Card) -> Text:
        agent, slots = card.node.agent, card.node.slots
        busy = sum(slot.run is not None for slot in slots)
        ends_at = seconds_of(agent.ends_at)
        quiet = silence(agent.heartbeat_at or agent.started_at)
        text = Text()
        text.append("▌", "blue")
        text.append(shortened(agent.host or "?", 24), BOLD)
        text.append(f" {busy}/{len(slots)} busy", BOLD if busy == len(slots) else Style(color="yellow", bold=True))
        if quiet > SILENT_S:
            text.append(f" not heard of for {duration(quiet)}", ALERT)
        if agent.cpu_percent is not None:
            text.append(f"  CPU {agent.cpu_percent:.0f} %")
        if agent.memory_bytes is not None:
            text.append(f"  {size(agent.memory_bytes)}")
        if ends_at is not None:
            text.append(f"  {_short(max(0.0, ends_at - self._now))} left")
        text.append(f"  {shortened(agent.sweep, 30)} {agent.batch}", DIM)
        if agent.job_id:
            text.append(f" job {shortened(agent.job_id, 16)}", DIM)
        text.truncate(card.width - 1, overflow="ellipsis", pad=True)
        return text

    def _slot(self, card: _Card, slot: SlotNow, width: int, is_here: bool) -> list[Text]:
        typical = self.typical.get(slot.sweep)
        head = Text()
        head.append(f"{slot.slot}: ", DIM)
        if slot.run is None:
            head.append("empty", Style(color="yellow"))
            lines = [head, Text(), Text()]
        else:
            head.append(f"run {slot.run}", BOLD)
            if (slot.attempt or 1) > 1:
                head.append(f" (attempt {slot.attempt})")
            values = {key: value for key, value in _values(slot).items() if key in self.varying.get(slot.sweep, ())}
            pairs = " ".join(f"{key}={value}" for key, value in values.items())
            begun = seconds_of(slot.since)
            so_far = 0.0 if begun is None else max(0.0, self._now - begun)
            time_text = Text(_short(so_far))
            if typical is not None:
                time_text.append(f" of ~{_short(typical)} ", DIM)
                room = width - len(time_text)
                if room > 2:
                    late = so_far > 1.5 * typical
                    time_text.append_text(
                        load_bar(so_far / typical if typical else 1, room, "yellow" if late else "blue")
                    )
            lines = [head, Text(shortened(pairs, width)), time_text]
        history = card.node.history.get(slot.slot, ())
        cpus = max(1, len(slot.cpus)) if slot.cpus else None
        lines.append(_load("CPU", slot.cpu_percent, cpus, [cpu for cpu, _ in history], width))
        lines.append(_load("GPU", slot.gpu_percent, 1, [gpu for _, gpu in history], width))
        where = f"cpu {ids(slot.cpus)}" if slot.cpus else "cpu any"
        if slot.gpus:
            where += f" gpu {ids(slot.gpus)}"
        memory = f"mem {size(slot.memory_bytes)}" if slot.memory_bytes is not None else ""
        if slot.gpu_memory_bytes is not None:
            memory += f", {size(slot.gpu_memory_bytes)}"
        lines.append(Text(memory, DIM))
        lines.append(Text(where, DIM))
        for text in lines:
            text.truncate(width, overflow="ellipsis", pad=True)
        if is_here:
            style = self.get_component_rich_style("table--cursor") if self.has_focus else Style(reverse=True)
            lines[0].stylize(style + BOLD)
        return lines


def _values(slot: SlotNow) -> dict[str, str]:
    from clusterduck.ledger.overrides import as_dict

    return as_dict(slot.overrides)


def _load(name: str, percent: float | None, share_of: int | None, history: Sequence[float | None], width: int) -> Text:
    """A load as a bar, a number and its history. CPU percent count one CPU as 100, so many CPUs are a full bar."""
    whole = 100.0 * (share_of or 1)
    text = Text(f"{name} ")
    if percent is None and not any(value is not None for value in history):
        text.append("·", DIM)
        return text
    spark = SPARK if width >= 22 else max(0, min(SPARK, width - 15))
    bar = max(3, width - 4 - 6 - spark)
    text.append_text(load_bar(None if percent is None else percent / whole, bar))
    text.append(f"{percent:>4.0f}% " if percent is not None else "   ?  ")
    text.append_text(sparkline([None if value is None else value / whole for value in history], spark))
    return text


def _short(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else duration(seconds)


def _key(slot: SlotNow) -> tuple[str, str, int, int, int]:
    return (slot.sweep, slot.batch, slot.restart, slot.node, slot.slot)


class Nodes(View):
    """All nodes at work."""

    subject = "nodes"
    title = "Nodes"
    about = (
        "Every node of a job that runs, its slots side by side: the run in each, the overrides that vary, how long it "
        "has been going on against what runs of this sweep typically take, CPU and GPU load with the last ten minutes, "
        "and which CPUs and GPUs it has. Above: how many slots hold a run now, and held one so far. The same on the "
        "command line: clusterduck nodes."
    )
    keys = (("Enter", "the run in this slot"), ("a", "all sweeps, or only the chosen one"))

    BINDINGS: ClassVar[list[BindingType]] = [Binding("a", "all", "All/one sweep")]

    def __init__(self, known: Known) -> None:
        super().__init__(known)
        self._all = True
        self._message: NodesRead | None = None

    def compose(self) -> ComposeResult:
        """A line above, and the cards."""
        yield Static(id="nodes-title", markup=False, classes="title")
        yield NodesBoard(id="board")

    def inner(self) -> Widget:
        """The cards."""
        return self.part("board", NodesBoard)

    def interest(self) -> Interest:
        """All nodes at work."""
        return Interest(self.subject, self.known.chosen)

    def receive(self, message: Message) -> None:
        """Show the nodes."""
        if isinstance(message, NodesRead):
            self._message = message
            self._show()

    def show_known(self) -> None:
        """The time has gone on."""
        if self._message is not None:
            self.part("board", NodesBoard).repaint()

    def action_all(self) -> None:
        """All sweeps, or only the chosen one."""
        self._all = not self._all
        self._show()

    def _show(self) -> None:
        message = self._message
        if message is None:
            return
        nodes = [node for node in message.nodes if self._all or node.agent.sweep == self.known.chosen]
        self.part("board", NodesBoard).show(message, nodes)
        slots = [slot for node in nodes for slot in node.slots]
        busy = sum(slot.run is not None for slot in slots)
        text = Text()
        if not nodes:
            text.append("no node is at work" + ("" if self._all else " for this sweep (a: all sweeps)"), DIM)
        else:
            text.append(f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}  ", BOLD)
            text.append(f"{busy} of {len(slots)} slots busy ", BOLD if busy == len(slots) else "bold yellow")
            text.append_text(load_bar(busy / len(slots) if slots else None, 12))
            text.append(f" {100 * busy / len(slots):.0f} % now" if slots else "")
            if message.so_far is not None and self._all:
                text.append(f", {100 * message.so_far:.0f} % so far")
            gpus = [slot.gpu_percent for slot in slots if slot.gpu_percent is not None]
            if gpus:
                text.append(f"  GPU {sum(gpus) / len(gpus):.0f} %")
            text.append("  all sweeps" if self._all else f"  {shortened(self.known.chosen or '', 40)}", DIM)
        self.part("nodes-title", Static).update(text)

    def runs_meant(self) -> list[int]:
        """The run in the slot under the cursor, if it is of the chosen sweep."""
        slot = self.part("board", NodesBoard).slot_here
        return [] if slot is None or slot.run is None or slot.sweep != self.known.chosen else [slot.run]

    def job_meant(self) -> tuple[str, str] | None:
        """The job of the slot under the cursor."""
        board = self.part("board", NodesBoard)
        slot = board.slot_here
        agents = [node.agent for node in board.nodes if slot is not None and slot in node.slots]
        return (agents[0].sweep, agents[0].job_id) if agents and agents[0].job_id else None

    def on_nodes_board_moved(self, event: NodesBoard.Moved) -> None:
        """The sweep of the slot under the cursor is the chosen one."""
        if event.slot is not None and event.slot.sweep != self.known.chosen:
            self.post_message(self.Wants("sweep", event.slot.sweep))

    def on_nodes_board_entered(self, event: NodesBoard.Entered) -> None:
        """Open the run."""
        self.post_message(self.Wants("run", event.slot.sweep, event.slot.run))
