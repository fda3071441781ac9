"""A log as it grows: only what is in view is known, read by a thread of its own that opens the file anew each time."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from rich.cells import chop_cells
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from clusterduck.wording import size as size_text
from clusterduck_tui import logfile
from clusterduck_tui.logfile import Block, Row
from clusterduck_tui.theme import shortened

#: Rows read at once, and kept.
ROWS = 300
KEPT = 3000

#: Seconds between two looks at a file that is followed.
POLL_S = 2.0


class LogRead(Message):
    """Rows that were asked for; ``place`` says where they belong, ``generation`` to which file and position."""

    def __init__(self, generation: int, place: str, block: Block | None, trouble: str | None = None) -> None:
        super().__init__()
        self.generation = generation
        self.place = place
        self.block = block
        self.trouble = trouble


class _Reader(threading.Thread):
    """Does one thing after the other; what is out of date by its turn is left out."""

    def __init__(self, post: Callable[[Message], object]) -> None:
        super().__init__(name="clusterduck-log", daemon=True)
        self._post = post
        self._wanted: queue.SimpleQueue[tuple[int, str, Callable[[], Block | None]] | None] = queue.SimpleQueue()
        self.generation = 0
        self.is_stopped = False

    def want(self, place: str, read: Callable[[], Block | None]) -> None:
        """Read something, and post it."""
        self._wanted.put((self.generation, place, read))

    def stop(self) -> None:
        """End after what is being done."""
        self.is_stopped = True
        self.generation += 1
        self._wanted.put(None)

    def run(self) -> None:
        """Until stopped."""
        while (job := self._wanted.get()) is not None:
            generation, place, read = job
            if generation != self.generation:
                continue
            try:
                message = LogRead(generation, place, read())
            except OSError as error:
                message = LogRead(generation, place, None, f"{error.filename}: {error.strerror}")
            if not self.is_stopped:
                self._post(message)


class LogView(Widget, can_focus=True):
    """Shows a file; follows its end until one scrolls up, like ``less +F``."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "lines(-1)", "Up", show=False),
        Binding("down,j", "lines(1)", "Down", show=False),
        Binding("left,h", "sideways(-8)", "Left", show=False),
        Binding("right,l", "sideways(8)", "Right", show=False),
        Binding("pageup,ctrl+b", "pages(-1.0)", "Page up", show=False),
        Binding("pagedown,ctrl+f", "pages(1.0)", "Page down", show=False),
        Binding("ctrl+u", "pages(-0.5)", "Half a page up", show=False),
        Binding("ctrl+d", "pages(0.5)", "Half a page down", show=False),
        Binding("home,g", "top", "Top", show=False),
        Binding("end,G,F", "follow", "Follow", key_display="G"),
        Binding("w", "wrap", "Wrap", show=False),
        Binding("n", "again(False)", "Next match", show=False),
        Binding("N", "again(True)", "Previous match", show=False),
        Binding("e", "error", "First error", show=False),
    ]
    DEFAULT_CSS = "LogView { height: 1fr; } LogView:focus { background-tint: $foreground 4%; }"

    def __init__(self, *, follow: bool = True, nothing: str = "no log yet", **options: Any) -> None:
        super().__init__(**options)
        self.path: Path | None = None
        self.following = follow
        self.wrap = False
        self._follows = follow
        self._nothing = nothing
        self._rows: list[Row] = []
        self._file_size: int | None = None
        self._top = 0
        self._left = 0
        self._pending: set[str] = set()
        self._pattern: re.Pattern[bytes] | None = None
        self._found: int | None = None
        self._note = ""
        self._reader = _Reader(self.post_message)
        self._lines: list[tuple[str, bool]] | None = None

    def on_mount(self) -> None:
        """Begin to read."""
        self._reader.start()
        self.set_interval(POLL_S, self._poll)

    def on_unmount(self) -> None:
        """Read no more."""
        self._reader.stop()

    def show_file(self, path: Path | None) -> None:
        """Show this file; the same one may have moved, and is then followed on."""
        if path != self.path:
            self.path = path
            self._begin(self._follows)

    def _begin(self, follow: bool) -> None:
        self._reader.generation += 1
        self._pending.clear()
        self._rows, self._top, self._left, self._file_size, self._found, self._note = [], 0, 0, None, None, ""
        self.following = follow
        self._want_first()
        self._repaint()

    def _want_first(self) -> None:
        """What is shown before anything is there: the file's end if it is followed, else its beginning."""
        path = self.path
        if path is None or self._pending:
            return
        if self.following:
            self._want("end", lambda: logfile.read_before(path, None, ROWS))
        else:
            self._want("start", lambda: logfile.read_from(path, 0, ROWS))

    def _want(self, place: str, read: Callable[[], Block | None]) -> None:
        if place not in self._pending:
            self._pending.add(place)
            self._reader.want(place, read)

    def _poll(self) -> None:
        if self.path is None or not self.is_on_screen:
            return
        if not self._rows:
            self._want_first()
        else:
            self._want_after()

    @property
    def is_on_screen(self) -> bool:
        """Whether anybody can see it."""
        return all(node.display for node in self.ancestors_with_self if isinstance(node, Widget))

    def _want_after(self) -> None:
        path, last = self.path, self._rows[-1]
        offset = last.end if last.is_whole else last.start
        if path is not None:
            self._want("after", lambda: logfile.read_from(path, offset, ROWS))

    def _want_before(self) -> None:
        path, first = self.path, self._rows[0].start
        if path is not None and first > 0:
            self._want("before", lambda: logfile.read_before(path, first, ROWS))

    def on_log_read(self, message: LogRead) -> None:
        """Put what was read where it belongs."""
        message.stop()
        if message.generation != self._reader.generation:
            return
        self._pending.discard(message.place)
        block = message.block
        if message.trouble is not None:
            self._note = message.trouble
        elif message.place == "found":
            self._show_found(block)
        elif block is not None:
            self._take(message.place, block)
        self._repaint()

    def _take(self, place: str, block: Block) -> None:
        if block.size is None or (self._file_size is not None and block.size < self._file_size):
            if self._rows:  # it is gone, or was begun anew
                self._begin(self.following)
            self._file_size = block.size
            return
        self._file_size = block.size
        if place in ("start", "end"):
            self._rows = list(block.rows)
            self._top = len(self._rows)
        elif place == "before":
            self._rows[:0] = block.rows
            self._top += len(block.rows)
            del self._rows[KEPT:]
        elif block.rows:
            if not self._rows[-1].is_whole:
                self._rows.pop()
            self._rows += block.rows
            if self.following and self._file_size - self._rows[-1].end > logfile.BLOCK:
                self._begin(True)
                return
            surplus = len(self._rows) - KEPT
            if surplus > 0:
                del self._rows[:surplus]
                self._top -= surplus
            if self.following and self._rows[-1].end < self._file_size:
                self._want_after()
        if place == "start":
            self._top = 0
        self._keep_in_bounds()

    def _show_found(self, block: Block | None) -> None:
        if block is None or not block.rows:
            self._note = "not found"
            return
        self._note = ""
        self.following = False
        self._file_size = block.size
        self._rows, self._top = list(block.rows), 0
        self._found = block.rows[0].start
        self._want_before()

    # --- moving

    @property
    def _height(self) -> int:
        return max(1, self.size.height - 1)

    def _keep_in_bounds(self) -> None:
        self._top = max(0, min(self._top, len(self._rows) - 1))
        if self.following:
            self._top = self._top_at_end()

    def _top_at_end(self) -> int:
        """The first row of which all that follows fits into the view."""
        room, top = self._height, len(self._rows)
        while top > 0:
            room -= len(self._pieces(self._rows[top - 1].text))
            if room < 0:
                break
            top -= 1
        return top

    def action_lines(self, count: int) -> None:
        """Some rows down, or up."""
        if count < 0:
            self.following = False
        last = self._top_at_end()
        self._top = max(0, min(self._top + count, last))
        if self._rows:
            if self._top < ROWS // 3:
                self._want_before()
            if self._top + 2 * self._height > len(self._rows) and self._file_size is not None:
                if self._rows[-1].end < self._file_size:
                    self._want_after()
                elif count > 0 and self._top == last:
                    self.following = self._follows
        self._repaint()

    def action_pages(self, pages: float) -> None:
        """Some pages down, or up."""
        self.action_lines(int(self._height * pages))

    def action_sideways(self, columns: int) -> None:
        """Scroll to the side, where lines are not wrapped."""
        self._left = max(0, self._left + columns)
        self._repaint()

    def action_top(self) -> None:
        """To the beginning of the file."""
        self._begin(False)

    def action_follow(self) -> None:
        """To the end, and stay there."""
        if self._rows and self._file_size is not None and self._rows[-1].end >= self._file_size:
            self.following = True
            self._keep_in_bounds()
            self._repaint()
            self._poll()
        else:
            self._begin(True)

    def action_wrap(self) -> None:
        """Wrap long lines, or cut them off."""
        self.wrap = not self.wrap
        self._left = 0
        self._keep_in_bounds()
        self._repaint()

    # --- searching

    def search(self, text: str) -> None:
        """Find the next row with this text from the top of the view on."""
        self._pattern = re.compile(re.escape(text.encode("utf-8", "replace")), re.IGNORECASE) if text else None
        self._found = None
        self.action_again(False)

    def action_again(self, backward: bool) -> None:
        """The next row with what was searched, or the one before."""
        if self._pattern is not None and self._rows:
            here = self._rows[max(0, min(self._top, len(self._rows) - 1))]
            offset = here.start
            if not backward and self._found == here.start:
                offset = here.end
            self._find(self._pattern, offset, backward)

    def action_error(self) -> None:
        """The first row that looks like an error."""
        self._find(logfile.ERROR, 0, False)

    def _find(self, pattern: re.Pattern[bytes], offset: int, backward: bool) -> None:
        path, reader = self.path, self._reader
        if path is None:
            return
        reader.generation += 1
        self._pending.clear()
        generation = reader.generation

        def is_stale() -> bool:
            return reader.generation != generation

        def read() -> Block | None:
            at = logfile.search(path, pattern, offset, is_stale, backward=backward)
            return None if at is None else logfile.read_from(path, at, ROWS)

        self._note = "searching…"
        self._want("found", read)
        self._repaint()

    # --- painting

    def _pieces(self, text: str) -> list[str]:
        width = max(1, self.size.width)
        return (chop_cells(text, width) or [""]) if self.wrap else [text]

    def _repaint(self) -> None:
        self._lines = None
        self.refresh()

    def on_resize(self, event: events.Resize) -> None:
        """The end stays at the end."""
        self._keep_in_bounds()
        self._repaint()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel."""
        event.stop()
        self.action_lines(-3)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel."""
        event.stop()
        self.action_lines(3)

    def _layout(self) -> list[tuple[str, bool]]:
        """The lines in view, each with whether it belongs to the row that was found."""
        lines: list[tuple[str, bool]] = []
        for row in self._rows[self._top :]:
            lines += [(piece, row.start == self._found) for piece in self._pieces(row.text)]
            if len(lines) >= self._height:
                break
        return lines[: self._height]

    def render_line(self, y: int) -> Strip:
        """A line of the log; the last one says where in the file this is."""
        width = self.size.width
        base = self.rich_style
        if y == self.size.height - 1:
            return Strip([Segment(self._status(width), Style(dim=True))]).crop_extend(0, width, base).apply_style(base)
        if self._lines is None:
            self._lines = self._layout()
        if y >= len(self._lines):
            text = self._waiting() if not self._rows and y == 0 else ""
            return Strip([Segment(text, Style(dim=True))]).crop_extend(0, width, base).apply_style(base)
        text, is_found = self._lines[y]
        style = Style(reverse=True) if is_found else Style()
        return Strip([Segment(text, style)]).crop_extend(self._left, self._left + width, base).apply_style(base)

    def _waiting(self) -> str:
        if self.path is None:
            return self._nothing
        if self._pending and self._file_size is None:
            return "reading…"
        return "it is empty" if self._file_size == 0 else f"{self._nothing}: {shortened(str(self.path), 200)}"

    def _status(self, width: int) -> str:
        parts = []
        if self.path is not None and self._file_size is not None:
            at = self._rows[min(self._top, len(self._rows) - 1)].start if self._rows else 0
            end = self._rows[min(self._top + self._height, len(self._rows)) - 1].end if self._rows else 0
            place = (
                "top" if at == 0 else "end" if end >= self._file_size else f"{at * 100 // max(1, self._file_size)} %"
            )
            parts = [size_text(self._file_size), "top-end" if at == 0 and end >= self._file_size else place]
            if self.following:
                parts.append("following")
        if self.wrap:
            parts.append("wrapped")
        if self._note:
            parts.append(self._note)
        room = width - len("  ".join(parts)) - 4
        name = str(self.path or "")
        name = name if len(name) <= room else f"…{name[-max(0, room - 1) :]}" if room > 8 else ""
        return "  ".join([shortened(name, max(0, room)), *parts]).strip()
