"""Slot occupancy over time as a Gantt chart: rows are slots, bars are runs, and idle gaps stand out.

The attempts of the slots in view are known, and of those around, for the stretch of time in view and a quarter as much
on each side; what comes near is asked for. Columns are counted from the beginning of the sweep's first agent, so that
what is in one stays in it while time goes on: a column that holds many attempts of a slot knows only the one that it
shows, and of many such slots some columns are shown as one. A row is kept as it was painted until something in it can
look otherwise.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from clusterduck.ledger.history import Lane, column_s
from clusterduck_tui.messages import ALL_TIME, LanesRead, Span
from clusterduck_tui.theme import BOLD, COLOURS, DIM, LETTERS, shortened

#: Columns of a row's name.
NAME = 15

#: A picture shows at least so many seconds.
SHORTEST_S = 5.0

#: Steps of the axis, in seconds.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)

#: What stands for a slot that holds no run, and for what is not known yet.
IDLE = "░"
_UNREAD = "…"

#: Rows known beyond the screen, up to so many in each direction: each costs as much to read as one on the screen.
AROUND = 8

_STYLES = {state: Style(color=colour, reverse=True) for state, colour in COLOURS.items()}
_UNKNOWN = Style(reverse=True)

#: What a cell shows rather than the others that share it.
_TROUBLE = frozenset(COLOURS) - {"COMPLETED", "RUNNING", "PENDING"}


class TimelineChart(ScrollView, can_focus=True):
    """The chart: scrolls down through slots, pans and zooms through time."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "pan(-0.2)", "Earlier", show=False),
        Binding("right,l", "pan(0.2)", "Later", show=False),
        Binding("up,k", "rows(-1)", "Up", show=False),
        Binding("down,j", "rows(1)", "Down", show=False),
        Binding("pageup,ctrl+b", "rows_by_page(-1.0)", show=False),
        Binding("pagedown,ctrl+f", "rows_by_page(1.0)", show=False),
        Binding("ctrl+u", "rows_by_page(-0.5)", show=False),
        Binding("ctrl+d", "rows_by_page(0.5)", show=False),
        Binding("home,g", "edge(-1)", "Beginning", show=False),
        Binding("end,G", "edge(1)", "Now", show=False),
        Binding("plus,equals_sign", "zoom(0.5)", "Zoom in"),
        Binding("minus", "zoom(2.0)", "Zoom out"),
        Binding("0", "fit", "All"),
    ]
    DEFAULT_CSS = "TimelineChart { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; }"

    class Looked(Message):
        """Another stretch of time is in view."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lanes: Sequence[Lane] = ()
        self._window: tuple[float, float] | None = None  # None: all of it
        self._live = True
        self._first, self._last, self._is_open = 0.0, SHORTEST_S, False
        self._rows, self._span = (0, 0), ALL_TIME  # what is known
        self._strips: dict[int, Strip] = {}
        self._painted_at = 0.0

    @property
    def extent(self) -> tuple[float, float]:
        """From the first agent's start to the last one's end, or now."""
        end = max(self._last, time.time()) if self._is_open else self._last
        return self._first, max(end, self._first + SHORTEST_S)

    @property
    def window(self) -> tuple[float, float]:
        """The stretch of time in view."""
        first, column, at, columns = self._grid()
        return first + at * column, first + (at + columns) * column

    def _grid(self) -> tuple[float, float, int, int]:
        """Where columns are counted from, seconds to a column, and the number of the first one in view and how many."""
        first, last = self.extent
        columns = max(1, self.scrollable_content_region.width - NAME)
        if self._window is None:
            return first, column_s(last - first, columns), 0, columns
        low, high = self._window
        column = (high - low) / columns
        at = math.ceil((last - first) / column) - columns if self._live else round((low - first) / column)
        return first, column, at, columns

    @property
    def is_open(self) -> bool:
        """Whether time goes on in it."""
        return self._is_open

    def show(self, message: LanesRead | None) -> None:
        """Show these slots; None: nothing."""
        self.lanes = () if message is None else message.lanes
        if message is not None:
            self._rows, self._span = message.rows, message.span
        self._first = min((lane.start for lane in self.lanes), default=0.0)
        self._last = max((lane.end for lane in self.lanes if lane.end is not None), default=self._first)
        self._is_open = any(lane.end is None for lane in self.lanes)
        self.virtual_size = Size(self.size.width, len(self.lanes) + 1)
        self._paint_anew()

    def rows_wanted(self) -> tuple[int, int]:
        """The rows to read: those in view and some around them, in steps, so that scrolling asks seldom."""
        top = round(self.scroll_offset.y) // AROUND * AROUND
        return max(0, top - AROUND), top + (self.size.height // AROUND + 2) * AROUND

    def span_wanted(self) -> tuple[Span, int]:
        """The time to read: what is in view and a quarter as much on each side, in steps, so that panning asks seldom.

        And how many columns it has.
        """
        first, column, at, columns = self._grid()
        if self._window is None:
            return ALL_TIME, columns
        step = math.ceil(columns / 4)
        begin, end = (at // step - 1) * step, ((at + columns) // step + 2) * step
        return Span(first + begin * column, first + end * column), end - begin

    def pass_time(self) -> None:
        """The time has gone on: paint anew if that can be seen."""
        if self._is_open and time.time() - self._painted_at >= self._grid()[1] / 2:
            self._paint_anew()

    def _paint_anew(self) -> None:
        """Paint all rows in view, and have those shown that look otherwise."""
        before, self._strips = self._strips, {}
        self._painted_at = time.time()
        size = self.size
        changed = [y for y in range(size.height) if self._line(y) != before.get(self._row_at(y))]
        if changed:
            self.refresh(*(Region(0, y, size.width, 1) for y in changed))

    def notify_style_update(self) -> None:
        """The theme is another one."""
        super().notify_style_update()
        self._strips.clear()

    def on_resize(self) -> None:
        """The same time in another width."""
        self._paint_anew()
        self.post_message(self.Looked())

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Other rows have come near."""
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Looked())

    def action_rows(self, count: int) -> None:
        """Some rows down, or up."""
        self.scroll_to(y=self.scroll_offset.y + count, animate=False, immediate=True)

    def action_rows_by_page(self, pages: float) -> None:
        """Some pages down, or up."""
        self.action_rows(int(self.size.height * pages))

    def action_pan(self, share: float) -> None:
        """Later, or earlier."""
        low, high = self.window
        first, last = self.extent
        step = (high - low) * share
        low = max(first - (high - low) * 0.1, min(low + step, last - (high - low) * 0.5))
        self._set_window(low, low + (self.window[1] - self.window[0]))

    def action_edge(self, way: int) -> None:
        """To the beginning, or to the end and on with it."""
        low, high = self.window
        first, last = self.extent
        length = high - low
        self._set_window(*((first, first + length) if way < 0 else (last - length, last)))

    def action_zoom(self, factor: float) -> None:
        """Look closer, or from farther away; the end stays in view while it grows."""
        low, high = self.window
        first, last = self.extent
        length = max(SHORTEST_S, min((high - low) * factor, last - first))
        if length >= last - first:
            self.action_fit()
            return
        if self._window is None or self._live:
            self._set_window(last - length, last)
        else:
            middle = (low + high) / 2
            self._set_window(middle - length / 2, middle + length / 2)

    def action_fit(self) -> None:
        """All of it."""
        self._window, self._live = None, True
        self._looked()

    def _set_window(self, low: float, high: float) -> None:
        self._window = (low, high)
        self._live = high >= self.extent[1] - (high - low) * 0.01
        self._looked()

    def _looked(self) -> None:
        self._paint_anew()
        self.post_message(self.Looked())

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """With control: zoom in."""
        if event.ctrl:
            event.stop()
            self.action_zoom(0.5)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """With control: zoom out."""
        if event.ctrl:
            event.stop()
            self.action_zoom(2.0)

    # --- painting

    def render_line(self, y: int) -> Strip:
        """The axis, or a slot's row."""
        return self._line(y)

    def _row_at(self, y: int) -> int:
        """The row on a line of the widget; -1 is the axis."""
        return -1 if y == 0 else y - 1 + round(self.scroll_offset.y)

    def _line(self, y: int) -> Strip:
        row = self._row_at(y)
        if row not in self._strips:
            width = self.scrollable_content_region.width
            base = self.rich_style
            columns = max(1, width - NAME)
            segments = self._axis(columns) if row < 0 else self._row(row, columns) if row < len(self.lanes) else []
            self._strips[row] = Strip(segments).crop_extend(0, width, base).apply_style(base)
        return self._strips[row]

    def _axis(self, columns: int) -> list[Segment]:
        low, high = self.window
        per_column = (high - low) / columns
        is_long = high - low > 86400
        mark = "%d %b %H:%M" if is_long else "%H:%M:%S" if high - low < 1800 else "%H:%M"
        room = 15 if is_long else 10
        step = next((step for step in _STEPS if step / per_column >= room), _STEPS[-1])
        offset = datetime.fromtimestamp(low).astimezone().utcoffset()
        shift = offset.total_seconds() if offset is not None else 0.0
        cells = [" "] * columns
        tick = ((low + shift) // step + 1) * step - shift
        while tick < high:
            at = int((tick - low) / per_column)
            label = f"|{datetime.fromtimestamp(tick).strftime(mark)}"
            if at + len(label) <= columns:
                cells[at : at + len(label)] = label
            tick += step
        return [Segment(" " * NAME), Segment("".join(cells), DIM)]

    def _row(self, row: int, columns: int) -> list[Segment]:
        lane = self.lanes[row]
        name = f"{shortened(lane.host, NAME - 5)}/{lane.slot}"
        segments = [Segment(f"{name:<{NAME}}"[:NAME], BOLD if lane.slot == 0 else Style())]
        if not self._rows[0] <= row < self._rows[1]:
            return [*segments, Segment(_UNREAD, DIM)]
        cells = lane_cells(lane, self.window, columns, self._span)
        at = 0
        while at < columns:
            style = cells[at][1]
            end = at
            while end < columns and cells[end][1] is style:
                end += 1
            segments.append(Segment("".join(cell for cell, _ in cells[at:end]), style))
            at = end
        return segments


_start_of = itemgetter(3)  # of a bar
_BLANK = (" ", Style())
_IDLE_CELL = (IDLE, Style(color="yellow"))


def lane_cells(lane: Lane, window: tuple[float, float], columns: int, known: Span) -> list[tuple[str, Style]]:
    """A slot's row as cells: a run's letter and number, then its bar; where several share a cell, trouble is shown.

    A bar that stands for the attempts of several columns is made of its letter alone.

    What lies outside of the time that is known stays blank.
    """
    low, high = window
    now = time.time()
    per_column = (high - low) / columns
    cells = [_BLANK] * columns

    def column(at: float) -> int:
        return int((at - low) / per_column)

    end = now if lane.end is None else lane.end
    there_from, there_to = max(lane.start, known.start or low), end if known.end is None else min(end, known.end)
    there = max(0, column(there_from)), min(columns, column(there_to) + 1)
    cells[there[0] : there[1]] = [_IDLE_CELL] * max(0, there[1] - there[0])
    first = max(0, bisect_right(lane.bars, low, key=_start_of) - 1)
    is_blurred = lane.piece > 1.5 * per_column
    marked: set[int] = set()
    for run, _, state, bar_start, ended in lane.bars[first:]:
        if bar_start >= high:
            break
        bar_end = end if ended is None else ended
        if bar_end < low:
            continue
        from_column, to_column = max(0, column(bar_start)), min(columns - 1, column(bar_end))
        is_trouble = state in _TROUBLE
        while not is_trouble and from_column in marked:  # its number does not go to a letter of another run
            from_column += 1
        if (
            to_column > from_column
            and (column(bar_end) > column(bar_start))
            and (bar_end - low) % per_column < per_column / 2
        ):
            to_column -= bar_end < high
        style = _STYLES.get(state, _UNKNOWN)
        letter, room = LETTERS.get(state, "?"), to_column - from_column + 1
        text = f"{letter}{run}" if len(f"{letter}{run}") < room else letter
        if is_blurred and bar_end - bar_start < 2 * lane.piece:
            text = letter * room
        for index in range(from_column, to_column + 1):
            if index in marked and not is_trouble:
                continue
            offset = index - from_column
            cells[index] = (text[offset] if offset < len(text) else "─", style)
            if is_trouble:
                marked.add(index)
    return cells
