"""How the views look at 80x24 and 200x50, in light and dark, to the letter and to the colour.

The ledger and the clock stand still, so each view comes to look one way only, whenever it is looked at; that is waited
for. ``RENEW_SNAPSHOTS=1 pytest tests/tui/test_snapshots.py`` writes down how they look now.
"""

from __future__ import annotations

import os
import re
import string
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboards import Open, Opened, Slurm, until
from journals_builder import SweepBuilder
from rich.color import Color, ColorTriplet
from textual.filter import Monochrome

VIEWS = {"1": "overview", "2": "nodes", "3": "timeline", "4": "runs", "5": "run", "6": "activity"}

SNAPSHOTS = Path(__file__).with_name("snapshots")

#: What stands there once all of a view is there.
SEEN = {"1": "Jobs of train-bb3fg", "2": "3 of 4", "3": "node7/3", "4": "T TIMEOUT", "5": "attempt 1", "6": "job 9000"}

#: What is no writing.
DRAWN = " ─░█▌▏▎▍▋▊▉▁▂▃▄▅▆▇"


@pytest.fixture
def _still() -> Iterator[None]:
    """A clock that stands, in UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        patch.setattr(time, "time", lambda: 1_760_000_230.0)
        yield
    time.tzset()


@pytest.fixture
def _sweeps(project: Path, monkeypatch: pytest.MonkeyPatch, slurm: Slurm, _still: None) -> None:
    """A sweep that is over and one that is at work, at fixed times and in folders of fixed names."""
    monkeypatch.chdir(project)
    slurm("echo '9000|RUNNING|1760000003|1760000100|57:50|1|None'")
    over = SweepBuilder(Path(), "train-aa2de", start=1_759_900_000.0)
    over.write_all(runs=40)
    live = SweepBuilder(Path(), "train-bb3fg", start=1_760_000_000.0)
    live.write(live.launch_journal(), live.launch(12))
    at = live.start + 100
    events = [live.agent_started(at, "node7")]
    for run in range(4):
        state = "TIMEOUT" if run == 3 else "COMPLETED"
        events += [live.started(at + 1, run, slot=run), live.ended(at + 31 + run, run, state=state, started_at=at + 1)]
    events += [live.started(at + 40 + run, run, slot=run - 4) for run in (4, 5, 6)]
    events += [live.beat(at + second, 3) for second in range(10, 125, 10)]
    live.write(live.agent_journal(), events, close=False)


async def choose_a_run(it: Opened) -> None:
    """Wait for all that is read beside the views, look at the failures, and choose the run that timed out."""
    await until(lambda: [job.state for job in it.app.known.jobs.values()] == ["RUNNING"], it.pilot)
    await it.press("4")
    await it.see("R RUNNING", "node7/2")
    await it.press("g", "j", "j", "j")


def picture(it: Opened) -> str:
    """The screen but for the footer, which is Textual's: letters, then a letter for each style, then those."""
    names: dict[str, str] = {}
    letters, styles = [], []
    for strip in it.app.screen._compositor.render_strips()[:-1]:
        cells = []
        for segment in strip.apply_filter(it.app._filters[0], it.app.background_colors[0]):
            style = segment.style
            parts = [name for name in ("bold", "dim", "underline", "reverse") if style and getattr(style, name)]
            if style is not None and style.color is not None and segment.text.strip():
                parts += ["drawn"] * (not segment.text.strip(DRAWN)) + [style.color.get_truecolor().hex]
            if style is not None and style.bgcolor is not None:
                parts.append(f"on {style.bgcolor.get_truecolor(foreground=False).hex}")
            name = names.setdefault(" ".join(parts), string.ascii_letters[len(names)])
            cells.append(name * segment.cell_length)
        letters.append("".join(segment.text for segment in strip).rstrip())
        styles.append("".join(cells))
    legend = [f"{name} {style}" for style, name in names.items()]
    return "\n".join([*letters, "", *styles, "", *legend, ""])


@pytest.mark.usefixtures("_sweeps")
@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_every_view_looks_as_it_did(opened: Open, size: tuple[int, int]) -> None:
    async with opened(size=size) as it:
        await choose_a_run(it)
        for theme in ("dark", "light"):
            it.app.theme = f"textual-{theme}"
            for key, view in VIEWS.items():
                await it.press(key)
                file = SNAPSHOTS / f"{view}-{size[0]}x{size[1]}-{theme}.txt"
                if "RENEW_SNAPSHOTS" in os.environ:
                    await it.see(SEEN[key])
                    await renew(it, file)
                await become(it, file.read_text(encoding="utf-8"))


async def become(it: Opened, wanted: str) -> None:
    """Wait until the view looks like this; tell the difference if it never does."""
    try:
        await it.fact(lambda: picture(it) == wanted)
    except AssertionError:
        assert picture(it) == wanted
        raise


async def renew(it: Opened, file: Path) -> None:
    """Write down what is seen once it has not changed for a second."""
    seen, same = "", 0
    while same < 40:
        await it.pilot.pause(0.025)
        before, seen = seen, picture(it)
        same = same + 1 if seen == before else 0
    file.parent.mkdir(exist_ok=True)
    file.write_text(seen, encoding="utf-8")


@pytest.mark.parametrize("file", sorted(SNAPSHOTS.glob("*.txt")), ids=lambda file: str(file.stem))
def test_what_is_written_can_be_read(file: Path) -> None:
    legend = file.read_text(encoding="utf-8").rpartition("\n\n")[2]
    found = re.findall("^. ((?:(?!dim|drawn).)*)(#[0-9a-f]{6}) on (#[0-9a-f]{6})$", legend, re.MULTILINE)
    assert len(found) > 3
    for _, *colours in found:
        front, back = (Color.parse(colour).get_truecolor() for colour in colours)
        assert contrast(front, back) > 1.9, colours


def contrast(one: ColorTriplet, other: ColorTriplet) -> float:
    """By how much the lighter one is lighter, from 1 to 21. Source: WCAG 2, relative luminance."""

    def luminance(colour: ColorTriplet) -> float:
        parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in colour.normalized]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.usefixtures("_sweeps")
async def test_without_colours_nothing_is_lost(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with opened() as it:
        assert any(isinstance(one, Monochrome) for one in it.app._filters)
        await it.press("4")
        await it.see("T TIMEOUT", "R RUNNING", "C COMPLETED")
