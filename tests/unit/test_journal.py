"""Journals: what was appended is found again, whole and once, or at least once; and nothing else is believed."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clusterduck import events, journal
from clusterduck.errors import JournalError
from clusterduck.events import Event, JournalClosed, JournalOpened
from clusterduck.journal import JournalWriter


def ends(*runs: int) -> list[Event]:
    return [events.AttemptEnded(time=float(run), run=run, attempt=1, state="COMPLETED") for run in runs]


def read_all(path: Path, **options: Any) -> list[Event]:
    found: list[Event] = []
    offset, more = 0, True
    while more:
        chunk = journal.read(path, offset, **options)
        found += chunk.events
        offset, more = chunk.offset, chunk.more
    return found


def runs_in(found: list[Event]) -> list[int]:
    return [event.run for event in found if isinstance(event, events.AttemptEnded)]


def failing(call: Callable[..., Any], *, times: int = 1, partial: int | None = None) -> Callable[..., Any]:
    """A stand-in for ``os.write`` or ``os.fsync`` that fails the first times, perhaps after writing a part."""
    left = [times]

    def stand_in(fd: int, *arguments: Any) -> Any:
        if left[0] == 0:
            return call(fd, *arguments)
        left[0] -= 1
        if partial is not None:
            call(fd, bytes(arguments[0])[:partial])
        raise OSError(errno.ENOSPC, "No space left on device")

    return stand_in


@pytest.fixture
def writer(tmp_path: Path) -> JournalWriter:
    return JournalWriter(tmp_path, "train-x7k2p", "agent 0-0/0.0")


def test_written_and_read_again(writer: JournalWriter, tmp_path: Path) -> None:
    writer.append(ends(1, 2))
    assert not list(tmp_path.iterdir()), "appending touches no file"
    assert writer.pending == 2
    writer.flush(sync=True)
    assert writer.pending == 0
    writer.append(ends(3))
    writer.close()
    found = read_all(tmp_path / "journal-0.jsonl")
    assert isinstance(found[0], JournalOpened) and found[0].sweep == "train-x7k2p"
    assert runs_in(found) == [1, 2, 3]
    assert isinstance(found[-1], JournalClosed)
    assert (tmp_path / "journal-0.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_second_writer_never_writes_into_the_first_ones_file(writer: JournalWriter, tmp_path: Path) -> None:
    writer.append(ends(1))
    writer.flush(sync=False)
    other = JournalWriter(tmp_path, "train-x7k2p", "agent 0-0/0.0")
    other.append(ends(2))
    other.close()
    writer.close()
    assert runs_in(read_all(tmp_path / "journal-0.jsonl")) == [1]
    assert runs_in(read_all(tmp_path / "journal-1.jsonl")) == [2]


@pytest.mark.parametrize("partial", [0, 1, 9, 40, 150, 250])
def test_after_a_failed_write_all_is_written_again_on_a_new_line(
    writer: JournalWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partial: int
) -> None:
    writer.append(ends(1))
    writer.flush(sync=True)
    writer.append(ends(2, 3))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(os.write, partial=partial))
        with pytest.raises(OSError, match="No space"):
            writer.flush(sync=True)
    assert writer.pending == 2
    writer.append(ends(4))
    writer.close()
    path = tmp_path / "journal-0.jsonl"
    found: list[Event] = []
    chunk = journal.read(path)
    while True:
        found += chunk.events
        if not chunk.more and chunk.bad_at is None:
            break
        chunk = journal.read(path, chunk.offset, skip_bad_at=chunk.bad_at)
    assert sorted(set(runs_in(found))) == [1, 2, 3, 4]
    assert isinstance(found[-1], JournalClosed)


def test_after_a_failed_fsync_a_new_segment_repeats_what_was_not_acknowledged(
    writer: JournalWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.append(ends(1))
    writer.flush(sync=True)
    writer.append(ends(2))
    writer.flush(sync=False)
    writer.append(ends(3))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        with pytest.raises(OSError, match="No space"):
            writer.flush(sync=True)
    assert writer.pending == 2
    writer.close()
    assert runs_in(read_all(tmp_path / "journal-1.jsonl")) == [2, 3]
    assert 1 in runs_in(read_all(tmp_path / "journal-0.jsonl"))


def test_closing_may_be_tried_again(writer: JournalWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.append(ends(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(os.write, times=2))
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                writer.close()
    writer.close()
    found = read_all(tmp_path / "journal-0.jsonl")
    assert runs_in(found) == [1]
    assert [type(event) for event in found].count(JournalClosed) == 1


def test_a_last_line_without_its_end_is_left_for_later(tmp_path: Path) -> None:
    lines = [journal.encode(event) for event in ends(1, 2)]
    path = tmp_path / "journal-0.jsonl"
    path.write_bytes(lines[0] + lines[1][:-1])
    chunk = journal.read(path)
    assert (runs_in(chunk.events), chunk.offset, chunk.bad_at, chunk.more) == ([1], len(lines[0]), None, False)
    path.write_bytes(lines[0] + lines[1])
    assert runs_in(journal.read(path, chunk.offset).events) == [2]


def test_a_bad_line_stops_the_reading_where_good_ones_follow(tmp_path: Path) -> None:
    lines = [journal.encode(event) for event in ends(1, 2, 3)]
    lines[1] = lines[1].replace(b"COMPLETED", b"completed")
    path = tmp_path / "journal-0.jsonl"
    path.write_bytes(b"".join(lines))
    chunk = journal.read(path)
    assert (runs_in(chunk.events), chunk.offset, chunk.bad_at) == ([1], len(lines[0]), len(lines[0]))
    assert runs_in(journal.read(path, chunk.offset, skip_bad_at=chunk.bad_at).events) == [3]
    path.write_bytes(b"".join(lines[:2]))  # nothing good follows: it may yet become whole
    chunk = journal.read(path, len(lines[0]), skip_bad_at=len(lines[0]))
    assert (chunk.events, chunk.offset, chunk.bad_at) == ([], len(lines[0]), None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(limit=st.integers(1, 700), blank=st.lists(st.integers(0, 19), max_size=4))
def test_any_chunk_size_gives_the_same_events(tmp_path: Path, limit: int, blank: list[int]) -> None:
    lines = [journal.encode(event) for event in ends(*range(20))]
    for place in blank:
        lines[place] = b"\n" + lines[place]  # a writer's fresh start
    path = tmp_path / "journal-0.jsonl"
    path.write_bytes(b"".join(lines))
    assert runs_in(read_all(path, limit=limit)) == list(range(20))


@given(data=st.binary(max_size=60).filter(lambda line: b"\n" not in line))
def test_other_bytes_are_no_event(data: bytes) -> None:
    assert journal.decode(data) is None


def test_flipping_any_bit_of_a_line_is_noticed(tmp_path: Path) -> None:
    line = journal.encode(ends(1)[0])[:-1]
    event = journal.decode(line)
    assert event == ends(1)[0]
    for place in range(len(line)):
        for bit in range(8):
            flipped = bytearray(line)
            flipped[place] ^= 1 << bit
            assert journal.decode(bytes(flipped)) in (None, event)  # an upper-case checksum says the same


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal-0.jsonl"
    newer = JournalOpened(version=events.VERSION + 1, sweep="s", writer="w")
    path.write_bytes(journal.encode(newer) + journal.encode(ends(1)[0]))
    with pytest.raises(JournalError, match=r"newer clusterduck .* upgrade clusterduck here"):
        journal.read(path)


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(journal.encode(ends(1)[0]))
    (tmp_path / "journal-0.jsonl").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        journal.read(tmp_path / "journal-0.jsonl")


def test_what_is_no_event_is_named_among_lines_that_are(tmp_path: Path) -> None:
    """Lines are parsed together where they can be: two in one, JSON that is no event, or no text, do not pass."""
    good = journal.encode(events.LaunchEnded(time=2.0, launch=0))
    for bodies in ([b'{"e":"closed"},{"e":"closed"}'], [b"[1]"], [b'{"e":"started","time":1}'], [b"\xff"]):
        path = tmp_path / "journal-0.jsonl"
        path.write_bytes(good + b"".join(b"%08x %s\n" % (zlib.crc32(body), body) for body in bodies) + good)
        with pytest.raises(JournalError, match="not an event"):
            journal.read(path)
