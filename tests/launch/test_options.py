"""Options that cannot be carried out are refused with one sentence, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import CompactHydraException

from clusterduck.errors import ConfigError
from clusterduck.launch.options import Options


@pytest.mark.parametrize(
    ("cluster", "params", "message"),
    [
        ("local", {"tasks_per_node": 4}, r"tasks_per_node=4.*parallel_runs_per_node=4 instead"),
        ("local", {"nodes": 2}, r"nodes=2, but clusterduck_local has only this machine"),
        ("slurm", {"nodes": 0}, r"nodes must be a whole number from 1 up, not 0"),
        ("slurm", {"total_runs_per_node": 3, "parallel_runs_per_node": 4}, r"=3 is less than .*=4, so 1 of a node's 4"),
        ("slurm", {"total_runs_per_node": 0}, r"total_runs_per_node must be a whole number from 1 up"),
        ("slurm", {"parallel_runs_per_node": 0}, r"parallel_runs_per_node must be from 1"),
        ("slurm", {"parallel_runs_per_node": True}, r"parallel_runs_per_node must be a whole number"),
        ("slurm", {"timeout_min": 0}, r"timeout_min must be a whole number from 1 up"),
        ("slurm", {"signal_delay_s": -1}, r"signal_delay_s must be a whole number from 0 up"),
        ("slurm", {"publish_interval_s": 0}, r"publish_interval_s must be more than 0"),
        ("slurm", {"mem_gb": 0.0}, r"mem_gb must be more than 0"),
        ("slurm", {"additional_parameters": {"ntasks_per_node": 4}}, r"cannot set ntasks_per_node.*parallel_runs_per"),
        ("slurm", {"additional_parameters": {"array": "0-3"}}, r"cannot set array.*total_runs_per_node instead"),
        ("local", {"partition": "gpu"}, r"partition is no option of clusterduck_local"),
        ("slurm", {"paralel_runs": 4}, r"paralel_runs is no option of clusterduck_slurm"),
        ("local", {"resources_config": {"cuda0": None}}, r"cuda0"),
        ("local", {"resources_config": {"stagger": {"delayy": 1}}}, r"delayy"),
    ],
)
def test_what_cannot_be_carried_out(cluster: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options.of(cluster, params)


def test_the_defaults_of_the_config_are_fine(make_launcher: Callable[..., Any], fake_slurm: Any) -> None:
    fake_slurm()
    options = make_launcher("slurm")._sweep._options
    assert (options.cluster, options.parallel_runs_per_node, options.runs_per_batch) == ("slurm", 1, None)
    assert options.submitit["name"] == "train"
    assert options.submitit_folder == "out/.submitit/%j"
    assert make_launcher("local", "hydra.sweep.dir=other")._sweep._options.publish_interval_s == 30


def test_no_resources_may_be_said_as_null() -> None:
    assert Options.of("local", {"resources_config": None}).resources_config == {}


def test_a_job_of_several_nodes_executes_so_many_runs_on_each() -> None:
    assert Options.of("slurm", {"nodes": 3, "total_runs_per_node": 20}).runs_per_batch == 60


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (None, ["--kill-on-bad-exit=0", "--cpu-bind=none"]),
        (["--cpu_bind=cores"], ["--kill-on-bad-exit=0", "--cpu_bind=cores"]),
        (["-K1", "--mpi=none"], ["--cpu-bind=none", "-K1", "--mpi=none"]),
        (["--kill-on-bad-exit", "--cpu-bind", "cores"], ["--kill-on-bad-exit", "--cpu-bind", "cores"]),
    ],
)
def test_what_srun_gets_unless_the_user_says_otherwise(given: list[str] | None, passed: list[str]) -> None:
    assert Options.of("slurm", {"srun_args": given}).submitit["srun_args"] == passed


def test_a_refusal_is_shown_by_hydra_without_a_traceback(make_launcher: Callable[..., Any], project: Path) -> None:
    with pytest.raises(CompactHydraException, match="only this machine") as caught:
        make_launcher("local", "hydra.launcher.nodes=2")
    assert isinstance(caught.value, ConfigError)
    assert sorted(path.name for path in project.iterdir()) == ["conf"]


def test_a_cluster_that_is_not_there(make_launcher: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project))
    with pytest.raises(ConfigError, match="sbatch is not on the PATH of this host"):
        make_launcher("slurm")


@pytest.mark.parametrize("mode", ["rwx", "9"])
def test_a_mode_that_is_none(make_launcher: Any, mode: str) -> None:
    with pytest.raises(ConfigError, match="permissions in octal"):
        make_launcher("local", f"+hydra.sweep.mode={mode}")


def test_a_ledger_that_cannot_be_written(make_launcher: Any, project: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written: name another file with hydra.launcher.ledger"):
        make_launcher("local", f"hydra.launcher.ledger={project}/conf/config.yaml/ledger.db")


def test_a_sweep_folder_that_cannot_be_written(make_launcher: Any, project: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep folder .* cannot be written .*set hydra.sweep.dir"):
        make_launcher("local", "hydra.sweep.dir=conf/config.yaml/x")
