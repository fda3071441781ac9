"""The writer thread against real files: what cannot be written yet is kept, and written once it can be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusterduck.agent.answers import ClaimsMade, InboxRead, NotSuperseded, PayloadFetched, QueueSeen
from clusterduck.agent.claiming import Claiming, Haul
from clusterduck.agent.settings import AgentSettings
from clusterduck.agent.writer import Writer
from clusterduck.events import AgentEnded, Heartbeat, JournalClosed, JournalOpened
from clusterduck.inbox import Request, post
from clusterduck.journal import JournalWriter, read
from clusterduck.model import AgentId, Attempt
from clusterduck.paths import SweepPaths
from clusterduck.queue import Claims, Queue, Requeued


class Bench:
    """A writer on real folders, and the wait loop's side of it."""

    def __init__(self, folder: Path, first: int, stop: int, max_failures: int | None = None) -> None:
        self.sweep = SweepPaths.of(folder, "sweep-abcde")
        self.sweep.create()
        self.sweep.launch(0).mkdir()
        self.payload = self.sweep.payload(0)
        self.payload.write_bytes(b"data")
        self.payload.chmod(0o600)
        self.agent = AgentId("0-0", 0, 0)
        self.folder = self.sweep.agent(self.agent)
        self.spool = folder / "spool.jsonl"
        self.said: list[str] = []
        self.woken = threading.Semaphore(0)
        self.heard = threading.Condition()
        settings = AgentSettings(
            sweep_root=str(self.sweep.root),
            batch="0-0",
            launch=0,
            first_run=first,
            stop_run=stop,
            plan_first=0,
            plan_stop=100,
            nodes=1,
            cluster="local",
            parallel_runs_per_node=1,
            ledger="unused",
            max_failures=max_failures,
        )
        scratch = folder / "scratch"
        scratch.mkdir()
        self.copy = scratch / "payload-0.pkl"
        self.writer = Writer(
            folder=self.folder,
            journal=JournalWriter(self.folder, "sweep-abcde", "agent"),
            claiming=Claiming(settings, self.agent, scratch, self._say),
            spool=self.spool,
            wake=self.woken.release,
            say=self._say,
        )
        self.writer.start()

    def _say(self, line: str) -> None:
        with self.heard:
            self.said.append(line)
            self.heard.notify_all()

    def wait_until_said(self, words: str) -> None:
        with self.heard:
            assert self.heard.wait_for(lambda: any(words in line for line in self.said), 30), self.said

    def write_something(self) -> None:
        self.writer.record([Heartbeat(time=1.0, busy=1)])
        self.claim(1)
        self.claim(1)  # taken only after what came with the first one was written

    def claim(self, count: int) -> ClaimsMade:
        self.writer.claim(count)
        answer = self.answer()
        assert isinstance(answer, ClaimsMade)
        return answer

    def answer(self) -> ClaimsMade | PayloadFetched | QueueSeen | InboxRead | NotSuperseded:
        assert self.woken.acquire(timeout=180)
        (answer,) = self.writer.answers()
        return answer


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(first: int = 0, stop: int = 0, max_failures: int | None = None) -> Bench:
        made.append(Bench(tmp_path, first, stop, max_failures))
        return made[-1]

    yield make
    for each in made:
        each.writer.close(0.1)


def attempts(*runs: int) -> list[Attempt]:
    return [Attempt(run, 1) for run in runs]


def requeued(run: int, number: int, **rest: object) -> Requeued:
    return Requeued(Attempt(run, number), launch=0, kind="person", reason="again", by="me@host", **rest)  # type: ignore[arg-type]


