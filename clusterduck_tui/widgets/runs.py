"""The runs of the chosen sweep: a windowed table that pages by key, a filter, an order, and marks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Static

from clusterduck.errors import ConfigError
from clusterduck.ledger.listing import Listing, in_any_order, parse_filter
from clusterduck.ledger.queries import Run
from clusterduck.wording import elapsed, json_value, local_time, short
from clusterduck_tui.known import Known
from clusterduck_tui.messages import Interest, RunsRead
from clusterduck_tui.theme import DIM, LETTERS, shortened, state_style, state_text
from clusterduck_tui.widgets.table import Column, WindowedTable
from clusterduck_tui.widgets.view import View

#: Rows read beyond the screen in each direction, and how many are kept.
AROUND = 150
KEPT = 2000

#: An override's column is at most so wide.
WIDEST_OVERRIDE = 18

TROUBLE = "state:trouble"

_BEFORE = (Column("number", "run", 8, right=True), Column("state", "state", 15))
_AFTER = (
    Column("return_value", "returned", 12, right=True),
    Column("attempt", "att", 3, right=True),
    Column("duration_s", "took", 10, right=True),
    Column("slot", "node/slot", 16),
    Column("ended_at", "ended", 19),
    Column("reason", "reason", 160),
)


class RunsTable(WindowedTable):
    """The runs in their order; only those around the screen are known, the others are read when they come into view."""

    class RowsWanted(Message):
        """Rows have come near that are not known."""

    def __init__(self, known: Known, **options: Any) -> None:
        super().__init__((*_BEFORE, *_AFTER), "", **options)
        self.known = known
        self.listing: Listing | None = None
        self.order: Sequence[int] = ()
        self.varying: Sequence[str] = ()
        self._runs: dict[int, Run] = {}
        self._number: int | None = None
        self._widths: dict[str, int] = {}

    @property
    def row_count(self) -> int:
        """How many runs are listed."""
        return len(self.order)

    def name_of(self, row: int) -> int:
        """The run's number."""
        return self.order[row]

    def is_marked(self, row: int) -> bool:
        """Whether the run is marked."""
        return self.order[row] in self.known.marked

    def heading(self, column: Column) -> str:
        """With an arrow where the runs are sorted by it."""
        if self.listing is not None and column.key == self.listing.sort:
            return f"{column.title}{'↓' if self.listing.descending else '↑'}"
        return column.title

    @property
    def run_here(self) -> Run | None:
        """The run under the cursor, where it is known."""
        name = self.chosen
        return self._runs.get(name) if isinstance(name, int) else None

    def rows_wanted(self) -> tuple[int, int]:
        """The rows to read: those in view and some around them, in steps, so that scrolling asks seldom."""
        top = round(self.scroll_offset.y)
        height = max(20, self.size.height)
        first = max(0, (top - AROUND) // 50 * 50)
        return first, top + height + AROUND

    def cells(self, row: int) -> Sequence[Text]:
        """What is known of a run; its number alone while it is being read."""
        number = self.order[row]
        run = self._runs.get(number)
        if run is None:
            return [Text(str(number)), Text("…", DIM)]
        values = run.override_values
        return [
            Text(str(number)),
            state_text(run.state),
            *(Text(shortened(values.get(key, ""), WIDEST_OVERRIDE)) for key in self.varying),
            Text(short(json_value(run.return_value))[:12]),
            Text(str(run.attempt) if run.attempt > 1 else ""),
            Text(elapsed(run.started_at, run.duration_s)),
            Text("" if run.host is None else shortened(f"{run.host}/{run.slot}", 16)),
            Text(local_time(run.ended_at)),
            Text(shortened(self.known.why(run), 160), state_style(run.state)),
        ]

    def take(self, message: RunsRead) -> None:
        """Show what was read; the cursor stays with its run."""
        name = self._number if self._number is not None else self.chosen
        is_other = self.listing is None or self.listing.sweep != message.listing.sweep
        self.listing = message.listing
        order_changed = message.order is not self.order
        self.order = message.order
        if is_other or len(self._runs) > KEPT:
            self._runs.clear()
            self._widths.clear() if is_other else None
        if is_other or tuple(message.varying) != tuple(self.varying):
            self.varying = tuple(message.varying)
        self._runs.update((run.number, run) for run in message.runs)
        for run in message.runs:
            for key, value in run.override_values.items():
                self._widths[key] = max(
                    self._widths.get(key, 0), min(WIDEST_OVERRIDE, cell_len(shortened(value, WIDEST_OVERRIDE)))
                )
        self.columns = (
            *_BEFORE,
            *(Column(f"={key}", shortened(key, 24), self._override_width(key)) for key in self.varying),
            *_AFTER,
        )
        self.resized()
        if is_other:
            self._number = None
            self.go_to(0)
        elif order_changed and isinstance(name, int) and self.chosen != name:
            row = _place(self.order, name)
            if row is not None:
                self.go_to(row, tell=False)

    def _override_width(self, key: str) -> int:
        return max(min(24, len(key)) + 1, self._widths.get(key, 4))

    def go_to(self, row: int, *, tell: bool = True) -> None:
        """Put the cursor on a row, and remember the run."""
        super().go_to(row, tell=tell)
        name = self.chosen
        self._number = name if isinstance(name, int) else self._number

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Ask for the rows that came near, if they are not known."""
        super().watch_scroll_y(old_value, new_value)
        self.want_rows()

    def want_rows(self) -> None:
        """Ask for rows if one in view is not known."""
        top = round(self.scroll_offset.y)
        for row in range(max(0, top - 20), min(self.row_count, top + self.size.height + 20)):
            if self.order[row] not in self._runs:
                self.post_message(self.RowsWanted())
                return

    def forget(self) -> None:
        """Nothing is listed any more."""
        self.listing = None
        self.order = ()
        self._runs.clear()
        self.resized()


def _place(order: Sequence[int], number: int) -> int | None:
    try:
        return order.index(number)
    except ValueError:
        return None


class Runs(View):
    """All runs of the chosen sweep."""

    subject = "runs"
    title = "Runs"
    about = (
        "All runs of the sweep. '/' filters, and what does not match is hidden: words (in overrides, reason, node or "
        "state), state:failed, node:node3, batch:0-1, lr=1e-3; '!' before a word inverts it. Marks (space, and v for a "
        "range) are what actions apply to; without marks it is the run under the cursor. The same on the command line: "
        "clusterduck runs --sweep SWEEP --state STATE --sort COLUMN."
    )
    keys = (
        ("Enter", "everything about this run, and its log"),
        ("/", "filter; Esc clears it"),
        ("f", "only trouble: failed, timed out, out of memory, node lost, preempted"),
        ("s S", "sort by the next, the previous column (or click a heading)"),
        ("o", "the other way round"),
        ("Space", "mark this run"),
        ("v", "begin a range here; v again marks it"),
        ("*", "mark all listed runs; again: none"),
        ("y Y", "copy the run's name, its folder, to the clipboard (OSC 52)"),
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", priority=True),
        Binding("f", "trouble", "Trouble"),
        Binding("space", "mark", "Mark"),
        Binding("v", "range", "Range", show=False),
        Binding("asterisk", "mark_all", "Mark all", show=False),
        Binding("s", "sort(1)", "Sort", show=False),
        Binding("S", "sort(-1)", "Sort by previous", show=False),
        Binding("o", "reverse", "Reverse", show=False),
    ]

    def __init__(self, known: Known) -> None:
        super().__init__(known)
        self._filter = ""
        self._sort = "number"
        self._descending = False
        self._anchor: int | None = None
        self._rows = (0, 2 * AROUND)
        self._mistake: str | None = None

    def compose(self) -> ComposeResult:
        """A line above, the filter where it is open, the table."""
        yield Static(id="runs-title", markup=False, classes="title")
        yield Input(id="filter", placeholder="words  state:failed  node:n3  lr=1e-3  !not", compact=True)
        yield RunsTable(self.known, id="runs-table")

    def on_mount(self) -> None:
        """The filter is closed at first."""
        self.part("filter", Input).display = False

    def inner(self) -> Widget:
        """The table."""
        return self.table

    @property
    def table(self) -> RunsTable:
        """The table."""
        return self.part("runs-table", RunsTable)

    @property
    def listing(self) -> Listing | None:
        """What is listed."""
        if self.known.chosen is None:
            return None
        return Listing(self.known.chosen, parse_filter(self._filter), self._sort, self._descending)

    def interest(self) -> Interest:
        """The listing, and the rows around the screen."""
        return Interest(self.subject, self.known.chosen, listing=self.listing, rows=self._rows)

    def receive(self, message: Message) -> None:
        """Show the rows."""
        if isinstance(message, RunsRead) and message.listing == self.listing:
            self.table.take(message)
            self.known.note_look()
            self._show_title()
            self._want_rows()

    def show_known(self) -> None:
        """Marks and elapsed times."""
        if self.known.chosen is None:
            self.table.forget()
        self._show_title()
        self.table.refresh()

    def _show_title(self) -> None:
        sweep = self.known.sweep
        text = Text()
        if sweep is not None:
            text.append(shortened(sweep.id, 40), "bold")
            count = self.table.row_count
            text.append(f"  {count} of {sweep.runs} runs" if self._filter else f"  {sweep.runs} runs")
            for state, number in sweep.counts.items():
                if number:
                    text.append("  ")
                    text.append(f"{LETTERS[state]} {number}", state_style(state))
            if self.known.marked:
                text.append(f"  ● {len(self.known.marked)} marked", "yellow")
            if self._anchor is not None:
                text.append(f"  range from {self._anchor}: v marks it", "yellow")
            if self._filter:
                text.append(f"  / {shortened(self._filter, 60)}", "reverse")
            if self._mistake:
                text.append(f"  {shortened(self._mistake, 100)}", "red")
        self.say("runs-title", text)

    # --- filter and order

    def set_filter(self, text: str) -> None:
        """Show only what matches."""
        try:
            parse_filter(text)
        except ConfigError as error:
            self._mistake = str(error)
            self._show_title()
            return
        self._mistake = None
        self._filter = " ".join(text.split())
        self._list_anew()

    def _list_anew(self) -> None:
        self._rows = self.table.rows_wanted()
        self._show_title()
        self.post_message(self.InterestChanged())

    def action_filter(self) -> None:
        """Open the filter."""
        field = self.part("filter", Input)
        field.display = True
        field.value = self._filter
        self.screen.set_focus(field)

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        if self.part("filter", Input).display:
            self.set_filter(event.value)

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self.part("filter", Input).display = False
        self.screen.set_focus(self.table)

    def went_back(self) -> bool:
        """Esc ends a range, then closes and clears the filter, then takes off the marks."""
        field = self.part("filter", Input)
        if self._anchor is not None:
            self._anchor = None
        elif field.display or self._filter:
            field.display = False
            field.value = ""
            self.set_filter("")
            self.screen.set_focus(self.table)
        elif self.known.marked:
            self.known.marked.clear()
        else:
            return False
        self.show_known()
        return True

    def action_trouble(self) -> None:
        """Only what went wrong, or everything again."""
        words = self._filter.split()
        words = [word for word in words if word != TROUBLE] if TROUBLE in words else [*words, TROUBLE]
        self.part("filter", Input).value = " ".join(words)
        self.set_filter(" ".join(words))

    def action_sort(self, step: int) -> None:
        """Sort by the next column, or the previous one."""
        keys = [column.key for column in self.table.columns]
        here = keys.index(self._sort) if self._sort in keys else 0
        self._sort_by(keys[(here + step) % len(keys)])

    def action_reverse(self) -> None:
        """The other way round."""
        self._descending = not self._descending
        self._list_anew()

    @on(WindowedTable.HeadingClicked)
    def _heading_clicked(self, event: WindowedTable.HeadingClicked) -> None:
        if event.key == self._sort:
            self.action_reverse()
        else:
            self._sort_by(event.key)

    def _sort_by(self, key: str) -> None:
        self._sort = key
        self._list_anew()

    @on(RunsTable.RowsWanted)
    def _want_rows(self) -> None:
        rows = self.table.rows_wanted()
        if rows != self._rows:
            self._rows = rows
            self.post_message(self.InterestChanged())

    # --- marks

    def marked_or_here(self) -> list[int]:
        """The marked runs; without marks the one under the cursor."""
        if self.known.marked:
            return sorted(self.known.marked)
        name = self.table.chosen
        return [name] if isinstance(name, int) else []

    def runs_meant(self) -> list[int]:
        """The marked ones, else the one under the cursor."""
        return self.marked_or_here()

    def action_mark(self) -> None:
        """Mark the run, or take its mark off, and go on to the next."""
        name: Hashable | None = self.table.chosen
        if isinstance(name, int):
            self.known.marked.symmetric_difference_update({name})
            self.table.action_move(1)
            self.show_known()

    def action_range(self) -> None:
        """Begin a range, or mark what lies between its beginning and here."""
        name = self.table.chosen
        if not isinstance(name, int):
            return
        begin = None if self._anchor is None else _place(self.table.order, self._anchor)
        if begin is None:
            self._anchor = name
        else:
            low, high = sorted((begin, self.table.cursor))
            self.known.marked.update(self.table.order[low : high + 1])
            self._anchor = None
        self.show_known()

    def action_mark_all(self) -> None:
        """Mark all that is listed; take off all marks if it is marked."""
        listed = set(in_any_order(self.table.order))
        if listed <= self.known.marked:
            self.known.marked.difference_update(listed)
        else:
            self.known.marked.update(listed)
        self.show_known()

    @on(WindowedTable.Entered)
    def _enter(self, event: WindowedTable.Entered) -> None:
        if isinstance(event.table.chosen, int):
            self.post_message(self.Wants("run", self.known.chosen, event.table.chosen))

    def neighbour(self, number: int, step: int) -> int | None:
        """The run listed before or after another one."""
        row = _place(self.table.order, number)
        if row is None or not 0 <= row + step < len(self.table.order):
            return None
        self.table.go_to(row + step, tell=False)
        return self.table.order[row + step]
