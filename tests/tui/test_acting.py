"""Acts: asked about once, naming counts and effects; carried out, told, and on record."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from dashboards import Open, Slurm
from journals_builder import SweepBuilder
from textual.widgets import Checkbox, Input

from clusterduck.events import Heartbeat
from clusterduck.model import Attempt
from clusterduck.queue import Claims
from clusterduck_tui.widgets.runs import Runs

APP = """
import pathlib, sys, time
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    gate = pathlib.Path(__file__).parent / "mended"
    if config.x == 2 and not gate.exists():
        raise ValueError("x is two")
    print("all is well")
    return config.x * 1.5

main()
"""


@pytest.fixture
def waiting(project: Path) -> SweepBuilder:
    """Eight runs whose launch planned them and whose job was never submitted: nobody will take them."""
    built = SweepBuilder(project, "train-ee6jk")
    launch = [event for event in built.launch(8) if event.name not in ("batch", "submitted")]
    built.write(built.launch_journal(), launch)
    return built


async def test_cancel_is_asked_about_and_no_means_no(waiting: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.press("4")
        await it.see("PENDING")
        await it.press("space", "space", "c")
        await it.see("Cancel runs 0, 1 of train-ee6jk?", "2 runs will never start.")
        await it.press("n")
        await it.miss("never start")
        assert Claims(waiting.paths.claims, "").taken() == set()
        assert it.app.known.marked == {0, 1}


async def test_cancel_marked_runs_then_the_sweep(waiting: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.press("4")
        await it.see("PENDING")
        await it.press("space", "space", "c")
        await it.see("2 runs will never start.")
        await it.press("enter")
        await it.see("2 runs cancelled.", "X CANCELLED")
        assert Claims(waiting.paths.claims, "").taken() == {Attempt(0, 1), Attempt(1, 1)}
        assert it.app.known.marked == set()
        await it.press("1", "c")
        await it.see("Cancel the whole sweep train-ee6jk?", "6 runs will never start.")
        await it.press("y")
        await it.see("6 runs cancelled.", "8/8")
        await it.press("c")
        await it.see("There is nothing to cancel.")
        await it.press("6")
        await it.see("cancel", "cancelled by")


async def test_what_cannot_be_done_is_said(finished: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.see("24/24")
        await it.press("r")  # there is no payload to send again
        await it.see("Requeue all failed runs of train-aa2de")
        assert len(it.app.screen_stack) == 2  # nothing is asked
        await it.press("6")
        await it.see("Requeue all failed runs of train-aa2de: ")


async def test_an_act_that_raises_is_a_notice(waiting: SweepBuilder, opened: Open) -> None:
    async with opened() as it:
        await it.press("4")
        await it.see("PENDING")
        waiting.paths.acts.chmod(0o777)
        await it.press("c")
        await it.see("can be written by other users")
        waiting.paths.acts.chmod(0o700)
        await it.press("c")
        await it.see("1 run will never start.")


async def test_requeue_a_real_run_and_see_it_complete(
    project: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / "app.py").write_text(APP)
    command = [sys.executable, "app.py", "--multirun", "hydra/launcher=clusterduck_local", "+x=1,2,3"]
    command.append("hydra.launcher.wait_for_completion=true")
    done = subprocess.run(command, check=False, cwd=project, capture_output=True, text=True, timeout=120)
    assert "x is two" in done.stderr
    (project / "mended").touch()
    async with opened() as it:
        await it.see("3/3")
        await it.press("4", "f")
        runs = it.app.main.view("runs")
        assert isinstance(runs, Runs)
        await it.fact(lambda: list(runs.table.order) == [1])
        await it.press("space", "r")
        await it.see("1 failed run: 1 in a new job.", "timeout_min")
        await it.press("enter")
        await it.see("1 run in job")
        await it.press("f")
        await it.fact(lambda: it.app.known.sweep is not None and it.app.known.sweep.counts["COMPLETED"] == 3)
        await it.press("g", "j", "enter")
        await it.see("attempt 2 of 2", "returned  3")
        await it.press("G")
        await it.see("ValueError: x is two")
        await it.press("t")
        await it.see("all is well")
        await it.press("left_square_bracket")
        await it.see("attempt 1 of 2", "ValueError: x is two")


async def test_drain_says_what_goes_on_and_what_stays(live: SweepBuilder, opened: Open, slurm: Slurm) -> None:
    slurm(f"echo '9000|RUNNING|{live.start + 3:.0f}|{live.start + 100:.0f}|57:50|1|None'")
    inbox = live.agent_journal().parent / "inbox"
    assert Claims(live.paths.claims, "0-0/0.0").claim(Attempt(6, 1)), "ahead of time: it gives back what has not begun"
    async with opened() as it:
        await it.see("9000", "R RUNNING")
        await it.press("b", "d")
        await it.see("Drain job 9000 of train-bb3fg?", "3 runs go on to the end, then the job ends.")
        await it.see("It takes nothing more: 2 runs waiting for it stay in the queue.")
        await it.press("escape")
        await it.miss("Drain job")
        assert not inbox.exists()
        await it.press("d")
        await it.see("Drain job 9000")
        await it.press("enter")
        await it.fact(lambda: inbox.exists() and any(not path.name.startswith(".") for path in inbox.iterdir()))
        live.write(live.agent_journal(), [Heartbeat(time=time.time(), busy=3, draining=True)], close=False)
        await it.see("finishes what runs", "nothing more")
        await it.press("6")
        await it.see("Drain job 9000 of train-bb3fg: ", "drain")


async def test_the_form_says_what_its_changes_mean_and_starts_afresh(
    project: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / "app.py").write_text(
        APP.replace("if config.x == 2 and", "while config.x == 2 and").replace(
            "raise ValueError", "time.sleep(0.05)  #"
        )
    )
    command = [sys.executable, "app.py", "--multirun", "hydra/launcher=clusterduck_local", "+x=1,2"]
    command += ["hydra.launcher.wait_for_completion=true", "hydra.launcher.run_timeout_min=0.1"]
    command += ["hydra.launcher.grace_s=0"]
    subprocess.run(command, check=False, cwd=project, capture_output=True, text=True, timeout=120)
    (project / "mended").touch()
    async with opened(size=(100, 30)) as it:
        await it.see("2/2")
        await it.press("r")
        await it.see("Requeue all failed runs of app-", "1 failed run: 1 in a new job.", "was 60")
        form = it.app.screen
        assert form.query_one("#timeout_min", Input).value == "120"
        form.query_one("#others", Input).value = "nonsense=1"
        await it.see("nonsense is no option")
        form.query_one("#others", Input).value = ""
        await it.see("1 failed run: 1 in a new job.")
        await it.see("▐ ▌ goes on in the run's folder")
        form.query_one("#fresh", Checkbox).value = True
        await it.see("▐X▌ moves the run's folder aside and starts afresh")
        await it.press("ctrl+s")
        await it.see("1 run in job")
        await it.fact(lambda: it.app.known.sweep is not None and it.app.known.sweep.counts["COMPLETED"] == 2)
    (aside,) = project.glob("multirun/**/1.attempt-1")
    assert (aside / "attempt-1.log").exists()
    assert (aside.with_name("1") / "attempt-2.log").exists()
