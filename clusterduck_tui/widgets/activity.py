"""What was done to the sweep and by whom, and what its runs and jobs went through."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from clusterduck.ledger.history import Happening
from clusterduck.ledger.queries import Act
from clusterduck.wording import local_time
from clusterduck_tui.known import Known
from clusterduck_tui.messages import ActDone, ActivityRead
from clusterduck_tui.theme import ALERT, BOLD, DIM, shortened, state_text
from clusterduck_tui.widgets.table import Column, ListTable, WindowedTable
from clusterduck_tui.widgets.view import View

_COLUMNS = (
    Column("at", "when", 19),
    Column("who", "who", 18),
    Column("what", "what", 12),
    Column("subject", "of", 34),
    Column("state", "state", 15),
    Column("reason", "why", 160),
)


class Activity(View):
    """Acts of people and tools, and the latest ends, together in one list."""

    subject = "activity"
    title = "Activity"
    about = (
        "What people and tools did (cancelled, requeued, closed), here or elsewhere, and what the runs and jobs of the "
        "chosen sweep went through, the latest first. What this dashboard did stands above the list."
    )
    keys = (("Enter", "the run that a line is about"),)

    def __init__(self, known: Known) -> None:
        super().__init__(known)
        self._done: list[ActDone] = []

    def compose(self) -> ComposeResult:
        """A line above, what was done here, and the list."""
        yield Static(id="activity-title", markup=False, classes="title")
        yield Static(id="done-here", markup=False)
        yield ListTable(id="happenings", empty="nothing has happened yet")

    def inner(self) -> Widget:
        """The list."""
        return self.part("happenings", ListTable)

    def note_done(self, message: ActDone) -> None:
        """Keep what this dashboard did."""
        self._done.append(message)
        del self._done[:-5]
        text = Text()
        for done in reversed(self._done):
            text.append(f"{shortened(done.title, 80)}: ", BOLD if done.went_well else ALERT)
            text.append(f"{shortened(' '.join(done.sentences), 300)}\n")
        text.rstrip()
        self.part("done-here", Static).update(text)

    def receive(self, message: Message) -> None:
        """Show what happened."""
        if not isinstance(message, ActivityRead):
            return
        rows: list[tuple[str, Hashable, Sequence[Text]]] = [
            (one.at, ("act", one.id), _act_row(one)) for one in message.acts
        ]
        for index, one in enumerate(message.happenings):
            rows.append((one.at, (one.what, one.subject, one.at, index), _row(one)))
        rows.sort(key=lambda row: row[0], reverse=True)
        self.part("happenings", ListTable).show(_COLUMNS, [(name, cells) for _, name, cells in rows])
        title = Text()
        title.append(f"{len(message.acts)} act{'s' if len(message.acts) != 1 else ''}", BOLD)
        title.append(f"  and what happened to {shortened(self.known.chosen or '', 40)}", DIM)
        self.say("activity-title", title)

    @on(WindowedTable.Entered)
    def _enter(self, event: WindowedTable.Entered) -> None:
        name = event.table.chosen
        if isinstance(name, tuple) and name[0] == "run":
            self.post_message(self.Wants("run", self.known.chosen, int(str(name[1]).rpartition("/")[2])))


def _act_row(act: Act) -> list[Text]:
    subject = act.sweep if act.run is None else f"{act.sweep}/{act.run}"
    if act.batch is not None:
        subject += f" batch {act.batch}"
    who = "@".join(part for part in (act.user, act.host) if part)
    reason = act.reason or act.detail or ""
    return [
        Text(local_time(act.at)),
        Text(shortened(who, 18)),
        Text(shortened(act.kind, 12), BOLD),
        Text(shortened(subject, 34)),
        state_text(act.state) if act.state else Text(),
        Text(shortened(reason, 160)),
    ]


def _row(one: Happening) -> list[Text]:
    return [
        Text(local_time(one.at)),
        Text(),
        Text(one.what),
        Text(shortened(one.subject, 34)),
        state_text(one.state),
        Text(shortened(one.reason, 160)),
    ]
