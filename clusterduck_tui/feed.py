"""The threads that read: one folds and queries the replica, one asks Slurm, and neither ever touches a widget.

The reader owns its connection. It tells the app by messages what the view in front is interested in, again whenever the
replica has changed, and at once when the interest changes. Slurm has a thread of its own, because it may take its
time. Both can be stopped in the middle of whatever they do.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from textual.message import Message

from clusterduck.errors import ClusterduckError, NotFoundError
from clusterduck.ledger import heard, history, listing, queries
from clusterduck.ledger.listing import Listing
from clusterduck.ledger.publish import publish
from clusterduck.ledger.queries import SlotNow
from clusterduck.ledger.replica import Replica
from clusterduck.paths import LedgerPaths
from clusterduck.reconcile import close_dead_batches, is_anything_open, look_at_jobs
from clusterduck.slurm.command import TIMEOUT_S
from clusterduck.slurm.jobs import JobStatus
from clusterduck.standing import neglected
from clusterduck_tui.looks import Looks
from clusterduck_tui.messages import (
    ActivityRead,
    Interest,
    JobsRead,
    LanesRead,
    LedgerState,
    Load,
    NeglectRead,
    Node,
    NodesRead,
    RunRead,
    RunsRead,
    SlotKey,
    SweepsRead,
)

#: Folding goes on in stretches of so many seconds while there is much to read, so that questions are answered between.
STRETCH_S = 0.2

#: While nothing happens, looks are so many times as far apart.
QUIET = 2.0

#: Seconds between two tries after an error.
RETRY_S = 2.0

#: Reading takes at most this part of the time: what takes long is read again less often.
SHARE = 0.1

#: Looking for runs that no job will take is at most this part of the time, and done so often if nothing changes, in
#: seconds.
NEGLECT_SHARE = 0.02
NEGLECT_INTERVAL_S = 60.0

#: Seconds between two looks at the jobs (or for new ones), and between two publications of what this host has folded.
JOBS_INTERVAL_S = 5.0
NO_JOBS_INTERVAL_S = 1.0
PUBLISH_INTERVAL_S = 60.0

#: Seconds of load of which a node's card shows the end, minute by minute where there are so many readings, and between
#: two looks at them.
HISTORY_S = 1800.0
HISTORY_READ_S = 10.0

Post = Callable[[Message], object]
Find = Callable[[], Path | None]


class Feed(threading.Thread):
    """Folds the journals into the replica and answers what the view in front is interested in."""

    def __init__(self, post: Post, find: Find, refresh_s: float, looks: Looks) -> None:
        super().__init__(name="clusterduck-feed", daemon=True)
        self._looks = looks
        self._post = post
        self._find = find
        self._refresh_s = refresh_s
        self._wake = threading.Condition()
        self._stopped = False
        self._paused = False
        self._poked = False
        self._interest = Interest("overview")
        self._answered: Interest | None = None
        self._replica: Replica | None = None
        self._order: Sequence[int] = ()
        self._ordered: Listing | None = None
        self._varying: dict[str, tuple[float, Sequence[str]]] = {}
        self._due: dict[str, float] = {}
        self._loads: Mapping[SlotKey, Sequence[Load]] = {}
        self._loads_until = 0.0

    def watch(self, interest: Interest) -> None:
        """Answer this from now on, at once and whenever something changes."""
        with self._wake:
            if interest != self._interest:
                self._interest = interest
                self._poked = True
                self._wake.notify()

    def look_now(self) -> None:
        """Fold and read at once."""
        with self._wake:
            self._due.clear()
            self._poked = True
            self._wake.notify()

    def pause(self) -> None:
        """Read nothing more until ``resume``, e.g. because nobody can see it."""
        with self._wake:
            self._paused = True

    def resume(self) -> None:
        """Go on, at once."""
        with self._wake:
            self._paused = False
            self._poked = True
            self._wake.notify()

    def stop(self) -> None:
        """Stop, in the middle of a query if need be."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        replica = self._replica
        if replica is not None:
            try:
                replica.connection.interrupt()
            except sqlite3.ProgrammingError:
                return  # closed this very moment: it has stopped by itself

    def run(self) -> None:
        """Go on until stopped, whatever happens to the ledger meanwhile."""
        while not self._stopped:
            try:
                self._attend()
                self._wait(self._refresh_s)
            except Exception as error:  # whatever it is: a notice, and another try
                if not self._stopped:
                    self._post(LedgerState(None, _sentence(error)))
                    self._wait(RETRY_S)

    def _wait(self, seconds: float) -> bool:
        """Wait until the time is over, or somebody wants something (True)."""
        with self._wake:
            if not self._poked and not self._stopped:
                self._wake.wait(seconds)
            while self._paused and not self._stopped:
                self._wake.wait()
            poked, self._poked = self._poked, False
            return poked

    def _attend(self) -> None:
        """Read one ledger for as long as it is there."""
        ledger = self._find()
        if ledger is None or not LedgerPaths(ledger).sweeps.is_dir():
            self._post(LedgerState(ledger, no_ledger(ledger)))
            self._post(SweepsRead((), (), {}))
            return
        self._answered = self._ordered = None
        self._varying.clear()
        self._loads_until = 0.0
        with Replica.open(ledger, tell=lambda slow: self._post(LedgerState(ledger, slow.capitalize()))) as replica:
            self._replica = replica
            try:
                self._looks.open(replica.path.parent)
                self._post(LedgerState(ledger, None))
                self._follow(ledger, replica)
            finally:
                self._replica = None
                self._looks.keep()

    def _follow(self, ledger: Path, replica: Replica) -> None:
        version: int | None = None
        fold_at = 0.0
        is_behind = False
        is_folded = is_told = False
        while not self._stopped:
            newest = int(replica.connection.execute("PRAGMA data_version").fetchone()[0])
            is_complete = self._answer(replica.connection, self._interest, is_changed=newest != version)
            version = newest if is_complete else None
            if is_folded and not is_told:  # told after what was read then
                self._post(LedgerState(ledger, None, is_caught_up=True))
                is_told = True
            delay = fold_at - time.monotonic()
            if delay > 0 and self._wait(delay):
                continue
            if self._stopped or self._find() != ledger or not LedgerPaths(ledger).sweeps.is_dir():
                return
            chosen = self._interest.sweep
            self._looks.keep()
            report = replica.catch_up(STRETCH_S, [chosen] if chosen else [])
            if report.events:
                version = None  # our own changes do not show in the data version
            if report.more or is_behind or report.problems:
                trouble = report.problems[0] if report.problems else None
                self._post(LedgerState(ledger, trouble, is_reading=report.more, is_caught_up=is_told))
            is_behind = report.more or bool(report.problems)
            if not report.more and not is_folded:
                is_folded = True
                self._due.clear()  # what it has come to is read at once, and then told
            pause = self._refresh_s if report.events else self._refresh_s * QUIET
            fold_at = 0.0 if report.more else time.monotonic() + pause

    # --- answering

    def _answer(self, connection: sqlite3.Connection, interest: Interest, *, is_changed: bool) -> bool:
        """Read what is wanted, if it may be news: the data changed, or something else is wanted.

        Returns:
            Whether all of that was read; what takes long waits until it may be read again.
        """
        before, self._answered = self._answered, interest
        is_other = before is None or _but_rows(before) != _but_rows(interest)
        is_complete = True
        if is_changed or before is None or before.sweep != interest.sweep:
            is_complete &= self._read("sweeps", is_other, lambda: self._sweeps(connection, interest.sweep))
        if interest.subject == "runs":
            if interest.listing is not None:
                is_complete &= self._runs(connection, interest.listing, interest.rows, is_changed)
        elif is_changed or is_other:
            is_complete &= self._read(interest.subject, is_other, lambda: self._subject(connection, interest))
        return is_complete

    def _read(self, kind: str, is_urgent: bool, read: Callable[[], None]) -> bool:
        """Read something, unless it was read a moment ago and takes long; tells whether it was read."""
        begin = time.monotonic()
        if not is_urgent and begin < self._due.get(kind, 0.0):
            return False
        read()
        end = time.monotonic()
        self._due[kind] = end + (end - begin) / SHARE
        return True

    def _subject(self, connection: sqlite3.Connection, interest: Interest) -> None:
        if interest.subject == "nodes":
            self._nodes(connection)
        elif interest.sweep is None:
            return
        elif interest.subject == "timeline":
            start, end = interest.span
            lanes = history.lanes(connection, interest.sweep, start, end, rows=interest.rows, columns=interest.columns)
            self._post(LanesRead(interest.sweep, lanes, interest.rows, interest.span))
        elif interest.subject == "run" and interest.run is not None:
            self._run(connection, interest.sweep, interest.run)
        elif interest.subject == "activity":
            acts = history.acts(connection)
            self._post(ActivityRead(acts, history.happenings(connection, interest.sweep)))

    def _sweeps(self, connection: sqlite3.Connection, chosen: str | None) -> None:
        sweeps = queries.sweeps(connection)
        batches = queries.batches(connection, alive=True)
        chosen = chosen or (sweeps[0].id if sweeps else None)
        if chosen is not None:
            batches = [batch for batch in batches if batch.sweep != chosen] + queries.batches(connection, chosen)
        now = time.time()
        paces = {}
        for sweep in sweeps:
            pending, running = sweep.counts["PENDING"], sweep.counts["RUNNING"]
            if sweep.id == chosen or any(batch.sweep == sweep.id for batch in batches):
                paces[sweep.id] = history.pace(connection, sweep.id, pending, running, now)
        self._post(SweepsRead(sweeps, batches, paces))

    def _nodes(self, connection: sqlite3.Connection) -> None:
        if time.monotonic() >= self._loads_until:
            self._loads = history.load_history(connection, time.time() - HISTORY_S)
            self._loads_until = time.monotonic() + HISTORY_READ_S
        slots: dict[tuple[str, str, int, int], list[SlotNow]] = {}
        for slot in queries.slots(connection, alive=True):
            slots.setdefault((slot.sweep, slot.batch, slot.restart, slot.node), []).append(slot)
        nodes = []
        for agent in heard.corrected(connection, queries.agents(connection, alive=True)):
            key = (agent.sweep, agent.batch, agent.restart, agent.node)
            its = tuple(slots.get(key, ()))
            nodes.append(Node(agent, its, {slot.slot: self._loads.get((*key, slot.slot), ()) for slot in its}))
        sweeps = {node.agent.sweep for node in nodes}
        varying = {sweep: self._varying_keys(connection, sweep) for sweep in sweeps}
        typical = {sweep: history.typical_duration(connection, sweep) for sweep in sweeps}
        self._post(NodesRead(nodes, varying, typical, history.occupancy(connection, time.time())))

    def _runs(self, connection: sqlite3.Connection, wanted: Listing, rows: tuple[int, int], is_changed: bool) -> bool:
        is_complete = True
        if is_changed or self._ordered != wanted:
            is_other = self._ordered != wanted
            is_complete = self._read("order", is_other, lambda: self._put_in_order(connection, wanted))
        numbers = list(self._order[rows[0] : rows[1]])
        runs = queries.runs_numbered(connection, wanted.sweep, numbers) if numbers else []
        self._post(RunsRead(wanted, self._order, runs, self._varying_keys(connection, wanted.sweep)))
        return is_complete

    def _put_in_order(self, connection: sqlite3.Connection, wanted: Listing) -> None:
        self._order = listing.order(connection, wanted)
        self._ordered = wanted

    def _run(self, connection: sqlite3.Connection, sweep: str, number: int) -> None:
        try:
            run = queries.run(connection, sweep, number)
        except NotFoundError:
            self._post(RunRead(sweep, number, None, ()))
            return
        self._post(RunRead(sweep, number, run, queries.attempts(connection, sweep, number)))

    def _varying_keys(self, connection: sqlite3.Connection, sweep: str) -> Sequence[str]:
        """The keys that vary; asked again only every few seconds."""
        until, keys = self._varying.get(sweep, (0.0, ()))
        if time.monotonic() >= until:
            keys = tuple(queries.varying_keys(connection, sweep))
            self._varying[sweep] = (time.monotonic() + 5.0, keys)
        return keys


