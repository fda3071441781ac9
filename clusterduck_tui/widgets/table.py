"""A table that renders only the rows in view, however many there are: the base of every list in the dashboard.

Subclasses say how many rows there are, what stands in one, and what names it. The cursor belongs to what a row names,
not to the row, so it stays with its run when rows come, go and change places.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip


@dataclass(frozen=True)
class Column:
    """A column: its name to sort by (``key``), its heading and width, and whether it is right-aligned."""

    key: str
    title: str
    width: int
    right: bool = False


class WindowedTable(ScrollView, can_focus=True):
    """Rows under headings, with a cursor.

    Attributes:
        columns: what stands in each row.
        empty: what stands there if there is no row.
        cursor: the row that the cursor is on.
        moves: how often it was told that somebody moved the cursor.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("left,h", "sideways(-8)", "Left", show=False),
        Binding("right,l", "sideways(8)", "Right", show=False),
        Binding("pageup,ctrl+b", "page(-1.0)", "Page up", show=False),
        Binding("pagedown,ctrl+f", "page(1.0)", "Page down", show=False),
        Binding("ctrl+u", "page(-0.5)", "Half a page up", show=False),
        Binding("ctrl+d", "page(0.5)", "Half a page down", show=False),
        Binding("home,g", "first", "First", show=False),
        Binding("end,G", "last", "Last", show=False),
        Binding("enter", "enter", "Open", show=False),
    ]

    class Moved(Message):
        """The cursor is on another row now."""

        def __init__(self, table: WindowedTable) -> None:
            super().__init__()
            self.table = table

        @property
        def control(self) -> WindowedTable:
            """Where it happened."""
            return self.table

    class Entered(Moved):
        """Enter was pressed, or the row under the cursor clicked."""

    class HeadingClicked(Message):
        """A column's heading was clicked."""

        def __init__(self, table: WindowedTable, key: str) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> WindowedTable:
            """Where it happened."""
            return self.table

    DEFAULT_CSS = "WindowedTable { height: 1fr; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 1; }"

    def __init__(self, columns: Sequence[Column] = (), empty: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.columns: tuple[Column, ...] = tuple(columns)
        self.empty = empty
        self.cursor = 0
        self.moves = 0

    # --- what subclasses say

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        raise NotImplementedError

    def cells(self, row: int) -> Sequence[Text]:
        """What stands in a row, a text for each column."""
        raise NotImplementedError

    def name_of(self, row: int) -> Hashable:
        """What the row is about."""
        raise NotImplementedError

    def is_marked(self, row: int) -> bool:
        """Whether the row carries a mark."""
        return False

    def heading(self, column: Column) -> str:
        """A column's heading, e.g. with an arrow where rows are sorted by it."""
        return column.title

    # --- the cursor

    @property
    def chosen(self) -> Hashable | None:
        """What the row under the cursor is about; None if there is none."""
        return self.name_of(self.cursor) if 0 <= self.cursor < self.row_count else None

    def set_columns(self, columns: Sequence[Column]) -> None:
        """Take other columns."""
        if tuple(columns) != self.columns:
            self.columns = tuple(columns)
            self.resized()

    def resized(self) -> None:
        """Take note that the number of rows or the columns changed."""
        width = sum(column.width + 2 for column in self.columns)
        self.virtual_size = Size(width, self.row_count + 1)
        self.cursor = max(0, min(self.cursor, self.row_count - 1))
        self.refresh()

    def go_to(self, row: int, *, tell: bool = True) -> None:
        """Put the cursor on a row, and scroll there."""
        row = max(0, min(row, self.row_count - 1))
        moved = row != self.cursor
        before, self.cursor = self.cursor, row
        self._show_cursor()
        if moved:
            self._refresh_row(before)
            self._refresh_row(row)
            if tell:
                self.moves += 1
                self.post_message(self.Moved(self))

    def _show_cursor(self) -> None:
        height = max(1, self.scrollable_content_region.height - 1)
        top = round(self.scroll_offset.y)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, immediate=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, immediate=True)

    def _refresh_row(self, row: int) -> None:
        self.refresh(Region(0, row + 1 - round(self.scroll_offset.y), self.size.width, 1))

    def action_move(self, rows: int) -> None:
        """Some rows down, or up."""
        self.go_to(self.cursor + rows)

    def action_page(self, pages: float) -> None:
        """Some pages down, or up."""
        height = max(1, self.scrollable_content_region.height - 1)
        self.go_to(self.cursor + (int(height * pages) or (1 if pages > 0 else -1)))

    def action_sideways(self, columns: int) -> None:
        """Scroll to the side."""
        self.scroll_to(x=self.scroll_offset.x + columns, animate=False, immediate=True)

    def action_first(self) -> None:
        """To the first row."""
        self.go_to(0)

    def action_last(self) -> None:
        """To the last row."""
        self.go_to(self.row_count - 1)

    def action_enter(self) -> None:
        """Tell that the row was entered."""
        if self.row_count:
            self.post_message(self.Entered(self))

    def on_resize(self, event: events.Resize) -> None:
        """Keep the cursor in view."""
        self._show_cursor()

    def on_click(self, event: events.Click) -> None:
        """A click moves the cursor; one on the cursor's row enters it; one on a heading tells so."""
        event.stop()
        x, y = event.x + round(self.scroll_offset.x), event.y
        if y == 0:
            for column in self.columns:
                if x < column.width + 2:
                    self.post_message(self.HeadingClicked(self, column.key))
                    return
                x -= column.width + 2
            return
        row = y - 1 + round(self.scroll_offset.y)
        if row >= self.row_count:
            return
        if row == self.cursor:
            self.action_enter()
        else:
            self.go_to(row)

    # --- painting

    def render_line(self, y: int) -> Strip:
        """A line of the widget: the headings stay at the top."""
        width = self.scrollable_content_region.width
        left = round(self.scroll_offset.x)
        base = self.rich_style
        if y == 0:
            strip = self._strip(
                [Text(self.heading(column)) for column in self.columns], Style(bold=True, underline=True)
            )
            return strip.crop_extend(left, left + width, base).apply_style(base)
        row = y - 1 + round(self.scroll_offset.y)
        if row >= self.row_count:
            text = self.empty if self.row_count == 0 and y == 1 else ""
            return Strip([Segment(text)]).crop_extend(0, width, base).apply_style(base)
        style = Style()
        if row == self.cursor:
            cursor = self.get_component_rich_style("table--cursor" if self.has_focus else "table--cursor-away")
            style = cursor + Style(bold=True)
        return (
            self._strip(self.cells(row), style, self.is_marked(row))
            .crop_extend(left, left + width, base + style)
            .apply_style(base)
        )

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--cursor", "table--cursor-away"}

    def _strip(self, cells: Sequence[Text], style: Style, marked: bool = False) -> Strip:
        segments: list[Segment] = []
        for column, cell in zip(self.columns, cells, strict=False):
            segments += _fitted(cell, column.width, column.right, self.app.console, style)
            segments.append(Segment("  ", style))
        if marked and segments:
            segments.insert(0, Segment("●", style + Style(color="yellow", bold=True)))
            first = segments[1]
            segments[1] = Segment(first.text[1:] if first.text[:1] == " " else first.text, first.style)
        return Strip(segments)


