"""A copy of a configuration that was made quickly is the one that would have been made anyway."""

from __future__ import annotations

import copy
import enum
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.base import Metadata

from clusterduck.agent.composing import is_same
from clusterduck.agent.copying import quicken


class Colour(enum.Enum):
    RED = 1


@dataclass
class Inner:
    x: float | None = None
    path: Path = Path("a")


@dataclass
class Conf:
    inner: Inner = field(default_factory=Inner)
    by_number: dict[int, Inner] = field(default_factory=lambda: {3: Inner(1.5)})
    names: list[str] = field(default_factory=lambda: ["a", "b"])
    colour: Colour = Colour.RED
    missing: int = "???"  # type: ignore[assignment]
    now: str = "${ticking:}"


@pytest.fixture
def quickened() -> Iterator[None]:
    quicken()
    yield
    del Metadata.__deepcopy__  # type: ignore[attr-defined]


@pytest.fixture
def config() -> Iterator[DictConfig]:
    OmegaConf.register_new_resolver("ticking", lambda: "now", use_cache=True)
    made = OmegaConf.structured(Conf)
    assert made.now == "now"
    OmegaConf.set_struct(made, True)
    OmegaConf.set_readonly(made.inner, False)
    yield made
    OmegaConf.clear_resolver("ticking")


def flags_and_caches(node: Any) -> list[Any]:
    """Of a node and all below it."""
    below = node._content if isinstance(getattr(node, "_content", None), (dict, list)) else ()
    below = below.values() if isinstance(below, dict) else below
    own = [(type(node._metadata), node._metadata.flags, node._metadata.resolver_cache)]
    return own + [each for child in below for each in flags_and_caches(child)]


def test_a_quick_copy_is_the_same_and_shares_nothing_that_can_change(config: DictConfig, request: Any) -> None:
    right = copy.deepcopy(config)
    request.getfixturevalue("quickened")
    copied = copy.deepcopy(config)
    assert is_same(copied, right)
    assert flags_and_caches(copied) == flags_and_caches(right) == flags_and_caches(config)
    assert OmegaConf.get_cache(copied)["ticking"]
    for (_, flags, cache), (_, others, others_cache) in zip(
        flags_and_caches(copied), flags_and_caches(config), strict=True
    ):
        assert flags is not others and cache is not others_cache
    OmegaConf.set_readonly(copied, True)
    OmegaConf.get_cache(copied)["ticking"].clear()
    assert OmegaConf.is_readonly(config) is None and OmegaConf.get_cache(config)["ticking"]
    OmegaConf.set_readonly(copied, False)
    copied.by_number[3].x = 2.5
    assert config.by_number[3].x == 1.5


def test_it_is_much_quicker() -> None:
    """Counted in calls, which are the same on every machine."""
    script = (
        "import copy, cProfile, pstats\n"
        "from omegaconf import OmegaConf\n"
        "from clusterduck.agent.copying import quicken\n"
        "config = OmegaConf.create({str(key): {'a': 1, 'b': 'x'} for key in range(50)})\n"
        "def calls():\n"
        "    with cProfile.Profile() as profile: copy.deepcopy(config)\n"
        "    return pstats.Stats(profile).total_calls\n"
        "before = calls(); quicken(); print(before / calls())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 1.8