class JobsWatch(threading.Thread):
    """Asks about jobs every few seconds, puts on record which are over, and publishes what this host has folded."""

    def __init__(self, post: Post, find: Find, read_only: bool) -> None:
        super().__init__(name="clusterduck-jobs", daemon=True)
        self._post = post
        self._find = find
        self._read_only = read_only
        self._stopped = threading.Event()
        self._unpaused = threading.Event()
        self._unpaused.set()
        self._publish_at = time.monotonic() + PUBLISH_INTERVAL_S
        self._waiting: object = None
        self._neglect_at = 0.0

    def pause(self) -> None:
        """Look no more until ``resume``."""
        self._unpaused.clear()

    def resume(self) -> None:
        """Go on."""
        self._unpaused.set()

    def stop(self) -> None:
        """Stop before the next look; a command of Slurm's that runs just now is not waited for."""
        self._stopped.set()
        self._unpaused.set()

    def run(self) -> None:
        """Look until stopped. What goes wrong is told, and tried again by the next look."""
        while not self._stopped.is_set():
            try:
                self._attend()
            except Exception as error:  # whatever it is: a notice, and another look
                self._post(JobsRead({}, _sentence(error)))
            self._stopped.wait(JOBS_INTERVAL_S)

    def _attend(self) -> None:
        """Look after one ledger for as long as it is there; its replica stays open, because opening it checks it."""
        ledger = self._find()
        if ledger is None or not LedgerPaths(ledger).sweeps.is_dir():
            return
        self._waiting, self._neglect_at = None, 0.0
        with Replica.open(ledger) as replica:
            while not self._stopped.is_set():
                interval = JOBS_INTERVAL_S if self._look(ledger, replica) else NO_JOBS_INTERVAL_S
                if self._wait(interval) or self._find() != ledger or not replica.path.exists():
                    return

    def _wait(self, seconds: float) -> bool:
        """Wait, at least until nobody wants it to pause; tells whether it is to stop."""
        self._stopped.wait(seconds)
        self._unpaused.wait()
        return self._stopped.is_set()

    def _look(self, ledger: Path, replica: Replica) -> bool:
        """Look once; tells whether there are jobs that live, or may."""
        is_open = is_anything_open(replica.connection)
        if is_open:
            outlook = look_at_jobs(ledger, replica, TIMEOUT_S)
            if self._stopped.is_set():
                return True
            self._post(JobsRead(outlook.jobs, outlook.trouble))
            if not self._read_only:
                close_dead_batches(ledger, replica, outlook)
        else:
            self._post(JobsRead({}, None))
        self._look_for_neglect(replica.connection, outlook.jobs if is_open else {})
        if not self._read_only and time.monotonic() >= self._publish_at:
            self._publish_at = time.monotonic() + PUBLISH_INTERVAL_S
            publish(replica, ledger, if_older_than_s=PUBLISH_INTERVAL_S / 2, wait_s=0.0)
        return is_open

    def _look_for_neglect(self, connection: sqlite3.Connection, jobs: Mapping[tuple[str, str], JobStatus]) -> None:
        """Look for runs that no job will take, more rarely if the runs and jobs stand as they did at the last look.

        It lists what is claimed and reads all runs that wait.
        """
        sweeps = [sweep for sweep in queries.sweeps(connection) if sweep.counts["PENDING"]]
        waiting = [(sweep.id, sweep.counts) for sweep in sweeps], {key: job.state for key, job in jobs.items()}
        begin = time.monotonic()
        pause = NEGLECT_INTERVAL_S if waiting == self._waiting else 0.0
        if begin < self._neglect_at + pause:
            return
        self._post(NeglectRead(neglected(connection, [sweep.id for sweep in sweeps], jobs)))
        self._waiting = waiting
        pause = min((time.monotonic() - begin) / NEGLECT_SHARE, NEGLECT_INTERVAL_S)
        self._neglect_at = time.monotonic() + pause


def _but_rows(interest: Interest) -> Interest:
    """What is wanted, but for the place in a listing: which rows those are is known at once."""
    return interest if interest.listing is None else replace(interest, rows=(0, 0))


def no_ledger(ledger: Path | None) -> str:
    """What to tell somebody who has no sweep yet."""
    where = f" at {ledger}" if ledger is not None else " here or in a folder above"
    return (
        f"No ledger{where} yet. Launch a sweep (python train.py --multirun hydra/launcher=clusterduck_slurm ...) "
        "and it will show up here, or name a ledger with --ledger FILE."
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, ClusterduckError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"The ledger could not be read just now ({type(error).__name__}: {error}); trying again."