def _fitted(cell: Text, width: int, right: bool, console: Any, style: Style) -> list[Segment]:
    """A cell's text in exactly ``width`` columns, with the row's style above its own background."""
    plain = cell.plain
    length = cell_len(plain)
    if length > width:
        cell = cell.copy()
        cell.truncate(width, overflow="ellipsis")
        plain, length = cell.plain, cell_len(cell.plain)
    pad = Segment(" " * (width - length), style)
    if not cell.spans:
        own = cell.style if isinstance(cell.style, Style) else Style.parse(str(cell.style or "none"))
        body = [Segment(set_cell_size(plain, length), own + style if style.bgcolor else style + own)]
    else:
        body = [
            Segment(
                segment.text,
                (segment.style or Style()) + style if style.bgcolor else style + (segment.style or Style()),
            )
            for segment in cell.render(console)
        ]
    return [pad, *body] if right else [*body, pad]


class ListTable(WindowedTable):
    """A table of rows that are all at hand: pairs of what a row is about and its cells."""

    def __init__(self, columns: Sequence[Column] = (), empty: str = "", **options: Any) -> None:
        super().__init__(columns, empty, **options)
        self._rows: list[tuple[Hashable, Sequence[Text]]] = []

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def cells(self, row: int) -> Sequence[Text]:
        """What stands in a row."""
        return self._rows[row][1]

    def name_of(self, row: int) -> Hashable:
        """What the row is about."""
        return self._rows[row][0]

    def show(self, columns: Sequence[Column], rows: Sequence[tuple[Hashable, Sequence[Text]]]) -> None:
        """Show these rows; the cursor stays on what it was on, if that is still there. Columns take what they need."""
        chosen = self.chosen
        fitted = []
        for index, column in enumerate(columns):
            widest = max((cell_len(cells[index].plain) for _, cells in rows), default=0)
            width = max(cell_len(column.title), min(widest, column.width))
            fitted.append(Column(column.key, column.title, width, column.right))
        if tuple(fitted) == self.columns and list(rows) == self._rows:
            return
        self._rows = list(rows)
        self.columns = tuple(fitted)
        if chosen is not None and self.chosen != chosen:
            self.cursor = next((i for i, (name, _) in enumerate(self._rows) if name == chosen), self.cursor)
        self.resized()

    def choose(self, name: Hashable) -> bool:
        """Put the cursor on the row that is about ``name``; tells whether there is one."""
        for row, (other, _) in enumerate(self._rows):
            if other == name:
                self.go_to(row, tell=False)
                return True
        return False
