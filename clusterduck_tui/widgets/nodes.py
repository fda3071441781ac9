"""Every node at work as a card, its slots side by side: is my allocation used?"""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from clusterduck.ledger.history import share_of_time
from clusterduck_tui.known import Known
from clusterduck_tui.messages import Interest, NodesRead
from clusterduck_tui.theme import BOLD, DIM, load_bar, shortened
from clusterduck_tui.widgets.board import NodesBoard
from clusterduck_tui.widgets.view import View


class Nodes(View):
    """All nodes at work."""

    subject = "nodes"
    title = "Nodes"
    about = (
        "Every node of a job that runs, its slots side by side: the run in each, the overrides that vary, how long it "
        "has been going on against what runs of this sweep typically take, CPU and GPU load now and before, "
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
            self.part("board", NodesBoard).pass_time()

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
            so_far = share_of_time(
                message.occupancy[sweep] for sweep in {node.agent.sweep for node in nodes} & message.occupancy.keys()
            )
            if so_far is not None:
                text.append(f", {100 * so_far:.0f} % so far")
            gpus = [slot.gpu_percent for slot in slots if slot.gpu_percent is not None]
            if gpus:
                text.append(f"  GPU {sum(gpus) / len(gpus):.0f} %")
            text.append("  all sweeps" if self._all else f"  {shortened(self.known.chosen or '', 40)}", DIM)
        self.say("nodes-title", text)

    def runs_meant(self) -> list[int]:
        """The run in the slot under the cursor, if it is of the chosen sweep."""
        slot = self.part("board", NodesBoard).slot_here
        return [] if slot is None or slot.run is None or slot.sweep != self.known.chosen else [slot.run]

    def job_meant(self) -> tuple[str, str] | None:
        """The job of the slot under the cursor."""
        node = self.part("board", NodesBoard).node_here
        return (node.agent.sweep, node.agent.job_id) if node is not None and node.agent.job_id else None

    def on_nodes_board_moved(self, event: NodesBoard.Moved) -> None:
        """The sweep of the slot under the cursor is the chosen one, whatever other choice may be on its way."""
        if event.slot is not None:
            self.post_message(self.Wants("sweep", event.slot.sweep))

    def on_nodes_board_entered(self, event: NodesBoard.Entered) -> None:
        """Open the run."""
        self.post_message(self.Wants("run", event.slot.sweep, event.slot.run))
