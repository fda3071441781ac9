"""How values, tables, logs and progress read, whatever is in them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_project import shown_on

from clusterduck import wording
from clusterduck.cli.output import Output
from clusterduck.cli.progress import LINE_INTERVAL_S, Progress
from clusterduck.cli.table import Column, draw, width
from clusterduck.cli.tail import LogTail, start_of_last_lines
from clusterduck.errors import UnsafePathError


@given(st.text())
def test_what_is_made_visible_holds_no_command_and_is_one_line(text: str) -> None:
    shown = wording.visible(text)
    assert shown.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    assert len(shown.splitlines()) <= 1
    if text.isascii() and text.isprintable():
        assert shown == text


def test_harmful_characters_are_shown_as_escapes() -> None:
    assert wording.visible("a\x1b[31mb\n\x9b\u202e\ud800[/oops]é") == r"a\x1b[31mb\n\x9b\u202e\ud800[/oops]é"
    assert wording.visible_lines("a\tb\r\n\x1b]0;x\x07") == "a\tb\r\n\\x1b]0;x\\x07"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0.0 s"),
        (12.34, "12.3 s"),
        (298, "4:58"),
        (3723, "1:02:03"),
        (183845, "2d 03:04"),
        (-3, "0.0 s"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


def test_sizes_and_ids() -> None:
    assert [wording.size(n) for n in (None, 812, 3.4 * 1024**3, 5000 * 1024**4)] == [
        "",
        "812 B",
        "3.4 GiB",
        "5000.0 TiB",
    ]
    assert wording.ids([0, 1, 2, 3, 8, 10, 11]) == "0-3,8,10,11"
    assert wording.ids(["0", "1", "2", "GPU-12\x1b", "MIG-a"]) == r"0-2,GPU-12\x1b,MIG-a"
    assert wording.ids([]) == ""


def test_times_go_there_and_back() -> None:
    assert wording.iso(wording.seconds_of("2026-11-24T13:45:06.789Z")) == "2026-11-24T13:45:06.789Z"
    assert wording.seconds_of("soon") is None


def test_json_has_no_word_for_nan() -> None:
    value = wording.finite({"a": [float("nan"), float("-inf"), 1.5, {"b": float("inf")}], "c": None})
    assert json.loads(json.dumps(value, allow_nan=False)) == {
        "a": ["NaN", "-Infinity", 1.5, {"b": "Infinity"}],
        "c": None,
    }


def test_a_table_is_aligned_left_whole_in_a_file_and_cut_to_a_terminal() -> None:
    columns = [Column("run"), Column("n", right=True), Column("empty"), Column("reason")]
    rows = [["a/1", "7", "", "x" * 90], ["漢字/2", "1234", "", "short"]]
    whole = draw(columns, rows)
    assert whole == [
        "run        n  reason",
        "a/1        7  " + "x" * 90,
        "漢字/2  1234  short",
    ]
    narrow = draw(columns, rows, available=40)
    assert [width(line) for line in narrow] == [20, 40, 19]
    assert narrow[1].endswith("…")
    assert max(width(line) for line in draw(columns, rows, available=5)) <= 26  # no column vanishes


def test_states_are_coloured_only_where_wanted_and_the_word_stays() -> None:
    columns = [Column("state", state=True), Column("x")]
    assert draw(columns, [["FAILED", "a"]], colour=True)[1] == "\x1b[31mFAILED\x1b[0m  a"
    assert draw(columns, [["FAILED", "\x1b[31m"]])[1] == r"FAILED  \x1b[31m"


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_without_a_terminal_or_where_it_is_unwanted(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert not Output().colour
    monkeypatch.setattr("sys.stdout", Terminal())
    assert Output().colour
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not Output().colour


def test_a_log_is_read_as_it_comes_moves_and_shrinks(tmp_path: Path) -> None:
    log, moved = tmp_path / "a.log", tmp_path / "run" / "attempt-1.log"
    tail = LogTail(log)
    assert list(tail.read()) == [] and not tail.found
    log.write_bytes(b"one\ntw")
    assert list(tail.read()) == [b"one\ntw"] and tail.found
    assert list(tail.read()) == []
    moved.parent.mkdir()
    os.rename(log, moved)
    assert list(tail.read()) == []
    tail.moved_to(moved)
    with moved.open("ab") as file:
        file.write(b"o\n\x00\xff")
    assert list(tail.read()) == [b"o\n\x00\xff"]
    moved.write_bytes(b"new\n")
    assert list(tail.read()) == [b"new\n"]


def test_a_log_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UnsafePathError, match="is not a file"):
            list(LogTail(path).read())


@given(st.lists(st.text(alphabet="ab", max_size=3), max_size=8), st.booleans(), st.integers(0, 10))
def test_the_last_lines_are_what_splitlines_says(lines: list[str], ends: bool, wanted: int) -> None:
    data = "\n".join(lines).encode() + (b"\n" if ends and lines else b"")
    fd = os.memfd_create("log")
    try:
        os.write(fd, data)
        start = start_of_last_lines(fd, len(data), wanted)
    finally:
        os.close(fd)
    expected = data.splitlines(keepends=True)[-wanted:] if wanted else []
    assert data[start:] == b"".join(expected)


def test_the_last_lines_of_a_long_log_are_found_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"%d %s\n" % (n, b"x" * (n % 977)) for n in range(3000)))
    assert b"".join(LogTail(path, last_lines=500).read()) == b"".join(path.read_bytes().splitlines(True)[-500:])


def test_progress_in_a_file_is_now_and_then_a_line() -> None:
    now = 0.0
    stream = io.StringIO()
    progress = Progress("sweep-ab2de", stream, clock=lambda: now)
    for second in range(25):
        now = float(second)
        progress.update(second, 60, 4, second // 10)
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "sweep-ab2de: 0 of 60 runs done, 4 running",
        f"sweep-ab2de: {int(LINE_INTERVAL_S)} of 60 runs done, 4 running, 1 failed",
        "sweep-ab2de: 20 of 60 runs done, 4 running, 2 failed",
        "sweep-ab2de: 24 of 60 runs done, 4 running, 2 failed",
    ]


def test_progress_on_a_terminal_is_a_bar_without_markup() -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as stream:
        progress = Progress("[bold]x[/oops]", stream)
        progress.update(3, 60, 4, 1)
        progress.close()
    assert b"[bold]x[/oops]" in shown_on(leader)
