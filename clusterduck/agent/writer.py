"""The one thread of the agent that touches the shared file system, so that a hung file server stalls reports and never
runs.

It appends events to the agent's journal, claims attempts, gives them back, and fetches the payload to the node's own
disk. What cannot be written yet is kept in memory, spooled on the node's own disk, and tried again; what never could be
written is named at the end.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from clusterduck import inbox, sharing
from clusterduck.agent.answers import (
    Answer,
    ClaimsMade,
    FolderGone,
    InboxRead,
    NotSuperseded,
    PayloadFetched,
    QueueSeen,
)
from clusterduck.agent.claiming import Claiming, Haul
from clusterduck.agent.fence import Fence
from clusterduck.errors import ClusterduckError
from clusterduck.events import AttemptEnded, Event, Heartbeat, RunsClosed
from clusterduck.journal import JournalWriter, encode
from clusterduck.model import Attempt, State
from clusterduck.queue import Requeued
from clusterduck.result import move_result, with_lost_result

#: How long to wait before trying again what the file system refused, in seconds: doubled from the first to the second.
RETRY_FIRST_S, RETRY_MOST_S = 0.2, 5.0

#: For how long the sweep's folder may be away before the agent takes it for moved or deleted, in seconds.
GONE_PATIENCE_S = 60.0

#: For how long the payload's absence is taken for a file system's delay, in seconds.
PAYLOAD_PATIENCE_S = 60.0


@dataclass(frozen=True)
class _Kept:
    """A result on the node's own disk that has to be put in place before the end of its attempt is reported."""

    end: AttemptEnded
    file: Path


