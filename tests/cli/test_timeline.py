"""The picture of a sweep's slots: a file that stands alone, and in which data stays data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from journals_builder import SweepBuilder

from clusterduck import timeline
from clusterduck.ledger.history import Lane


def clusterduck(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "clusterduck.cli.main", *arguments]
    return subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=180
    )


def test_the_command_writes_svg_and_html(tmp_path: Path) -> None:
    SweepBuilder(tmp_path).write_all()
    for name in ("sweep.svg", "sweep.html"):
        done = clusterduck(tmp_path, "timeline", "@last", "-o", name)
        assert done.returncode == 0, done.stderr
        assert "8 slots of train-x7k2p" in done.stderr
    root = ElementTree.parse(tmp_path / "sweep.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar.get("class") for bar in root.iter(f"{space}rect") if bar.find(f"{space}title") is not None]
    assert (bars.count("COMPLETED"), bars.count("FAILED")) == (21, 3)
    page = (tmp_path / "sweep.html").read_text()
    assert page.startswith("<!doctype html>") and "run 6, attempt 1: FAILED" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # nothing comes from elsewhere
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".sweep")) == []


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    SweepBuilder(tmp_path).write_all()
    done = clusterduck(tmp_path, "timeline", "@last", "-o", "sweep.png")
    assert done.returncode == 2 and "ends in .svg or .html" in done.stderr and "Traceback" not in done.stderr


def test_hostile_names_and_an_empty_sweep() -> None:
    lane = Lane("0-0", 0, 0, 0, "<script>\x1b\ud800", 10.0, None, ((1, 1, "NEW_STATE", 11.0, None),))
    ElementTree.fromstring(timeline.svg("a&b<", [lane], now=20.0))
    assert "<script>" not in timeline.html("a&b<", [lane], now=20.0)
    ElementTree.fromstring(timeline.svg("empty", []))


def test_a_bar_that_stands_for_several_runs_says_so() -> None:
    bars = ((5, 1, "FAILED", 100.3, 129.7), (90, 1, "COMPLETED", 130.0, 300.0))
    drawn = ElementTree.fromstring(timeline.svg("x", [Lane("0-0", 0, 0, 0, "n", 100.0, 400.0, bars, piece=30.0)]))
    titles = [title.text or "" for title in drawn.findall(".//{*}rect/{*}title")]
    assert titles[0].startswith("run 5, attempt 1: FAILED, one of several in 29 s from ")
    assert titles[1].startswith("run 90, attempt 1: COMPLETED, 170 s from ")
    assert [text.text for text in drawn.findall(".//{*}text[@class='in']")] == ["F", "C90"]


@pytest.mark.parametrize("seconds", [0.001, 60.0, 30 * 86400.0])
def test_any_length_of_time(seconds: float) -> None:
    lane = Lane("0-0", 0, 0, 0, "n", 1e9, 1e9 + seconds, ((1, 1, "COMPLETED", 1e9, 1e9 + seconds),))
    assert len(timeline.svg("x", [lane])) < 20_000
