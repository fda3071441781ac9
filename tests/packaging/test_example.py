"""The example's commands work as the README writes them (with fewer epochs)."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "example"
WAITS = """
import hydra, pathlib, time

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    print("waiting", flush=True)
    while not pathlib.Path(config.gate).exists():
        time.sleep(0.02)

main()
"""
SWEEP = ("--multirun", "model=convnet,transformer", "+iteration=range(2)", "epochs=2")


def run(folder: Path, *command: str, fails: bool = False) -> str:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    said = f"{done.stdout}\n{done.stderr}"
    assert (done.returncode != 0) == fails, f"exit code {done.returncode}\n{said}"
    return said


def train(folder: Path, *overrides: str, fails: bool = False) -> str:
    return run(folder, sys.executable, str(EXAMPLE / "train.py"), *overrides, fails=fails)


def clusterduck(folder: Path, *arguments: str) -> Any:
    command = [str(Path(sys.executable).with_name("clusterduck")), *arguments, "--json"]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)


def runs(folder: Path) -> list[dict[str, Any]]:
    return sorted(clusterduck(folder, "runs", "--sweep", "@last"), key=lambda row: int(row["number"]))


def wait_until(fact: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.1)


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install '.[examples]'")


@pytest.fixture(autouse=True)
def _extras() -> None:
    needs("autograd")
    needs("sklearn")


def test_hydras_own_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # on a busy machine, more threads only wait for each other
    said = train(tmp_path, *SWEEP)
    losses = [float(loss) for loss in re.findall(r"training loss ([\d.]+)", said)]
    assert len(losses) == 8
    assert all(later < earlier for earlier, later in zip(losses[::2], losses[1::2], strict=True)), "nothing was learnt"
    assert "CPUs this run may use: [" in said
    assert "(CUDA_VISIBLE_DEVICES): not set" in said
    assert "told to fail" in train(tmp_path, "fail=true", fails=True)


def test_packed_on_this_machine(tmp_path: Path) -> None:
    train(tmp_path, *SWEEP, "+platform=slurm_debug")
    rows = runs(tmp_path)
    assert [row["state"] for row in rows] == ["COMPLETED"] * 4
    assert all(0 < row["return_value"] < 0.8 for row in rows), "no better than guessing"
    logs = list(tmp_path.glob("multirun/**/attempt-1.log"))
    assert len(logs) == 4
    assert all("validation error" in log.read_text() for log in logs)


def test_a_run_that_is_told_to_fail_fails_alone(tmp_path: Path) -> None:
    train(tmp_path, "--multirun", "fail=false,true", "epochs=1", "+platform=slurm_debug", fails=True)
    completed, failed = runs(tmp_path)
    assert completed["state"] == "COMPLETED"
    assert failed["state"] == "FAILED"
    assert "told to fail" in failed["reason"]


@pytest.mark.parametrize(
    ("platform", "asks"),
    [
        (["+platform=horeka"], ["--partition=accelerated", "--gpus-per-node=4", "--cpus-per-task=152"]),
        (
            ["+platform=juwels_booster", "hydra.launcher.account=lab"],
            ["--account=lab", "--partition=booster", "--gres=gpu:4", "module load Stages/2025 CUDA"],
        ),
        (["+platform=plain_cluster"], ["--cpus-per-task=8", "--mem=16GB"]),
    ],
    ids=["horeka", "juwels_booster", "plain_cluster"],
)
def test_the_platform_files_ask_slurm_for_what_they_say(tmp_path: Path, platform: list[str], asks: list[str]) -> None:
    said = train(tmp_path, *SWEEP, *platform, "hydra.launcher.do_submit=false")
    for words in asks:
        assert words in said


def test_optuna_finds_the_lowest_point_through_the_launcher(tmp_path: Path) -> None:
    needs("hydra_plugins.hydra_optuna_sweeper")
    command = (sys.executable, str(EXAMPLE / "optimize.py"), "hydra.sweeper.n_trials=8")
    run(tmp_path, *command)
    rows = runs(tmp_path)
    assert [row["state"] for row in rows] == ["COMPLETED"] * 8
    for row in rows:
        a, b = (float(override.partition("=")[2]) for override in sorted(row["overrides"]))
        assert row["return_value"] == pytest.approx((a - 1) ** 2 + (b + 2) ** 2), "another run's value"
    (results,) = tmp_path.glob("multirun/**/optimization_results.yaml")
    best = float(re.search(r"best_value: (\S+)", results.read_text())[1])  # type: ignore[index]
    assert best == pytest.approx(min(row["return_value"] for row in rows))


def fields(value: Any) -> set[str]:
    """All names in some JSON, but for those of the counts."""
    if isinstance(value, list):
        return set().union(*map(fields, value))
    if isinstance(value, dict):
        return set(value) | set().union(*(fields(inner) for name, inner in value.items() if name != "counts"))
    return set()


def test_every_json_field_is_in_the_readme(tmp_path: Path) -> None:
    gate = tmp_path / "open"
    (tmp_path / "wait.py").write_text(WAITS)
    command = (sys.executable, "wait.py", "--multirun", "+n=1,2", f"+gate={gate}", "hydra/launcher=clusterduck_local")
    run(tmp_path, *command)
    waiting = (("status",), ("nodes",), ("runs",), ("show", "@last/0"))
    readme = set(re.findall(r"`(\w+)`", (EXAMPLE.parent / "README.md").read_text()))
    wait_until(lambda: clusterduck(tmp_path, "runs")[0]["state"] == "RUNNING")
    for arguments in (*waiting, ("logs", "@last/0")):
        found = fields(clusterduck(tmp_path, *arguments))
        assert found, arguments
        assert found - readme == set(), arguments
    gate.touch()
    wait_until(lambda: {row["state"] for row in clusterduck(tmp_path, "runs")} == {"COMPLETED"})