def test_events_are_in_the_journal_in_order_and_closed(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.writer.record([Heartbeat(time=1.0, busy=1)], sync=False)
    it.writer.record([AgentEnded(time=2.0, reason="done", exit_code=0)])
    assert it.writer.close(30) == []
    found = read(it.folder / "journal-0.jsonl").events
    assert [type(event) for event in found] == [JournalOpened, Heartbeat, AgentEnded, JournalClosed]


def test_claims_skip_what_others_took(bench: Callable[..., Bench]) -> None:
    it = bench(3, 7)
    others = Claims(it.sweep.claims, "0-1/0.0")
    assert others.claim(Attempt(3, 1))
    assert others.claim(Attempt(5, 1))
    answer = it.claim(2)
    assert (answer.asked, answer.haul.attempts, answer.haul.left) == (2, attempts(4, 6), 0)
    assert it.claim(1).haul.attempts == []
    assert others.owner(Attempt(4, 1)) == "0-0/0.0"
    it.writer.release(attempts(4, 3))
    it.claim(1)  # answered after the release
    assert others.owner(Attempt(4, 1)) is None
    assert others.owner(Attempt(3, 1)) == "0-1/0.0"


def test_what_was_put_back_is_claimed_after_the_plan_with_what_was_said(bench: Callable[..., Bench]) -> None:
    it = bench(0, 1)
    queue = Queue(it.sweep.queue)
    entry = requeued(7, 2, overrides=("lr=1",), folder="/out/7")
    assert queue.put(entry)
    assert not queue.put(entry)
    haul = it.claim(5).haul
    assert haul.attempts == [Attempt(0, 1), Attempt(7, 2)]
    assert haul.requeued == {Attempt(7, 2): entry}
    assert it.copy.read_bytes() == b"data"  # its launch's payload is at hand
    queue.put(requeued(8, 2))
    it.writer.look()
    assert it.answer() == QueueSeen(1)


def test_an_entry_of_the_queue_that_somebody_else_could_write_is_passed_over(bench: Callable[..., Bench]) -> None:
    it = bench()
    queue = Queue(it.sweep.queue)
    queue.put(requeued(7, 2))
    (it.sweep.queue / "7.2").chmod(0o622)
    (it.sweep.queue / "8.2").write_text("nonsense")
    (it.sweep.queue / "8.2").chmod(0o600)
    (it.sweep.queue / "nonsense").touch()
    queue.put(requeued(9, 2))
    assert it.claim(5).haul.attempts == [Attempt(9, 2)]
    it.wait_until_said("7.2 in the queue is passed over")
    it.wait_until_said("8.2 in the queue is passed over")


def test_requests_are_taken_once_and_nonsense_is_refused_in_words(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.write_something()
    inbox = it.folder / "inbox"
    request = Request(kind="cancel", by="me@host", attempts=(Attempt(1, 1),), grace_s=2.0, at=5.0)
    post(inbox, request)
    (inbox / "0.json").write_text('{"kind": "explode"}')
    (inbox / "0.json").chmod(0o600)
    (inbox / "1.json").symlink_to("/etc/passwd")
    it.writer.read_inbox()
    assert it.answer() == InboxRead([request], superseded=False)
    it.wait_until_said("the request 0.json is refused")
    it.wait_until_said("the request 1.json is refused")
    assert list(inbox.iterdir()) == []


def test_nothing_looks_for_a_name_that_others_have_yet_to_make(bench: Callable[..., Bench]) -> None:
    """NFS would go on calling it absent for a while; so the agent makes the folders itself that it looks into."""
    it = bench(0, 2, max_failures=1)
    it.write_something()
    assert list((it.folder / "inbox").iterdir()) == []
    assert list(it.sweep.failures.iterdir()) == []


def test_an_agent_that_was_cut_off_finds_out_that_its_job_was_started_again(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.write_something()
    (it.folder.parent / "1.0").mkdir()
    it.writer.read_inbox()
    assert it.answer() == InboxRead([], superseded=True)


def test_an_agent_whose_job_was_started_again_claims_nothing_and_keeps_what_it_has(bench: Callable[..., Bench]) -> None:
    """What it gave back could be executed once more, beside the new attempt that its successor has put there."""
    it = bench(0, 5)
    assert it.claim(1).haul.attempts == attempts(0)
    it.writer.look_for_restart()
    assert it.answer() == NotSuperseded()
    (it.folder.parent / "1.0").mkdir()
    it.writer.release(attempts(0))
    it.writer.look_for_restart()
    assert it.answer() == InboxRead([], superseded=True)
    assert it.claim(3) == ClaimsMade(3, Haul())
    it.writer.record([Heartbeat(time=1.0, busy=1), AgentEnded(time=2.0, reason="done", exit_code=1)])
    it.claim(1)
    assert [path.name for path in it.sweep.claims.iterdir()] == ["0.1"]
    kinds = {type(event) for event in read(it.folder / "journal-0.jsonl").events}
    assert AgentEnded in kinds
    assert Heartbeat not in kinds


def test_what_cannot_be_written_is_spooled_and_written_once_it_can_be(bench: Callable[..., Bench]) -> None:
    it = bench()
    batches = it.sweep.root / "batches"
    batches.rename(batches.with_name("gone"))
    it.writer.record([Heartbeat(time=1.0, busy=1)])
    it.wait_until_said("cannot be written")
    assert b'"busy":1' in it.spool.read_bytes()
    batches.with_name("gone").rename(batches)
    it.wait_until_said("can be written again")
    assert not it.spool.exists()
    assert [type(event) for event in read(it.folder / "journal-0.jsonl").events] == [JournalOpened, Heartbeat]


def test_what_never_can_be_written_is_handed_back_and_stays_in_the_spool(bench: Callable[..., Bench]) -> None:
    it = bench()
    batches = it.sweep.root / "batches"
    batches.rename(batches.with_name("gone"))
    it.writer.record([AgentEnded(time=2.0, reason="done", exit_code=0)])
    it.wait_until_said("cannot be written")
    assert b'"reason":"done"' in b"".join(it.writer.close(0.5))
    assert b'"reason":"done"' in it.spool.read_bytes()


def test_a_payload_that_somebody_else_could_write_is_refused(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.payload.chmod(0o622)
    it.writer.fetch(0)
    answer = it.answer()
    assert isinstance(answer, PayloadFetched)
    assert answer.error is not None
    assert "can be written by other users" in answer.error
    it.payload.chmod(0o600)
    it.writer.fetch(0)
    assert it.answer() == PayloadFetched(None)
    assert it.copy.read_bytes() == b"data"
