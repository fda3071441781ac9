"""Journals cut at any byte and garbled in any byte: what is lost is never more than what is gone, and nothing else."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals_builder import SweepBuilder, tables

from clusterduck import events, journal
from clusterduck.ledger import fold

NOW = 1_760_100_000.0

Make = Callable[[], sqlite3.Connection]


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def fold_all(
    replica: sqlite3.Connection, sweep: SweepBuilder, paths: list[Path], is_private: bool = False
) -> fold.Folded:
    root = sweep.paths.root
    return fold.fold_journals(
        replica, sweep.sweep, root, paths, clock=Clock(), is_time_up=lambda: False, is_private=is_private
    )


class Journal:
    """An agent's journal whose bytes the test decides on, and replicas that look at it."""

    def __init__(self, base: Path, *, close: bool = False) -> None:
        self.sweep = SweepBuilder(base)
        self.path = self.sweep.write(
            self.sweep.agent_journal(), self.sweep.agent(range(4), "node0", slots=2), close=close
        )
        self.data = self.path.read_bytes()
        self.lines = self.data.splitlines(keepends=True)

    def holds(self, data: bytes, written_at: float = NOW) -> None:
        self.path.write_bytes(data)
        os.utime(self.path, (written_at, written_at))

    def fold(self, replica: sqlite3.Connection, clock: Callable[[], float]) -> fold.Folded:
        return fold.fold_journals(
            replica, self.sweep.sweep, self.sweep.paths.root, [self.path], clock=clock, is_time_up=lambda: False
        )

    def folded(self, make: Make, data: bytes) -> dict[str, list[tuple[object, ...]]]:
        """What a replica holds that looks but once, at ``data``."""
        self.holds(data, written_at=0)
        replica = make()
        self.fold(replica, Clock())
        return tables(replica)

    def begun(self, make: Make, offset: int) -> sqlite3.Connection:
        """A replica that has read up to ``offset``."""
        self.holds(self.data[:offset])
        replica = make()
        self.fold(replica, Clock())
        return replica


def copy_of(replica: sqlite3.Connection) -> sqlite3.Connection:
    copy = sqlite3.connect(":memory:", isolation_level=None)
    replica.backup(copy)
    return copy


@pytest.fixture
def torn(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


def test_cut_at_every_byte_of_its_last_lines_then_written_on(torn: Journal, empty: Make) -> None:
    expected = torn.folded(empty, torn.data)
    start = len(torn.data) - sum(map(len, torn.lines[-2:]))
    before = torn.begun(empty, start)
    for cut in range(start, len(torn.data) + 1):
        replica, clock = copy_of(before), Clock()
        torn.holds(torn.data[:cut])
        torn.fold(replica, clock)
        torn.holds(torn.data)
        torn.fold(replica, clock)
        assert tables(replica) == expected, cut
        replica.close()


def test_cut_at_every_byte_by_a_failed_write_then_written_again(torn: Journal, empty: Make) -> None:
    """A write fails half-way; the writer begins a new line and writes all again that it knows not to be there."""
    expected = torn.folded(empty, torn.data)
    start = len(torn.data) - sum(map(len, torn.lines[-2:]))
    before = torn.begun(empty, start)
    for cut in range(start, len(torn.data)):
        replica, clock = copy_of(before), Clock()
        torn.holds(torn.data[:cut])
        torn.fold(replica, clock)
        torn.holds(torn.data[:cut] + b"\n" + torn.data[start:])
        torn.fold(replica, clock)
        clock.now += fold.BAD_LINE_WAIT_S
        torn.fold(replica, clock)
        assert tables(replica) == expected, cut
        replica.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbled_at_first_then_whole(data: st.DataObject, torn: Journal, empty: Make) -> None:
    """What another host wrote reaches this one in pieces: bytes that are wrong at one look are right at the next."""
    expected = torn.folded(empty, torn.data)
    start = len(torn.data) - sum(map(len, torn.lines[-5:]))
    garbled = bytearray(torn.data[: data.draw(st.integers(start + 1, len(torn.data)))])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(start, len(garbled) - 1))
        garbled[at] ^= data.draw(st.integers(1, 255))
    replica, clock = empty(), Clock()
    torn.holds(bytes(garbled))
    torn.fold(replica, clock)
    torn.holds(torn.data)
    torn.fold(replica, clock)
    assert tables(replica) == expected
    replica.close()


