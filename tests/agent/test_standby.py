"""Runs that are prepared while their slot is busy: they begin as any other, and leave no trace if they never do."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_bench import PATIENCE_S, Bench, fork_server_of, until

from clusterduck.events import AttemptEnded, AttemptLocated, AttemptStarted, Event
from clusterduck.inbox import Request, post
from clusterduck.model import AgentId, Attempt

#: A config that is of a user's class, a resolver that asks the time, and a module that tells who imports it.
USERS = """
import dataclasses, os, time
import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
import heavy

STRUCTURED
OmegaConf.register_new_resolver("clock", lambda: time.time())

CONFIG_NAME = PRIMARY

@hydra.main(version_base=None, config_name=CONFIG_NAME)
def main(cfg):
    began = time.time()
    open(f"begun-{cfg.number}", "w").close()
    print("says", cfg.number)
    while cfg.number == 0 and not os.path.exists("go"):
        time.sleep(0.01)
    job = HydraConfig.get()
    return {
        "began": began, "imported": heavy.IMPORTED, "here": heavy.PID == os.getpid(), "clock": cfg.clock,
        "folder": job.runtime.output_dir, "num": job.job.num, "id": job.job.id, "slot": os.environ["CLUSTERDUCK_SLOT"],
        "cpus": sorted(os.sched_getaffinity(0)), "cwd": os.getcwd(), "tmpdir": os.environ["TMPDIR"],
        "tmpdir_exists": os.path.isdir(os.environ["TMPDIR"]), "class": OmegaConf.get_type(cfg).__name__,
        "random": __import__("random").random(),
    }

if __name__ == "__main__":
    main()
"""

STRUCTURED = """
@dataclasses.dataclass
class Conf:
    number: int = 0
    clock: float = "${clock:}"

