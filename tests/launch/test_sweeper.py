"""The sweeper that composes only what brings something new before it calls the launcher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode

CHOSEN = ("hydra/sweeper=clusterduck", "hydra/launcher=clusterduck_local", "hydra.launcher.do_submit=false")


class Composed:
    """A config loader that notes what it was asked to compose."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.runs: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: Any, sweep_overrides: list[str]) -> Any:
        self.runs.append(sweep_overrides)
        return self._loader.load_sweep_config(master_config=master_config, sweep_overrides=sweep_overrides)


@pytest.fixture
def sweep(project: Path, hydra_restore_singletons: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sweeps with arguments as on the command line; returns what was composed and what was launched."""
    (project / "conf" / "model").mkdir()
    (project / "conf" / "config.yaml").write_text("defaults: [model: a, _self_]\nlr: 0.1\nseed: 0\n")
    (project / "conf" / "model" / "a.yaml").write_text("depth: 1\n")
    (project / "conf" / "model" / "b.yaml").write_text("width: 1\n")

    def run(*arguments: str, options: Sequence[str] = ()) -> tuple[list[list[str]], list[list[str]]]:
        hydra = Hydra.create_main_hydra_file_or_module(str(project / "train.py"), None, "conf", "train")
        config = hydra.compose_config("config", [*CHOSEN, "hydra.sweep.dir=out", *options], RunMode.MULTIRUN)
        composed = Composed(hydra.config_loader)
        context = HydraContext(config_loader=composed, callbacks=Callbacks(config))  # type: ignore[arg-type]
        try:
            sweeper = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=abs, config=config)
            launched = sweeper.sweep(list(arguments))
        finally:
            GlobalHydra.instance().clear()
        return composed.runs, [list(job.overrides) for batch in launched for job in batch]

    return run


def test_of_numbers_only_the_first_is_composed_and_every_other_value_once(sweep: Any) -> None:
    composed, launched = sweep("seed=range(100)", "model=a,b", "lr=0.1,0.01,1")
    assert len(launched) == 600
    assert composed == [
        ["seed=0", "model=a", "lr=0.1"],
        ["seed=0", "model=a", "lr=1"],  # no longer a fraction
        ["seed=0", "model=b", "lr=0.1"],
    ]


def test_what_cannot_be_composed_is_found_before_anything_is_launched(sweep: Any) -> None:
    with pytest.raises(HydraException, match="depth"):
        sweep("seed=range(3)", "model=a,b", "model.depth=1,2")
    with pytest.raises(HydraException, match="c"):
        sweep("seed=range(3)", "model=a,b,c")


def test_it_has_the_options_of_hydras_own(sweep: Any, project: Path) -> None:
    with (project / "conf" / "config.yaml").open("a") as file:
        file.write("hydra: {sweeper: {params: {seed: 'range(7)', model: a}}}\n")
    composed, launched = sweep(options=["hydra.sweeper.max_batch_size=3"])
    assert launched == [[f"seed={seed}", "model=a"] for seed in range(7)]
    assert composed == [[f"seed={first}", "model=a"] for first in (0, 3, 6)]


def test_a_sweep_of_one_run_without_overrides_is_composed(sweep: Any) -> None:
    composed, launched = sweep()
    assert composed == launched == [[]]
