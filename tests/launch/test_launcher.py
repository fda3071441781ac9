"""The local launcher as a user meets it: a script, a command line, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterduck.launch.processes import began
from clusterduck.launch.watch import Watch
from clusterduck.paths import LedgerPaths, SweepPaths

SCRIPT = """
import json, os, sys, time
from dataclasses import dataclass
from pathlib import Path
import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import pond


@dataclass
class Config:
    lr: float = 0.1
    fail: bool = False
    gate: str = ""
    size: int = 0
    where: str = "${pond:}"


class Quack(Exception):
    def __init__(self, number, word):
        super().__init__(f"quack {number} {word}")


ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("pond", lambda: pond.NAME, replace=True)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    while cfg.gate and not Path(cfg.gate).exists():
        time.sleep(0.02)
    if cfg.fail:
        raise Quack(cfg.lr, "loud")
    if cfg.size:
        return b"x" * cfg.size
    hydra_cfg = HydraConfig.get()
    return {"lr": cfg.lr, "where": cfg.where, "num": hydra_cfg.job.num, "name": hydra_cfg.job.name,
            "type": OmegaConf.get_type(cfg).__name__, "pid": os.getpid()}


if __name__ == "__main__":
    main()
"""

#: Runs a script, and prints what its sweep returned, which a script of Hydra's does not get to see.
DRIVER = """
import sys, json, runpy
from hydra._internal.hydra import Hydra
multirun = Hydra.multirun
def telling(self, *args, **kwargs):
    found = multirun(self, *args, **kwargs)
    print("ANSWERS", json.dumps([answer.return_value for launch in found for answer in launch]))
    return found
Hydra.multirun = telling
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

LOCAL = "hydra/launcher=clusterduck_local"
WAIT = "hydra.launcher.wait_for_completion=true"


@pytest.fixture
def script(project: Path) -> Path:
    (project / "train.py").write_text(SCRIPT)
    (project / "pond.py").write_text("NAME = 'duck pond'\n")
    (project / "conf" / "config.yaml").write_text(
        "defaults: [schema, _self_]\nwhere: ${pond:}\nhydra:\n  sweep:\n    dir: out\n"
    )
    return project / "train.py"


def command(script: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(script), "--multirun", LOCAL, *overrides]


def run(script: Path, *overrides: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(script, *overrides), capture_output=True, text=True, check=False, **more)


