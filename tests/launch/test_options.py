"""Options that cannot be carried out are refused with one sentence, before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import CompactHydraException

from clusterduck.errors import ConfigError
from clusterduck.launch.agents import settings_for
from clusterduck.launch.options import Options
from clusterduck.model import Attempt


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


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("max_retries=-1", "max_retries must be a whole number from 0 up"),
        ("max_failures=0", "max_failures must be a whole number from 1 up"),
        ("run_timeout_min=0", "run_timeout_min must be a number, more than 0"),
        ("expected_run_min=-3", "expected_run_min must be a number, more than 0"),
        ("grace_s=-1", "grace_s must be a number, 0 or more"),
        ("retry_on=[BROKEN]", "retry_on cannot hold 'BROKEN'"),
        ("retry_on=[COMPLETED]", "it may name FAILED, TIMEOUT"),
    ],
)
def test_how_failures_are_dealt_with_is_checked(make_launcher: Any, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_launcher("local", f"hydra.launcher.{override}")


def test_agents_are_told_how_failures_are_dealt_with(tmp_path: Path) -> None:
    given = {"max_retries": 2, "retry_on": ["timeout"], "max_failures": 3, "run_timeout_min": 1.5, "grace_s": 0}
    slurm = {"signal_delay_s": 30, "max_num_timeout": 4, "expected_run_min": 9}
    options = Options.of("slurm", given | slurm)
    told = settings_for(
        options, root=tmp_path, batch="0-0", launch=0, ledger=tmp_path / "l", code="/code", attempts=[Attempt(3, 2)]
    )
    assert (told.max_retries, told.retry_on, told.max_failures) == (2, ("TIMEOUT",), 3)
    assert (told.run_timeout_min, told.expected_run_min, told.grace_s) == (1.5, 9, 0)
    assert (told.signal_delay_s, told.max_num_timeout, told.cwd, told.attempts) == (30, 4, "/code", ("3.2",))


def test_options_of_an_earlier_launch_are_the_same_but_for_what_is_changed() -> None:
    given = {"partition": "short", "timeout_min": 5, "nodes": 1, "gpus_per_node": None}
    first = Options.of("slurm", {**given, "resources_config": {"cpu": None}})
    recorded = json.loads(json.dumps(asdict(first)))
    assert Options.again(recorded, {}) == first
    changed = Options.again(recorded, {"timeout_min": 60, "partition": "long", "resources_config.stagger.delay": 2})
    assert (changed.timeout_min, changed.submitit["partition"]) == (60, "long")
    assert changed.resources_config == {"cpu": None, "stagger": {"delay": 2}}
    assert Options.again({**recorded, "of_a_later_version": 1}, {}) == first