class Writer:
    """The writer thread and its queue.

    Args:
        folder: the agent's own; made by the thread, with its parent, and the inbox in it.
        journal: the agent's journal; nobody else uses it from now on.
        claiming: the agent's way through the queue; nobody else uses it from now on.
        spool: a file on the node's own disk for what cannot be written yet.
        wake: called (from the thread) whenever an answer is waiting.
        say: prints a line into the job's log.
    """

    def __init__(
        self,
        *,
        folder: Path,
        journal: JournalWriter,
        claiming: Claiming,
        spool: Path,
        wake: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._journal = journal
        self._claiming = claiming
        self._spool = spool
        self._wake = wake
        self._say = say
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._reports: queue.SimpleQueue[tuple[list[Event], bool]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._kept: list[_Kept] = []
        self._last_words: Callable[[bool], Event] | None = None
        self._lost_results = False
        self._sync = False
        self._folder_made = False
        self._fence = Fence(folder)
        self._failing_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._closing = threading.Event()  # what cannot be done now is not tried much longer
        self._abandon = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    # --- for the wait loop: none of these waits

    def record(self, new: Iterable[Event], sync: bool = True) -> None:
        """Have events written; with ``sync``, on disk before anything that is asked for later, unless the journal
        cannot be written just then."""
        self._reports.put((list(new), sync))
        self._orders.put(self._flush_now)

    def record_with_result(self, end: AttemptEnded, kept: Path) -> None:
        """Have the end of an attempt written as soon as its result, which is kept on the node's own disk, is in
        place."""
        self._orders.put(lambda: self._kept.append(_Kept(end, kept)))

    def claim(self, count: int) -> None:
        """Have up to ``count`` attempts claimed; answered by :class:`ClaimsMade`."""
        self._orders.put(lambda: self._do_claim(count))

    def release(self, attempts: Iterable[Attempt]) -> None:
        """Give back claims on attempts that never started."""
        taken = tuple(attempts)
        self._orders.put(lambda: self._do_release(taken))

    def fetch(self, launch: int) -> None:
        """Have a launch's payload copied to the node's own disk; answered by :class:`PayloadFetched`."""
        self._orders.put(lambda: self._do_fetch(launch))

    def look(self) -> None:
        """Have the queue looked through for what was put there lately; answered by :class:`QueueSeen`."""
        self._orders.put(self._do_look)

    def put_back(self, entry: Requeued) -> None:
        """Put a new attempt into the queue; answered by :class:`QueueSeen`."""
        self._orders.put(lambda: self._do_put_back(entry))

    def mark_failure(self, attempt: Attempt) -> None:
        """Leave a mark that a run failed, where the sweep counts them."""
        self._orders.put(lambda: self._insist(lambda: self._claiming.mark_failure(attempt), "mark a failed run"))

    def close_the_rest(self, also: Iterable[Attempt], reason: str) -> None:
        """Give up what is left to claim, and record that those runs never start, and the ones ``also`` released."""
        released = sorted((attempt.run, attempt.run + 1) for attempt in also if attempt.number == 1)

        def close() -> None:
            ranges = [*self._claiming.close(), *released]
            if ranges:
                self._journal.append([RunsClosed(ranges=ranges, state=State.CANCELLED.value, reason=reason)])
                self._sync = True

        self._orders.put(close)

    def read_inbox(self) -> None:
        """Have the inbox emptied; answered by :class:`InboxRead` if there was anything."""
        self._orders.put(self._do_read_inbox)

    def show_up(self) -> None:
        """Have the agent's folder made, by which earlier agents of its job see that it has taken over."""
        self.do(self._make_folders, "make the agent's folder")

    def look_for_restart(self) -> None:
        """Have it found out whether a later restart of the job has taken over; answered by :class:`InboxRead` if so,
        else by :class:`NotSuperseded`."""
        self._orders.put(self._do_look_for_restart)

    def do(self, action: Callable[[], None], what: str) -> None:
        """Have something else done on the shared file system, again and again while that fails in a way that may
        pass."""
        self._orders.put(lambda: self._insist(action, what))

    def answers(self) -> list[Answer]:
        """The answers that have come, oldest first."""
        found: list[Answer] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._answers.get_nowait())
        return found

    def close(self, patience_s: float, last_words: Callable[[bool], Event] | None = None) -> list[bytes]:
        """Write what is left and close the journal, trying for ``patience_s`` seconds.

        Args:
            patience_s: half of it goes to claims to be given back, results to be put in place and the like, which are
                given up then; the rest to the journal.
            last_words: the last event, made when all others are known; is told whether a result was lost.

        Returns the lines that could not be written.
        """
        until = time.monotonic() + patience_s
        self._last_words = last_words
        self._orders.put(None)
        self._thread.join(patience_s / 2)
        self._closing.set()
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._abandon.set()
            self._thread.join(1.0)
        return self._unwritten()

    def _unwritten(self) -> list[bytes]:
        """Every line that is not known to be on disk; those of attempts whose results are not in place among them."""
        lines = self._journal.pending_lines()
        with contextlib.suppress(queue.Empty):
            while True:
                lines += [encode(event) for event in self._reports.get_nowait()[0]]
        return lines + [encode(kept.end) for kept in self._kept]

    # --- in the thread

    def _run(self) -> None:
        wait: float | None = None
        last = False
        while not self._abandon.is_set():
            last = self._take_orders(wait, last)
            if last and self._closing.is_set():
                self._give_up_results()
            if not self._put_results_in_place() or not self._flush(last):
                wait = self._next_wait()
            elif last:
                return
            else:
                wait = None

    def _take_orders(self, wait: float | None, last: bool) -> bool:
        """Carry out all orders there are, waiting for one if there is none. Returns whether the last one has come."""
        if last:
            (self._abandon if self._closing.is_set() else self._closing).wait(wait)
            return True
        try:
            order = self._orders.get(timeout=wait)
            while order is not None:
                self._carry_out(order)
                order = self._orders.get_nowait()
        except queue.Empty:
            return False
        self._carry_out(self._give_back_unheard)
        return True

    def _give_back_unheard(self) -> None:
        """Give back what was claimed when the wait loop had ended already."""
        for answer in self.answers():
            if isinstance(answer, ClaimsMade):
                self._do_release(tuple(answer.haul.attempts))

    def _carry_out(self, order: Callable[[], None]) -> None:
        try:
            order()
        except Exception:  # the thread is needed for all that follows
            self._say(traceback.format_exc())

    def _flush_now(self) -> None:
        self._flush(last=False)

    def _put_results_in_place(self) -> bool:
        """Put kept results in place, and report the attempts whose result is there. Returns whether none is left."""
        for kept in list(self._kept):
            assert kept.end.result is not None
            try:
                move_result(kept.file, Path(kept.end.result))
            except OSError as error:
                self._note_trouble(f"the result of run {kept.end.run}.{kept.end.attempt}", error)
                self._flush(last=False)
                return False
            self._reports.put(([kept.end], True))
            self._kept.remove(kept)
        return True

    def _give_up_results(self) -> None:
        for kept in list(self._kept):
            reason = with_lost_result(kept.end.reason, f"until the job ended, {kept.end.result} was refused")
            self._say(f"run {kept.end.run}.{kept.end.attempt}: {reason}")
            self._reports.put(([replace(kept.end, reason=reason, result=None)], True))
            self._kept.remove(kept)
            self._lost_results = True

    def _flush(self, last: bool) -> bool:
        with contextlib.suppress(queue.Empty):
            while True:
                new, sync = self._reports.get_nowait()
                if self._is_superseded():  # what became of our runs is told, but not that all is as it was
                    new = [event for event in new if not isinstance(event, Heartbeat)]
                self._journal.append(new)
                self._sync = self._sync or sync
        if last and self._last_words is not None:
            self._journal.append([self._last_words(self._lost_results)])
            self._last_words = None
        try:
            if last or self._journal.pending:
                self._make_folders()
            if last:
                self._journal.close()
            elif self._journal.pending:
                self._journal.flush(sync=self._sync)
            self._sync = False
        except OSError as error:
            self._keep(error)
            return False
        if self._failing_since is not None and not self._kept:
            self._failing_since = None
            with contextlib.suppress(OSError):  # it goes with the node's own folder
                self._spool.unlink(missing_ok=True)
            self._say("the journal can be written again; nothing was lost")
        return True

    def _make_folders(self) -> None:
        """Make the agent's folder, once; and the inbox: a name that was absent, NFS goes on calling absent for up to
        half a minute."""
        if not self._folder_made:
            for folder in (self._folder.parent, self._folder):
                sharing.make_folder(folder, exist_ok=True)
            (self._folder / "inbox").mkdir(0o700, exist_ok=True)
            self._folder_made = True

    def _is_superseded(self) -> bool:
        """Whether a later restart has taken over, after a look if the last one was long ago."""
        if not self._fence.superseded and self._fence.lapsed():
            with contextlib.suppress(OSError):  # then what follows fails as well, or the next look tells
                self._fence.look()
            if self._fence.superseded:
                self._answer(InboxRead([], superseded=True))
        return self._fence.superseded

    def _do_look_for_restart(self) -> None:
        def look() -> None:
            self._make_folders()
            self._fence.look()
            self._answer(InboxRead([], superseded=True) if self._fence.superseded else NotSuperseded())

        self._insist(look, "see whether the job was started again")

    def _keep(self, error: OSError) -> None:
        kept = f"in {self._spool}"
        try:
            beside = self._spool.with_suffix(".new")
            beside.write_bytes(b"".join(self._journal.pending_lines()))
            os.replace(beside, self._spool)
        except OSError as spool_error:
            kept = f"in memory, for the node's own disk cannot be written either ({spool_error})"
        self._note_trouble("the journal", error, kept)

    def _note_trouble(self, what: str, error: OSError, kept: str = "on the node's own disk") -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            self._say(f"{what} cannot be written ({error}): runs go on, reports are kept {kept}")

    def _next_wait(self) -> float:
        failing = time.monotonic() - (self._failing_since or time.monotonic())
        return min(RETRY_MOST_S, max(RETRY_FIRST_S, failing / 2))

    def _answer(self, answer: Answer) -> None:
        self._answers.put(answer)
        self._wake()

    def _insist(self, action: Callable[[], None], what: str) -> None:
        """Do something on the shared file system, again and again while it fails in a way that may pass.

        Reports go on being written meanwhile, or kept, and requests are taken.
        """
        wait = RETRY_FIRST_S
        began = time.monotonic()
        while True:
            try:
                action()
            except OSError as error:
                if wait == RETRY_FIRST_S:
                    self._say(f"cannot {what} ({error}): trying again")
                self._flush_now()
                self._do_read_inbox()
                if self._closing.wait(wait) or self._is_gone(began):
                    self._say(f"could not {what} ({error})")
                    return
                wait = min(RETRY_MOST_S, wait * 2)
            else:
                return

    def _is_gone(self, since: float) -> bool:
        """Whether the folder of the sweep's batches has been away all the time since, and for longer than may pass."""
        batches = self._folder.parent.parent
        try:
            os.stat(batches)
        except FileNotFoundError:
            if time.monotonic() - since > GONE_PATIENCE_S:
                self._answer(FolderGone(batches.parent))
                return True
        except OSError:
            return False
        return False

    def _do_claim(self, count: int) -> None:
        haul = Haul()
        try:
            if not self._is_superseded():
                self._insist(lambda: self._claiming.claim(count, haul), "claim a run")
        finally:
            self._answer(ClaimsMade(count, haul))

    def _do_release(self, attempts: tuple[Attempt, ...]) -> None:
        left = list(attempts)

        def release() -> None:
            with contextlib.suppress(FileNotFoundError):  # no agent has a folder yet
                self._fence.look()
            while left and not self._fence.superseded:  # else they were put back as other attempts, or will be
                self._claiming.release(left[0])
                del left[0]

        if left:
            self._insist(release, "give back a run")

    def _do_look(self) -> None:
        with contextlib.suppress(OSError):  # it is asked for again
            self._answer(QueueSeen(self._claiming.look()))

    def _do_put_back(self, entry: Requeued) -> None:
        def put() -> None:
            self._claiming.put_back(entry)

        self._insist(put, "put a run back into the queue")
        self._answer(QueueSeen(self._claiming.left))

    def _do_read_inbox(self) -> None:
        requests: list[inbox.Request] = []
        with contextlib.suppress(OSError):  # it is asked for again; and what was taken is not forgotten
            requests, refused = inbox.take(self._folder / "inbox")
            for sentence in refused:
                self._say(sentence)
            self._fence.look()
        if requests or self._fence.superseded:
            self._answer(InboxRead(requests, self._fence.superseded))

    def _do_fetch(self, launch: int) -> None:
        until = time.monotonic() + PAYLOAD_PATIENCE_S
        wait = RETRY_FIRST_S
        while True:
            try:
                self._claiming.fetch_payload(launch)
                return self._answer(PayloadFetched(None))
            except ClusterduckError as error:
                return self._answer(PayloadFetched(str(error)))
            except OSError as error:
                if time.monotonic() > until or self._closing.wait(wait):
                    return self._answer(PayloadFetched(f"The payload of the launch cannot be read: {error}."))
                wait = min(RETRY_MOST_S, wait * 2)