@pytest.mark.parametrize("seen", [1, 20, None])
def test_a_lines_first_byte_that_looks_like_an_empty_line_at_first(
    torn: Journal, empty: Make, seen: int | None
) -> None:
    expected = torn.folded(empty, torn.data)
    for back in range(1, 4):
        start = len(torn.data) - sum(map(len, torn.lines[-back:]))
        garbled = torn.data[:start] + b"\n" + torn.data[start + 1 :]
        replica, clock = empty(), Clock()
        torn.holds(garbled if seen is None else garbled[: start + seen])
        torn.fold(replica, clock)
        torn.holds(torn.data)
        torn.fold(replica, clock)
        assert tables(replica) == expected
        replica.close()


def test_every_byte_of_a_line_flipped_for_good_loses_that_line_alone(torn: Journal, empty: Make) -> None:
    line = len(torn.lines) - 3
    start = sum(map(len, torn.lines[:line]))
    expected = torn.folded(empty, b"".join(torn.lines[:line] + torn.lines[line + 1 :]))
    for at in range(start, start + len(torn.lines[line]) - 1):
        flipped = bytearray(torn.data)
        flipped[at] ^= 0xFF if flipped[at] ^ 0xFF != ord("\n") else 0x7F
        replica, clock = empty(), Clock()
        torn.holds(bytes(flipped))
        torn.fold(replica, clock)
        assert replica.execute('SELECT "offset", bad_at FROM journal').fetchone() == (start, start)
        clock.now += fold.BAD_LINE_WAIT_S
        torn.fold(replica, clock)
        assert tables(replica) == expected, at
        replica.close()


def test_a_bad_line_is_waited_at_and_then_passed_over(torn: Journal, empty: Make) -> None:
    garbled = bytearray(torn.data)
    places = [sum(map(len, torn.lines[:line])) for line in (3, 5, 6)]
    for at in places:
        garbled[at + 20] ^= 1
    replica, clock = empty(), Clock()
    torn.holds(bytes(garbled))
    for wait in (0.0, 1.0, 3.0):
        clock.now = NOW + wait
        torn.fold(replica, clock)
        offset, bad_at, since = replica.execute('SELECT "offset", bad_at, bad_since FROM journal').fetchone()
        assert (offset, bad_at, since) == (places[0], places[0], "2025-10-10T12:40:00.000Z")
    clock.now = NOW + fold.BAD_LINE_WAIT_S
    torn.fold(replica, clock)  # the three were all there at the first look, so they are passed over together
    offset, bad_at = replica.execute('SELECT "offset", bad_at FROM journal').fetchone()
    assert (offset, bad_at) == (len(garbled), None)


def test_a_bad_line_that_came_later_is_waited_at_anew(torn: Journal, empty: Make) -> None:
    first, second = sum(map(len, torn.lines[:3])), sum(map(len, torn.lines[:8]))
    garbled = bytearray(torn.data)
    garbled[first + 20] ^= 1
    garbled[second + 20] ^= 1
    replica, clock = empty(), Clock()
    torn.holds(bytes(garbled[: sum(map(len, torn.lines[:5]))]))
    torn.fold(replica, clock)
    torn.holds(bytes(garbled))
    clock.now += fold.BAD_LINE_WAIT_S
    torn.fold(replica, clock)
    assert replica.execute('SELECT "offset", bad_at FROM journal').fetchone() == (second, second)
    clock.now += fold.BAD_LINE_WAIT_S
    torn.fold(replica, clock)
    assert replica.execute('SELECT "offset", bad_at FROM journal').fetchone() == (len(garbled), None)


def test_a_bad_line_of_a_closed_or_old_journal_is_passed_over_at_once(tmp_path: Path, empty: Make) -> None:
    for name, close, written_at in (("closed", True, NOW), ("old", False, NOW - fold.OLD_FILE_S - 1)):
        torn = Journal(tmp_path / name, close=close)
        garbled = bytearray(torn.data)
        garbled[sum(map(len, torn.lines[:3])) + 20] ^= 1
        torn.holds(bytes(garbled), written_at)
        replica = empty()
        torn.fold(replica, Clock())
        row = replica.execute('SELECT "offset", bad_at, closed FROM journal').fetchone()
        assert row == (len(garbled), None, int(close))


