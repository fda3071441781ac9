"""Rows of a log anywhere in it: the same whichever way they are read, and at once however large it is."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from dashboards import Open, make_live
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterduck.events import AttemptLocated
from clusterduck_tui import logfile
from clusterduck_tui.logfile import read_before, read_from, search, shown
from clusterduck_tui.widgets.logview import LogView

LINES = st.lists(st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")), max_size=40)


@settings(deadline=None, max_examples=60)
@given(lines=LINES, ends=st.booleans(), count=st.integers(1, 7))
def test_forwards_and_backwards_find_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ends: bool, count: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends else b""))
    forwards = []
    at = 0
    while rows := read_from(path, at, count).rows:
        forwards += rows
        at = rows[-1].end
    backwards = []
    before: int | None = None
    while rows := read_before(path, before, count).rows:
        backwards[:0] = rows
        before = rows[0].start
    assert forwards == backwards
    assert sum(row.end - row.start for row in forwards) == path.stat().st_size


def test_a_very_long_line_is_shown_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 1_000_000 + b"\nend\n")
    assert [row.text for row in read_before(path, None, 2).rows][-1] == "end"
    rows = read_before(path, None, 100).rows
    assert all(a.end == b.start for a, b in itertools.pairwise(rows))
    assert len(read_from(path, 0, 5).rows[0].text) == logfile.LONGEST


def test_search_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "SEARCH_BLOCK", 4096)
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(5000)))
    pattern = re.compile(b"LINE 44$", re.IGNORECASE | re.MULTILINE)
    at = search(path, pattern, 0, lambda: False)
    assert at is not None and read_from(path, at, 1).rows[0].text == "line 44"
    assert search(path, pattern, at + 1, lambda: False) is None
    end = path.stat().st_size
    assert search(path, re.compile(b"line 44"), end, lambda: False, backward=True) == search(
        path, re.compile(b"line 4499"), 0, lambda: False
    )
    assert search(path, pattern, 0, lambda: True) is None


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"\x1b[1;31mERROR\x1b[0m x\r\n", "ERROR x"),
        (b" 1 %\r 99 %\n", " 99 %"),
        (b"a\tb", "a       b"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"\xff\xe2\x82", "\N{REPLACEMENT CHARACTER}" * 2),
    ],
)
def test_a_rows_text(line: bytes, text: str) -> None:
    assert shown(line) == text


def bytes_read() -> int:
    """How much this process has read from files so far, cached or not; see proc_pid_io(5)."""
    values = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(values["rchar"])


async def test_of_two_gigabytes_little_is_read(project: Path, opened: Open) -> None:
    built = make_live(project)
    folder = built.paths.sweep_dir / "3"
    folder.mkdir()
    log = folder / "attempt-1.log"
    with log.open("wb") as file:
        file.write(b"the beginning\n")
        file.truncate(2 * 1024**3)
        file.seek(0, 2)
        file.write(b"\nValueError: boom\nthe end\n")
    located = AttemptLocated(time=built.start + 140, run=3, attempt=1, run_dir=str(folder), log=str(log))
    built.write(built.agent_journal(), [located], close=False)
    async with opened() as it:
        await it.press("4")
        await it.see("R RUNNING")
        await it.press("j", "j", "j", "enter")
        await it.see("train-bb3fg/3", "attempt-1.log")
        before = bytes_read()
        await it.press("t")
        await it.see("the end", "2.0 GiB")
        await it.press("g")
        await it.see("the beginning")
        assert bytes_read() - before < 100e6
        with log.open("ab") as file:
            file.write(b"more\n")
        await it.press("F")
        await it.see("more", "following")


async def test_search_in_a_log_and_its_first_error(project: Path, opened: Open) -> None:
    built = make_live(project)
    folder = built.paths.sweep_dir / "3"
    folder.mkdir()
    log = folder / "attempt-1.log"
    lines = [f"step {number}" for number in range(3000)]
    lines[1500] = "KeyError: 'first'"
    lines[2000] = "RuntimeError: second"
    log.write_text("\n".join(lines) + "\n")
    located = AttemptLocated(time=built.start + 140, run=3, attempt=1, run_dir=str(folder), log=str(log))
    built.write(built.agent_journal(), [located], close=False)
    async with opened() as it:
        await it.press("4")
        await it.see("R RUNNING")
        await it.press("j", "j", "j", "enter", "t")
        await it.see("step 2999")
        await it.press("e")
        await it.see("KeyError: 'first'", "step 1501")
        await it.press("slash")
        await it.pilot.press(*"second", "enter")
        await it.see("RuntimeError: second", "step 2001")
        log = it.app.main.query_one("#log", LogView)
        await it.fact(lambda: log._found is not None and log._rows[0].start < log._found)  # what is above is read later
        await it.press("k")
        await it.see("step 1999")
        await it.press("slash")
        await it.pilot.press(*"nowhere", "enter")
        await it.see("not found")


async def test_a_log_that_is_not_there_yet(project: Path, opened: Open) -> None:
    built = make_live(project)
    folder = built.paths.sweep_dir / "3"
    log = folder / "attempt-1.log"
    located = AttemptLocated(time=built.start + 140, run=3, attempt=1, run_dir=str(folder), log=str(log))
    built.write(built.agent_journal(), [located], close=False)
    async with opened() as it:
        await it.press("4")
        await it.see("R RUNNING")
        await it.press("j", "j", "j", "enter", "t")
        await it.see("no log yet")
        folder.mkdir()
        log.write_text("here it is\n")
        await it.see("here it is")
        log.write_text("anew\n")
        await it.see("anew")
        await it.miss("here it is")