def answers(script: Path, *overrides: str) -> list[Any]:
    """What ``launch()`` gave the sweeper."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(script), "--multirun", LOCAL, WAIT, *overrides],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(re.findall(r"^ANSWERS (.*)$", done.stdout, re.MULTILINE)[0]))


def only_sweep(ledger: Path) -> SweepPaths:
    (root,) = LedgerPaths(ledger).sweep_roots().values()
    return SweepPaths(root)


def wait_for(fact: Callable[[], Any], seconds: float = 180.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return found


def ended_runs(paths: SweepPaths) -> dict[int, str]:
    watch = Watch(paths)
    watch.look()
    return {number: view.ended.state for number, view in watch.runs.items() if view.ended is not None}


def controllers(paths: SweepPaths) -> list[int]:
    watch = Watch(paths)
    watch.look()
    return [int(view.submitted.job_id) for view in watch.batches.values() if view.submitted is not None]


def test_a_script_with_all_that_users_have_in_one(script: Path) -> None:
    """A function, a schema, a resolver and an exception of ``__main__``; a module beside it; answers in order."""
    found = answers(
        script, "lr=3,1,2", "hydra.launcher.parallel_runs_per_node=3", "hydra.launcher.total_runs_per_node=3"
    )
    assert [(answer["lr"], answer["num"]) for answer in found] == [(3, 0), (1, 1), (2, 2)]
    assert {answer["where"] for answer in found} == {"duck pond"}
    assert {answer["name"] for answer in found} == {"train"}
    assert {answer["type"] for answer in found} == {"Config"}
    assert len({answer["pid"] for answer in found}) == 3


def test_a_failed_run_raises_its_own_exception_with_its_own_traceback(script: Path, own_ledger: Path) -> None:
    done = run(script, WAIT, "fail=false,true", "lr=7")
    assert done.returncode == 1
    assert "quack 7" in done.stderr
    assert "raise Quack(cfg.lr" in done.stderr, "the line in the user's script"
    assert ended_runs(only_sweep(own_ledger)) == {0: "COMPLETED", 1: "FAILED"}


def test_a_large_result_arrives(script: Path) -> None:
    (script.parent / "long.py").write_text(SCRIPT.replace('b"x" * cfg.size', '"x" * cfg.size'))
    (answer,) = answers(script.parent / "long.py", "size=5000000")
    assert len(answer) == 5_000_000


def test_without_waiting_it_returns_at_once_and_holds_nothing_open(
    script: Path, own_ledger: Path, tmp_path: Path
) -> None:
    """A pipe behind the command ends with it, while the job goes on."""
    gate = tmp_path / "gate"
    reader, writer = os.pipe()
    with subprocess.Popen(command(script, f"gate={gate}"), stdout=writer, stderr=writer) as process:
        os.close(writer)
        said = b""
        while chunk := os.read(reader, 65536):
            said += chunk
        assert process.wait() == 0
    os.close(reader)
    paths = only_sweep(own_ledger)
    assert f"Follow with `clusterduck status {paths.sweep}`".encode() in said
    assert ended_runs(paths) == {}
    gate.touch()
    assert wait_for(lambda: ended_runs(paths)) == {0: "COMPLETED"}


def test_ctrl_c_detaches_and_leaves_the_jobs_running(script: Path, own_ledger: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    process = subprocess.Popen(
        command(script, WAIT, f"gate={gate}", "lr=1,2", "hydra.launcher.parallel_runs_per_node=2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: LedgerPaths(own_ledger).sweep_roots() and list(only_sweep(own_ledger).claims.iterdir()))
    paths = only_sweep(own_ledger)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to everything in the foreground
    out, err = process.communicate(timeout=180)
    assert process.returncode == 130
    (controller,) = controllers(paths)
    assert f"Detached from the sweep {paths.sweep}; its jobs go on." in out + err
    assert f"`kill {controller}`" in out + err
    assert "Traceback" not in err
    assert began(controller) is not None
    gate.touch()
    assert wait_for(lambda: len(found := ended_runs(paths)) == 2 and found) == {0: "COMPLETED", 1: "COMPLETED"}


def test_ctrl_c_while_the_ledger_is_published_detaches_too(
    script: Path, own_ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        "import pathlib, time\n"
        "from clusterduck.launch import register\n"
        f"register.publish = lambda *_: pathlib.Path({str(tmp_path / 'publishing')!r}).touch() or time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
    process = subprocess.Popen(command(script, "lr=1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for((tmp_path / "publishing").exists)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "its jobs go on" in said and "Traceback" not in said
    assert wait_for(lambda: ended_runs(only_sweep(own_ledger))) == {0: "COMPLETED"}


def test_two_sweeps_at_once_in_one_folder(script: Path, own_ledger: Path, tmp_path: Path) -> None:
    """Exactly one goes on; the other is refused before Hydra writes anything, and names it."""
    gate = tmp_path / "gate"
    both = [
        subprocess.Popen(
            command(script, f"gate={gate}", f"lr={number}"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number in (1, 2)
    ]
    said = [process.communicate(timeout=180) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    paths = only_sweep(own_ledger)
    (refused,) = [err for process, (_, err) in zip(both, said, strict=True) if process.returncode]
    assert f"The sweep {paths.sweep} uses the folder {script.parent / 'out'}" in refused
    assert "Set hydra.sweep.dir to another folder" in refused
    assert "Traceback" not in refused
    (went_on,) = [number for number, process in enumerate(both, 1) if not process.returncode]
    assert f"- lr={went_on}" in (script.parent / "out" / "multirun.yaml").read_text()
    gate.touch()
    wait_for(lambda: ended_runs(paths))


def test_a_finished_sweeps_folder_is_used_again(script: Path, own_ledger: Path) -> None:
    assert run(script, WAIT, "lr=1").returncode == 0
    (controller,) = controllers(only_sweep(own_ledger))
    wait_for(lambda: began(controller) is None)
    assert run(script, WAIT, "lr=2").returncode == 0
    assert len(LedgerPaths(own_ledger).sweep_roots()) == 2


def test_config_files_edited_while_jobs_wait_change_nothing(script: Path, own_ledger: Path, tmp_path: Path) -> None:
    """One slot, so that the second run begins after the edit."""
    gate = tmp_path / "gate"
    assert run(script, f"gate={gate}", "lr=1,2").returncode == 0
    paths = only_sweep(own_ledger)
    config = script.parent / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("where: ${pond:}", "where: elsewhere"))
    gate.touch()
    wait_for(lambda: len(ended_runs(paths)) == 2)
    watch = Watch(paths)
    watch.look()
    ends = [watch.runs[number].ended for number in (0, 1)]
    assert [json.loads(end.return_value or "")["where"] for end in ends if end is not None] == [
        "duck pond",
        "duck pond",
    ]


def test_the_ledger_is_there_when_the_launch_returns(script: Path, own_ledger: Path) -> None:
    import sqlite3

    assert run(script, WAIT, "lr=1,2").returncode == 0
    with sqlite3.connect(own_ledger) as connection:
        assert connection.execute("SELECT runs, completed, pending FROM sweep").fetchall() == [(2, 2, 0)]


def test_a_project_gets_its_ledger_where_it_is_launched(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLUSTERDUCK_LEDGER")
    assert run(script, WAIT, cwd=script.parent).returncode == 0
    assert (script.parent / ".clusterduck" / "ledger.db").is_file()
    assert (script.parent / ".clusterduck" / ".gitignore").read_text() == "*\n"
    below = script.parent / "below"
    below.mkdir()
    assert run(script, WAIT, "hydra.sweep.dir=there", cwd=below).returncode == 0
    assert not (below / ".clusterduck").exists()
    assert len(LedgerPaths(script.parent / ".clusterduck" / "ledger.db").sweep_roots()) == 2


def test_importing_the_plugin_loads_nothing_but_hydra() -> None:
    """In every Hydra process of everybody who has it installed."""
    code = """
import __future__, sys
import hydra.main, hydra.plugins.launcher, hydra._internal.core_plugins.basic_sweeper, hydra.core.config_store
hydra_alone = set(sys.modules)
import hydra_plugins.clusterduck_launcher.config
import hydra_plugins.clusterduck_launcher.launcher
import hydra_plugins.clusterduck_launcher.sweeper
print(*sorted(set(sys.modules) - hydra_alone))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    plugin = "hydra_plugins.clusterduck_launcher"
    assert loaded == ["hydra_plugins", plugin, *(f"{plugin}.{name}" for name in ("config", "launcher", "sweeper"))]


def test_both_launchers_have_their_options_in_hydras_help(script: Path) -> None:
    for cluster in ("local", "slurm"):
        shown = subprocess.run(
            [
                sys.executable,
                str(script),
                f"hydra/launcher=clusterduck_{cluster}",
                "--cfg",
                "hydra",
                "-p",
                "hydra.launcher",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "parallel_runs_per_node: 1" in shown
        assert ("partition: null" in shown) == (cluster == "slurm")