ConfigStore.instance().store(name="mine", node=Conf)
"""

HEAVY = "import os, time\nIMPORTED = time.time()\nPID = os.getpid()\nprint('imported', flush=True)\n"


def standby_of(agent: Any, *runs: int) -> psutil.Process:
    """The process that waits for its run to begin."""

    def find() -> list[psutil.Process]:
        found = []
        for child in psutil.Process(agent.pid).children(recursive=True):
            try:
                waits = os.readlink(f"/proc/{child.pid}/fd/1").startswith("/memfd:standby")
                if child.pid not in runs and waits and child.status() == psutil.STATUS_SLEEPING:
                    found.append(child)
            except (OSError, psutil.NoSuchProcess):
                continue
        return found

    return until(find, "the next run is prepared")[0]


def trace_of(bench: Bench, run: int) -> list[object]:
    """Whatever is on disk or on record of a run."""
    files = [path for path in bench.folder.rglob("*") if path.name.startswith((f"{run}.1", f".{run}.1"))]
    events = [e for e in bench.events(Event) if getattr(e, "run", None) == run]  # type: ignore[arg-type]
    return [*files, *events, *filter(Path.exists, [bench.folder / "out" / str(run)])]


def test_a_prepared_run_that_is_not_wanted_any_more_leaves_no_trace(bench: Bench) -> None:
    bench.plan("waits", "returns", "returns")
    agent = bench.start(slots=1)
    running = bench.running(0)
    standby = standby_of(agent, running)
    agent.send_signal(signal.SIGTERM)
    assert bench.wait(agent) == 1
    assert not standby.is_running()
    assert trace_of(bench, 1) == []
    assert "1.1" not in bench.log()


def test_a_prepared_run_that_is_cancelled_leaves_no_trace_but_that(bench: Bench) -> None:
    bench.plan("waits", "returns", "returns")
    agent = bench.start(slots=1)
    standby = standby_of(agent, bench.running(0))
    inbox = bench.sweep.agent(AgentId("0-0", 0, 0)) / "inbox"
    post(inbox, Request(kind="cancel", by="me@host", attempts=(Attempt(1, 1),)))
    agent.send_signal(signal.SIGUSR1)
    until(lambda: not standby.is_running(), "what was prepared ends")
    bench.go()
    assert bench.wait(agent) == 1
    assert bench.ended(1).state == "CANCELLED"
    assert not (bench.folder / "out" / "1").exists()
    assert [e for e in bench.events(AttemptStarted) if e.run == 1] == []
    assert bench.ended(2).state == "COMPLETED"


def test_a_prepared_run_that_dies_is_started_anew(bench: Bench) -> None:
    bench.plan("waits", "returns")
    agent = bench.start(slots=1)
    standby = standby_of(agent, bench.running(0))
    standby.kill()
    until(lambda: not standby.is_running() or standby.status() == psutil.STATUS_ZOMBIE, "it is dead")
    bench.go()
    assert bench.wait(agent) == 0
    assert [bench.ended(run).state for run in (0, 1)] == ["COMPLETED", "COMPLETED"]
    assert (bench.folder / "done-1").read_text() == "begun 1\n"


def test_prepared_runs_die_with_their_fork_server_and_are_prepared_again(bench: Bench) -> None:
    bench.plan("waits", "returns")
    agent = bench.start(slots=1)
    running = bench.running(0)
    first = standby_of(agent, running)
    fork_server_of(agent).kill()
    until(lambda: not first.is_running(), "what it had prepared is gone")
    second = standby_of(agent, running)
    bench.go()
    assert bench.wait(agent) == 0
    assert [e.pid for e in bench.events(AttemptStarted) if e.run == 1] == [second.pid]
    assert (bench.folder / "done-1").read_text() == "begun 1\n"


def test_prepared_runs_die_with_their_agent(bench: Bench) -> None:
    bench.plan("waits", "returns")
    agent = bench.start(slots=1)
    running = bench.running(0)
    standby = standby_of(agent, running)
    agent.kill()
    agent.wait(PATIENCE_S)
    until(lambda: not psutil.pid_exists(running) and not standby.is_running(), "all are gone")
    assert trace_of(bench, 1) == [bench.sweep.claims / "1.1"]


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("prefetch", ["config", "imports", "off"])
def test_a_prepared_run_is_what_it_would_be_anyway(bench: Bench, prefetch: str, structured: bool) -> None:
    app = USERS.replace("STRUCTURED", STRUCTURED if structured else "").replace(
        "PRIMARY", '"mine"' if structured else "None"
    )
    (bench.folder / "app.py").write_text(app)
    (bench.folder / "heavy.py").write_text(HEAVY)
    subdir = "hydra.sweep.subdir=${hydra.job.num}-${now:%s.%f}"
    plus = "" if structured else "+"
    clock = [] if structured else ["+clock=${clock:}"]
    bench.plan_overrides([[f"{plus}number={run}", subdir, *clock] for run in range(2)])
    agent = bench.start(slots=1, prefetch=prefetch, resources={"cpu": None, "tmpdir": {"vars": ["TMPDIR"]}})
    until((bench.folder / "begun-0").exists, "the first run runs")
    if prefetch != "off":
        until(lambda: len(fork_server_of(agent).children()) == 2, "the next run is prepared")
    if prefetch == "imports":
        standby_of(agent, *[e.pid for e in bench.events(AttemptStarted)])
    bench.go()
    assert bench.wait(agent) == 0
    first, second = (json.loads(str(bench.ended(run).return_value)) for run in (0, 1))
    ended = bench.ended(0).time
    (started,) = [event for event in bench.events(AttemptStarted) if event.run == 1]
    assert ended - 0.05 <= min(started.time, second["began"])
    assert second["clock"] >= second["began"]
    assert (second["imported"] >= ended - 0.05) == (prefetch != "imports")
    assert second["here"]
    number, _, moment = os.path.basename(second["folder"]).partition("-")
    assert number == "1"
    assert float(moment) >= int(ended)
    assert os.listdir(second["folder"])
    assert (second["num"], second["slot"], second["cwd"]) == (1, "0", str(bench.folder))
    assert second["id"].endswith("_1")
    assert second["cpus"] == first["cpus"]
    assert second["tmpdir_exists"]
    assert second["tmpdir"] != first["tmpdir"]
    assert second["random"] != first["random"]
    assert second["class"] == ("Conf" if structured else "dict")
    (located,) = [event for event in bench.events(AttemptLocated) if event.run == 1]
    log = Path(second["folder"], "attempt-1.log").read_text()
    assert log == "imported\nsays 1\n"
    assert os.path.basename(second["folder"]) in located.run_dir


def test_a_prepared_run_saves_the_configuration_as_hydra_does(bench: Bench) -> None:
    bench.plan("waits", "waits")
    agent = bench.start(slots=1)
    standby_of(agent, bench.running(0))
    bench.go()
    assert bench.wait(agent) == 0
    unprepared, prepared = (bench.folder / "out" / str(run) / ".hydra" / "hydra.yaml" for run in (0, 1))
    assert re.sub(r"(num: |id: \S+_|/out/)0\b", r"\g<1>1", unprepared.read_text()) == prepared.read_text()


def test_a_config_that_does_not_compose_is_told_in_its_own_time(bench: Bench) -> None:
    bench.plan_overrides([["+how=waits"], ["how=returns"]])
    agent = bench.start(slots=1)
    standby_of(agent, bench.running(0))
    assert [e for e in bench.events(AttemptEnded) if e.run == 1] == []
    bench.go()
    assert bench.wait(agent) == 1
    end = bench.ended(1)
    assert (end.state, end.exception_type) == ("FAILED", "hydra.errors.ConfigCompositionException")
    assert end.traceback is not None
    first, *_ = [line for line in end.traceback.splitlines() if line.startswith("  File ")]
    assert "config_loader_impl.py" in first  # Hydra's: none of ours above it
    assert "how" in (bench.sweep.logs / "1.1.log").read_text()