def test_bytes_without_a_line_feed_are_left_for_later(torn: Journal, empty: Make) -> None:
    replica, clock = empty(), Clock()
    torn.holds(torn.data + b"0" * 50, written_at=0)
    torn.fold(replica, clock)
    clock.now += 1000
    assert torn.fold(replica, clock).read == 0
    assert replica.execute('SELECT "offset", bad_at FROM journal').fetchone() == (len(torn.data), None)


def test_a_newer_journal_is_left_alone_and_said(torn: Journal, empty: Make) -> None:
    newer = events.JournalOpened(version=events.VERSION + 1, sweep=torn.sweep.sweep, writer="agent")
    torn.holds(journal.encode(newer) + torn.data)
    replica = empty()
    problems = torn.fold(replica, Clock()).problems
    assert ["upgrade clusterduck here" in problem for problem in problems] == [True]
    assert replica.execute("SELECT count(*) FROM journal").fetchone() == (0,)


@pytest.mark.parametrize("is_private", [False, True])
def test_an_event_with_values_of_the_wrong_kind_stops_its_journal_only(
    torn: Journal, empty: Make, is_private: bool
) -> None:
    wrong = events.AttemptStarted(run=77, attempt=1, slot={"no": "number"}, pid=1, log="log")  # type: ignore[arg-type]
    torn.holds(journal.encode(wrong))
    replica = empty()
    problems = torn.fold(replica, Clock()).problems
    assert ["cannot be folded" in problem for problem in problems] == [True]
    assert not replica.in_transaction
    assert all(not rows for rows in tables(replica).values())
    sweep = torn.sweep
    others = [
        sweep.write(sweep.launch_journal(), sweep.launch(8, batches=2)),
        sweep.write(sweep.agent_journal("0-1"), sweep.agent(range(4, 8), "node1")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "STRETCHES_AT_ONCE", 1000)
        patch.setattr(fold, "STRETCH_BYTES", 400)  # the bad event is in the second of several stretches
        torn.holds(torn.lines[0] + torn.lines[1] + journal.encode(wrong) + b"".join(torn.lines[2:]))
        together = fold_all(replica, sweep, [others[0], torn.path, others[1]], is_private)
    assert ["cannot be folded" in problem for problem in together.problems] == [True]
    assert together.journals == 3 and not together.left
    alone = empty()
    fold_all(alone, sweep, others)
    torn.holds(torn.lines[0] + torn.lines[1])
    fold_all(alone, sweep, [torn.path])
    assert tables(replica) == tables(alone)


def test_an_agents_event_in_an_acts_journal_is_refused(tmp_path: Path, empty: Make) -> None:
    sweep = SweepBuilder(tmp_path)
    path = sweep.write(sweep.act_journal("odd"), [sweep.beat(sweep.start, busy=1)])
    root = sweep.paths.root
    folded = fold.fold_journals(empty(), sweep.sweep, root, [path], clock=Clock(), is_time_up=lambda: False)
    assert ["no agent's" in problem for problem in folded.problems] == [True]


def test_text_that_is_no_unicode_is_stored_and_found_again(tmp_path: Path, empty: Make) -> None:
    sweep = SweepBuilder(tmp_path)
    name = os.fsdecode(b"/data/\xff\xfe/log")
    path = sweep.write(
        sweep.agent_journal(),
        [
            events.AttemptStarted(time=sweep.start, run=0, attempt=1, slot=0, pid=1, log=name),
            events.AttemptEnded(time=sweep.start, run=0, attempt=1, state="FAILED", reason="it said \udcff\x00 é"),
        ],
    )
    launch = sweep.write(
        sweep.launch_journal(), [events.RunsPlanned(launch=0, runs=[(0, ["a=\udcff"]), (1, ["a=é"]), (2, ["b=1"])])]
    )
    replica = empty()
    for one in (path, launch):
        fold.fold_journals(replica, sweep.sweep, sweep.paths.root, [one], clock=Clock(), is_time_up=lambda: False)
    from clusterduck.ledger import queries

    assert queries.run(replica, sweep.sweep, 0).log == name
    assert queries.run(replica, sweep.sweep, 0).overrides == ["a=\udcff"]
    assert queries.run(replica, sweep.sweep, 0).reason == "it said \\udcff\x00 é"
    assert queries.varying_keys(replica, sweep.sweep) == ["a", "b"]
