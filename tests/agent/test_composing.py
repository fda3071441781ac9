"""What runs have in common is composed once, and each has the configuration that Hydra would give it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import version
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode

from clusterduck.agent.composing import Composing, is_same, worth_learning
from clusterduck.launch import freeze

FILES = {
    "config.yaml": "defaults: [{model: a}, {optional data@d: '${model}'}, _self_]\n"
    "lr: 0.1\nname: ${model.size}-${lr}\n",
    "model/a.yaml": "size: 1\nlayers: [1, 2]\nat: ${now:%S}\n",
    "model/b.yaml": "size: 2\nmore:\n  x: ${lr}\n",
    "data/b.yaml": "# @package _global_\nextra: 1\n",
    "asks/environment.yaml": "defaults: [{/model@m: '${oc.env:CLUSTERDUCK_TEST_MODEL}'}]\n",
    "asks/nothing.yaml": "defaults: [{/model@m: b}]\n",
}

RUNS = [
    ["lr=1"],
    ["lr=2", "+new.key=[1,2]"],
    ["model=b", "lr=1"],
    ["model=b", "~lr"],
    ["~data@d", "lr=3"],
    ["+data@e=b", "lr=3"],
    ["hydra.job.name=x", "lr='a,b'"],
    ["model={size: 9}"],
    ["hydra/job_logging=disabled"],
]


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    for name, text in FILES.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = copy.copy(Singleton._instances)
    version.setbase("1.3")
    GlobalHydra.instance().clear()
    app = Hydra.create_main_hydra_file_or_module(str(tmp_path / "app.py"), None, "conf", "app")
    config = app.compose_config("config", ["hydra.verbose=false"], RunMode.MULTIRUN)
    freeze.install(freeze.freeze(config, str(tmp_path)).sources)
    app.config_loader.repository.initialize_sources(app.config_loader.config_search_path)  # type: ignore[attr-defined]
    yield app.config_loader, config
    freeze._sources.clear()
    Singleton._instances = before


def test_each_run_has_the_configuration_that_hydra_gives_it(sweep: tuple[Any, Any]) -> None:
    loader, config = sweep
    expected = [loader.load_sweep_config(config, overrides) for overrides in RUNS]
    choices = [[text for text in run if text.lstrip("+~").startswith(("model", "data", "hydra/"))] for run in RUNS]
    for example, stop in ((1, len(RUNS)), (2, 5)):  # of those that choose nothing, and of those with another model
        composing = Composing()
        composing.learn(loader, config, RUNS[example])
        assert len(composing._learned) == 1
        assert composing._parsed.keys() == {*RUNS[example], *config.hydra.overrides.hydra}
        taken = []
        for overrides, right in zip(RUNS[:stop], expected, strict=False):
            forked = copy.deepcopy(composing)  # as a fork has its own
            with forked.used():
                assert is_same(loader.load_sweep_config(config, overrides), right), overrides
            said = {*overrides, *config.hydra.overrides.hydra}
            assert forked._parsed.keys() == composing._parsed.keys() - said != composing._parsed.keys()
            if not forked._learned:
                taken.append(overrides)
        alike = [run for run, made in zip(RUNS, choices, strict=True) if made == choices[example]]
        assert taken == [*alike, *([["model={size: 9}"]] if example == 1 else [])]


def test_nothing_is_kept_where_the_defaults_list_asks_a_resolver(
    sweep: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, config = sweep
    monkeypatch.setenv("CLUSTERDUCK_TEST_MODEL", "a")
    composing = Composing()
    knows_resolvers = hydra.__version__.startswith("1.3.")  # from 1.4 on Hydra refuses them there
    with contextlib.nullcontext() if knows_resolvers else pytest.raises(ConfigCompositionException):
        assert composing.learn(loader, config, ["+asks=environment", "lr=1"]).asks.m.size == 1
    assert not composing._learned
    composing.learn(loader, config, ["+asks=nothing", "lr=1"])
    assert len(composing._learned) == 1


def test_an_override_with_a_function_is_parsed_again(sweep: tuple[Any, Any]) -> None:
    loader, config = sweep
    composing = Composing()
    assert composing.learn(loader, config, ["lr=int(3.5)", "name=x"]).lr == 3
    assert composing._parsed.keys() == {"name=x", *config.hydra.overrides.hydra}


def test_only_choices_that_many_runs_make_are_learned() -> None:
    runs = [[f"lr={n}", f"model={'ab'[n % 2]}"] for n in range(40)] + [["model=c", "lr=1"]] * 3
    assert worth_learning(runs, {"model"}) == [["lr=0", "model=a"], ["lr=1", "model=b"]]
    assert worth_learning(runs[-3:], {"model"}) == [["model=c", "lr=1"]]
    assert worth_learning([], {"model"}) == []
