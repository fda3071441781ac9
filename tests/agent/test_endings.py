"""However a run ends, it ends alone: its state and reason are right, its children are gone, no other run notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agent_bench import PATIENCE_S, until

from clusterduck.events import AgentEnded, AttemptEnded, AttemptLocated, Event
from clusterduck.journal import read
from clusterduck.paths import HIDDEN, SweepPaths
from clusterduck.result import read_job_return, read_report

HERE = Path(__file__).parent

#: How -> (state, words in the reason, exit code, signal, exception type)
ENDINGS: dict[str, tuple[str, str, int | None, int | None, str | None]] = {
    "returns": ("COMPLETED", "", 0, None, None),
    "raises": ("FAILED", "ValueError: no way", 1, None, "ValueError"),
    "exits_0": ("COMPLETED", "", 0, None, None),
    "exits_3": ("FAILED", "ended by sys.exit(3)", 3, None, "SystemExit"),
    "returns_nan": ("COMPLETED", "", 0, None, None),
    "exits_words": ("FAILED", "ended by sys.exit('these words')", 1, None, "SystemExit"),
    "exits_hard": ("FAILED", "exit code 5, without returning", 5, None, None),
    "killed": ("FAILED", "killed by SIGKILL", None, 9, None),
    "returns_much": ("COMPLETED", "", 0, None, None),
    "segfaults": ("FAILED", "killed by SIGSEGV", None, 11, None),
    "closes_all": ("COMPLETED", "", 0, None, None),
    "leaves_children": ("COMPLETED", "", 0, None, None),
    "returns_unpicklable": ("COMPLETED", "its return value, a _thread.lock, could not be pickled", 0, None, None),
    "raises_odd": ("FAILED", "CannotBeMadeAgain: 1 and 2", 1, None, "__main__.CannotBeMadeAgain"),
    "raises_lock": ("FAILED", "HoldsALock: it holds a lock", 1, None, "__main__.HoldsALock"),
    "raises_mute": ("FAILED", "CannotBeShown", 1, None, "__main__.CannotBeShown"),
    "raises_interrupt": ("FAILED", "KeyboardInterrupt", 1, None, "KeyboardInterrupt"),
    "child_speaks": ("COMPLETED", "", 0, None, None),
}


@dataclass
class Sweep:
    """A sweep that has ended, and what its agent's journal says."""

    folder: Path
    paths: SweepPaths
    events: list[Event]
    launcher: subprocess.CompletedProcess[str]

    def ended(self, how: str) -> AttemptEnded:
        run = list(ENDINGS).index(how)
        (event,) = [event for event in self.events if isinstance(event, AttemptEnded) and event.run == run]
        return event

    def run_dir(self, how: str) -> Path:
        return self.folder / "out" / str(list(ENDINGS).index(how))

    def log(self, how: str) -> str:
        return (self.run_dir(how) / "attempt-1.log").read_text()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    folder = tmp_path_factory.mktemp("endings")
    for name in ("endings_app.py", "endings_callback.py", "endings_conf"):
        (folder / name).symlink_to(HERE / name)
    launcher = subprocess.run(
        [
            *[sys.executable, "endings_app.py", "--multirun", "how=" + ",".join(ENDINGS), "hydra.sweep.dir=out"],
            *["hydra/launcher=clusterduck_local", "hydra.launcher.parallel_runs_per_node=3"],
            *["hydra.launcher.wait_for_completion=true", "hydra.launcher.resources_config={cpu: null}"],
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert (folder / "out" / HIDDEN).is_dir(), launcher.stderr
    roots = [entry for entry in (folder / "out" / HIDDEN).iterdir() if entry.is_dir() and not entry.is_symlink()]
    assert len(roots) == 1, launcher.stderr
    paths = SweepPaths(roots[0])
    events: list[Event] = []

    def agent_has_ended() -> bool:
        events[:] = [event for path in paths.journals() for event in read(path, limit=1 << 24).events]
        return any(isinstance(event, AgentEnded) for event in events)

    until(agent_has_ended, "the agent's end, some seconds after its last run's", PATIENCE_S)
    yield Sweep(folder, paths, events, launcher)
    for path in paths.results.iterdir():
        path.unlink()  # a gigabyte


@pytest.mark.parametrize("how", ENDINGS)
def test_state_and_reason(sweep: Sweep, how: str) -> None:
    event = sweep.ended(how)
    state, words, exit_code, number, exception = ENDINGS[how]
    assert event.state == state
    assert words in event.reason
    assert bool(words) == bool(event.reason)
    assert (event.exit_code, event.signal, event.exception_type) == (exit_code, number, exception)
    assert "\n" not in event.reason


def test_every_run_was_measured(sweep: Sweep) -> None:
    for how in ENDINGS:
        event = sweep.ended(how)
        assert event.peak_memory_bytes is not None
        assert event.peak_memory_bytes > 1 << 20
        assert event.cpu_time_s is not None
        assert event.started_at is not None
        assert event.time >= event.started_at


def test_return_values_are_recorded_where_they_are_json(sweep: Sweep) -> None:
    assert json.loads(str(sweep.ended("returns").return_value)) == {"loss": 0.25, "steps": [1, 2]}
    assert json.loads(str(sweep.ended("returns_nan").return_value)) == "nan"
    assert json.loads(str(sweep.ended("exits_0").return_value)) is None
    assert sweep.ended("returns_much").return_value is None
    assert sweep.ended("raises").return_value is None


def test_stdout_and_stderr_are_in_the_log_in_order(sweep: Sweep) -> None:
    log = sweep.log("child_speaks")
    assert log.index("run child_speaks speaks") < log.index("run child_speaks complains")
    assert log.index("run child_speaks complains") < log.index("a child speaks") < log.index("a child complains")
    assert "ValueError: no way" in sweep.log("raises")


def test_the_traceback_begins_with_the_users_own_frame_and_names_its_file(sweep: Sweep) -> None:
    traceback = sweep.ended("raises").traceback
    assert traceback is not None
    assert "run_job" not in traceback
    assert "endings_app.py" in traceback


def test_what_a_run_started_is_gone(sweep: Sweep) -> None:
    (listing,) = (sweep.folder / "children").iterdir()
    pids = [int(word) for word in listing.read_text().split()]
    assert len(pids) == 26
    for pid in pids:
        status = Path(f"/proc/{pid}/status")
        assert not status.exists() or "sleep" not in status.read_text()


def test_callbacks_are_called_inside_the_run_also_after_sys_exit(sweep: Sweep) -> None:
    for how, status in {
        "returns": "COMPLETED",
        "exits_0": "COMPLETED",
        "exits_3": "FAILED",
        "raises": "FAILED",
    }.items():
        assert (sweep.run_dir(how) / "job_started").exists()
        assert (sweep.run_dir(how) / "job_ended").read_text() == status


def test_what_hydra_sets_wins_and_that_is_said(sweep: Sweep) -> None:
    assert "hydra.job.env_set wins over what clusterduck had set for OMP_NUM_THREADS" in sweep.log("returns")


def test_every_run_that_could_left_a_result(sweep: Sweep) -> None:
    for number, how in enumerate(ENDINGS):
        path = sweep.paths.results / f"{number}.1.pkl"
        assert path.exists() == (how not in ("exits_hard", "killed", "segfaults")), how
        if path.exists():
            assert read_report(path)["state"] == ENDINGS[how][0]
    value: Any = read_job_return(sweep.paths.results / f"{list(ENDINGS).index('returns_much')}.1.pkl").return_value
    assert len(value) == 1 << 30


def test_runs_were_located_and_the_job_says_that_not_all_completed(sweep: Sweep) -> None:
    located = {event.run: event.run_dir for event in sweep.events if isinstance(event, AttemptLocated)}
    assert located == {run: str(run) for run in range(len(ENDINGS))}, "relative to the sweep's folder"
    (agent,) = [event for event in sweep.events if isinstance(event, AgentEnded)]
    assert agent.exit_code == 1
    completed = sum(ending[0] == "COMPLETED" for ending in ENDINGS.values())
    assert agent.reason == f"{completed} runs completed, {len(ENDINGS) - completed} did not"
    assert sweep.launcher.returncode != 0
