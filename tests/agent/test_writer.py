"""The writer thread against real files: what cannot be written yet is kept, and written once it can be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusterduck.agent.writer import ClaimsMade, PayloadFetched, Writer
from clusterduck.events import AgentEnded, Heartbeat, JournalClosed, JournalOpened
from clusterduck.journal import JournalWriter, read
from clusterduck.model import Attempt
from clusterduck.queue import Claims


class Bench:
    """A writer on real folders, and the wait loop's side of it."""

    def __init__(self, folder: Path, candidates: list[int]) -> None:
        self.journals = folder / "batches" / "0-0" / "0.0"
        self.claims = folder / "claims"
        self.claims.mkdir()
        self.spool = folder / "spool.jsonl"
        self.said: list[str] = []
        self.woken = threading.Semaphore(0)
        self.heard = threading.Condition()
        self.writer = Writer(
            folder=self.journals,
            journal=JournalWriter(self.journals, "sweep-abcde", "agent"),
            claims=Claims(self.claims, "0-0/0.0"),
            candidates=candidates,
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

    def answer(self) -> ClaimsMade | PayloadFetched:
        assert self.woken.acquire(timeout=30)
        (answer,) = self.writer.answers()
        return answer


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[[list[int]], Bench]]:
    made: list[Bench] = []

    def make(candidates: list[int]) -> Bench:
        made.append(Bench(tmp_path, candidates))
        return made[-1]

    yield make
    for each in made:
        each.writer.close(0.1)


def test_events_are_in_the_journal_in_order_and_closed(bench: Callable[[list[int]], Bench], tmp_path: Path) -> None:
    it = bench([])
    (tmp_path / "batches").mkdir()
    it.writer.record([Heartbeat(time=1.0, busy=1)], sync=False)
    it.writer.record([AgentEnded(time=2.0, reason="done", exit_code=0)])
    assert it.writer.close(30) == []
    found = read(it.journals / "journal-0.jsonl").events
    assert [type(event) for event in found] == [JournalOpened, Heartbeat, AgentEnded, JournalClosed]


def test_claims_skip_what_others_took(bench: Callable[[list[int]], Bench]) -> None:
    it = bench([3, 4, 5, 6])
    others = Claims(it.claims, "0-1/0.0")
    assert others.claim(Attempt(3, 1))
    assert others.claim(Attempt(5, 1))
    it.writer.claim(2)
    assert it.answer() == ClaimsMade(2, (Attempt(4, 1), Attempt(6, 1)), 0)
    it.writer.claim(1)
    assert it.answer() == ClaimsMade(1, (), 0)
    assert others.owner(Attempt(4, 1)) == "0-0/0.0"
    it.writer.release([Attempt(4, 1), Attempt(3, 1)])
    it.writer.claim(1)  # answered after the release
    it.answer()
    assert others.owner(Attempt(4, 1)) is None
    assert others.owner(Attempt(3, 1)) == "0-1/0.0"


def test_what_cannot_be_written_is_spooled_and_written_once_it_can_be(
    bench: Callable[[list[int]], Bench], tmp_path: Path
) -> None:
    it = bench([])
    it.writer.record([Heartbeat(time=1.0, busy=1)])  # the sweep's folder of batches is missing
    it.wait_until_said("cannot be written")
    assert b'"busy":1' in it.spool.read_bytes()
    (tmp_path / "batches").mkdir()
    it.wait_until_said("can be written again")
    assert not it.spool.exists()
    assert [type(event) for event in read(it.journals / "journal-0.jsonl").events] == [JournalOpened, Heartbeat]


def test_what_never_can_be_written_is_counted_and_stays_in_the_spool(bench: Callable[[list[int]], Bench]) -> None:
    it = bench([])
    it.writer.record([AgentEnded(time=2.0, reason="done", exit_code=0)])
    it.wait_until_said("cannot be written")
    assert b'"reason":"done"' in b"".join(it.writer.close(0.5))
    assert b'"reason":"done"' in it.spool.read_bytes()


def test_a_payload_that_somebody_else_could_write_is_refused(
    bench: Callable[[list[int]], Bench], tmp_path: Path
) -> None:
    it = bench([])
    source = tmp_path / "payload.pkl"
    source.write_bytes(b"data")
    source.chmod(0o622)
    it.writer.fetch(source, tmp_path / "copy")
    answer = it.answer()
    assert isinstance(answer, PayloadFetched)
    assert answer.error is not None
    assert "can be written by other users" in answer.error
    source.chmod(0o600)
    it.writer.fetch(source, tmp_path / "copy")
    assert it.answer() == PayloadFetched(None)
    assert (tmp_path / "copy").read_bytes() == b"data"
