"""The overview: all sweeps with their runs by state, and the jobs of the chosen one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Static

from clusterduck.ledger.queries import Batch, Sweep
from clusterduck.wording import duration, iso, local_time
from clusterduck_tui.known import LIVE, Known, failures
from clusterduck_tui.theme import ALERT, DIM, shortened, state_text, states_bar
from clusterduck_tui.widgets.table import Column, ListTable, WindowedTable
from clusterduck_tui.widgets.view import View

_JOBS = (
    Column("batch", "batch", 8),
    Column("job", "job", 12),
    Column("state", "state", 15),
    Column("left", "left", 10, right=True),
    Column("starts", "starts", 11),
    Column("nodes", "nodes", 5, right=True),
    Column("host", "host", 14),
    Column("runs", "runs", 13),
    Column("reason", "reason", 120),
)


class Overview(View):
    """All sweeps, the newest first, and the jobs of the one under the cursor."""

    subject = "overview"
    title = "Overview"
    about = (
        "Your sweeps, the newest first. The bar shows the runs by state (letters below). 'left' is what the sweep "
        "will still take at its present speed ('-' where nobody knows), '!' counts failures since you last looked at "
        "its runs. Below: the jobs of the sweep under the cursor as Slurm sees them. The same on the command line: "
        "clusterduck status SWEEP."
    )
    keys = (("Enter", "the runs of this sweep"), ("b", "to the jobs below, and back"))

    BINDINGS: ClassVar[list[BindingType]] = [Binding("b", "other", "Jobs/sweeps")]

    def __init__(self, known: Known, **options: Any) -> None:
        super().__init__(known, **options)
        self._moves = 0  # of the cursor, that the view has heard of
        self._asked: str | None = None  # the choice that was asked for, until it is made

    def compose(self) -> ComposeResult:
        """The two tables."""
        yield ListTable(id="sweeps", empty="")
        yield Static(id="jobs-title", markup=False, classes="title")
        yield ListTable(id="jobs", empty="no jobs")

    def inner(self) -> Widget:
        """The list of sweeps."""
        return self.part("sweeps", ListTable)

    def show_known(self) -> None:
        """Show the sweeps and jobs as they are now."""
        width = max(60, self.size.width)
        table = self.part("sweeps", ListTable)
        columns, rows = _sweep_rows(self.known, width)
        table.show(columns, rows)
        if self._asked == self.known.chosen:
            self._asked = None
        if table.moves == self._moves and self._asked is None:  # else somebody's choice is on its way
            table.choose(self.known.chosen)
        batches = self.known.batches_of(self.known.chosen)
        alive = sum(batch.state in LIVE for batch in batches)
        sweep = self.known.sweep
        title = Text()
        if sweep is not None:
            title.append(f"Jobs of {shortened(sweep.id, 40)}: ", "bold")
            title.append(f"{alive} of {len(batches)} alive  ")
            title.append(shortened(" ".join(sweep.command), width), DIM)
        self.say("jobs-title", title)
        self.part("jobs", ListTable).show(_JOBS, [(batch.id, _job_row(self.known, batch)) for batch in batches])

    @on(WindowedTable.Moved, "#sweeps")
    def _choose(self, event: WindowedTable.Moved) -> None:
        self._moves += 1
        name = event.table.chosen
        if isinstance(name, str):  # also the chosen one: another choice may be on its way
            self._asked = name
            self.post_message(self.Wants("sweep", name))

    def sweep_meant(self) -> Sweep | None:
        """The sweep under the cursor, also when the cursor has come there just now."""
        name = self.part("sweeps", ListTable).chosen
        return self.known.sweep_called(name) if isinstance(name, str) else None

    def job_meant(self) -> tuple[str, str] | None:
        """The job under the cursor, while the list of jobs has the keys."""
        table = self.part("jobs", ListTable)
        if not self.is_attached or self.screen.focused is not table:  # quitting takes views away under a tick
            return None
        ids = {batch.id: batch for batch in self.known.batches_of(self.known.chosen)}
        batch = ids.get(str(table.chosen))
        is_alive = batch is not None and batch.state in LIVE
        return (batch.sweep, batch.job_id) if batch is not None and batch.job_id and is_alive else None

    def action_other(self) -> None:
        """From the sweeps to the jobs, and back."""
        jobs = self.part("jobs", ListTable)
        self.screen.set_focus(self.part("sweeps", ListTable) if self.screen.focused is jobs else jobs)

    def went_back(self) -> bool:
        """Esc goes from the jobs to the sweeps."""
        if self.screen.focused is self.part("jobs", ListTable):
            self.screen.set_focus(self.part("sweeps", ListTable))
            return True
        return False

    @on(WindowedTable.Entered, "#sweeps")
    def _enter(self, event: WindowedTable.Entered) -> None:
        if isinstance(event.table.chosen, str):
            self.post_message(self.Wants("runs", event.table.chosen))

    def on_resize(self) -> None:
        """The bars take the room that there is."""
        self.show_known()


def _sweep_rows(known: Known, width: int) -> tuple[list[Column], Sequence[tuple[Hashable, Sequence[Text]]]]:
    name_width = min(40, max((len(sweep.id) for sweep in known.sweeps), default=10))
    is_wide = width >= 120
    if not is_wide:
        name_width = min(name_width, 22)
    fixed = name_width + 11 + 5 + 7 + 10 + 5 + (21 if is_wide else 0) + 2 * 7
    bar = max(8, min(80, width - fixed - 2))
    columns = [
        Column("sweep", "sweep", name_width),
        Column("bar", "runs by state", bar),
        Column("done", "done", 13, right=True),
        Column("running", "run", 5, right=True),
        Column("rate", "per h", 6, right=True),
        Column("left", "left", 10, right=True),
        Column("failures", "!", 5, right=True),
    ]
    if is_wide:
        columns.append(Column("created", "started", 19))
    return columns, [(sweep.id, _sweep_row(known, sweep, bar, is_wide)) for sweep in known.sweeps]


def _sweep_row(known: Known, sweep: Sweep, bar: int, is_wide: bool) -> list[Text]:
    pace = known.paces.get(sweep.id)
    running = sweep.counts["RUNNING"]
    done = sweep.runs - sweep.counts["PENDING"] - running
    new = known.new_failures(sweep)
    row = [
        Text(shortened(sweep.id, 40)),
        states_bar(sweep.counts, bar),
        Text(f"{done}/{sweep.runs}"),
        Text(str(running or "")),
        Text(f"{pace.per_hour:.0f}" if pace is not None and pace.per_hour else ""),
        Text(_to_go(pace.left_s if pace is not None else None) if done < sweep.runs else ""),
        Text(f"+{new}", ALERT) if new else Text(str(failures(sweep) or ""), DIM),
    ]
    return [*row, Text(local_time(sweep.created_at))] if is_wide else row


def _to_go(seconds: float | None) -> str:
    """How long a sweep that is not done will take; what would be no time at all is not known."""
    return "-" if seconds is None or seconds < 0.5 else _whole(seconds)


def _whole(seconds: float | None) -> str:
    """A time to go, which nobody knows to a tenth of a second."""
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 60 else duration(seconds)


def _job_row(known: Known, batch: Batch) -> list[Text]:
    state, reason = known.standing(batch)
    job = known.jobs.get((batch.sweep, batch.id))
    first, stop = batch.first_run or 0, batch.stop_run or 0
    starts = local_time(iso(job.start_estimate)) if job is not None and job.start_estimate else ""
    return [
        Text(shortened(batch.id, 8)),
        Text(shortened(batch.job_id or "", 12)),
        state_text(state),
        Text(_whole(known.time_left(batch))),
        Text(starts[5:16]),
        Text(str(batch.nodes or "")),
        Text(shortened(batch.host or "", 14)),
        Text(f"{first}-{stop - 1}" if stop > first + 1 else str(first) if stop > first else ""),
        Text(shortened(reason, 120)),
    ]
