"""A copy of a configuration that was made quickly is the one that would have been made anyway."""

from __future__ import annotations

import copy
import enum
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import pytest
from omegaconf import DictConfig, OmegaConf, StringNode
from omegaconf.base import Metadata

from clusterduck.agent.composing import is_same
from clusterduck.agent.copying import _COPIERS, quicken


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
    either: Union[int, str] = 3  # noqa: UP007
    none: Inner | None = None
    other: Inner = "${inner}"  # type: ignore[assignment]
    deep: Any = field(default_factory=lambda: [{"a": [1.5, True, b"x", None, "${..a}"]}, "${missing}", "???"])


@pytest.fixture
def quickened(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (Metadata, *_COPIERS):  # restored afterwards
        monkeypatch.setattr(cls, "__deepcopy__", getattr(cls, "__deepcopy__", None), raising=False)
    quicken()
    assert "__deepcopy__" in vars(Metadata)
    assert DictConfig.__deepcopy__ is _COPIERS[DictConfig]


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


def children(node: Any) -> list[Any]:
    content = getattr(node, "_content", None)
    return list(content.values()) if isinstance(content, dict) else content if isinstance(content, list) else []


def parents_are_right(node: Any) -> bool:
    return all(child._get_parent() is node and parents_are_right(child) for child in children(node))


def test_a_quick_copy_of_any_part_hangs_together_as_it_would_have(config: DictConfig, request: Any) -> None:
    twice = OmegaConf.create({"a": {"x": 1}, "b": None})
    twice._content["b"] = twice._content["a"]  # type: ignore[index,call-overload]
    parts = [config, twice, *children(config), *children(config._get_node("deep"))]
    right = [copy.deepcopy(part) for part in parts]
    request.getfixturevalue("quickened")
    for part, expected in zip(parts, right, strict=True):
        copied = copy.deepcopy(part)
        assert is_same(copied, expected)
        assert copied._get_parent() is part._get_parent() and parents_are_right(copied)
        assert vars(copied).keys() == vars(expected).keys()
    one, other = children(copy.deepcopy(twice))
    assert one is other


def test_a_node_of_a_class_of_ones_own_is_copied_in_its_own_way(quickened: None) -> None:
    class Own(StringNode):
        def __deepcopy__(self, memo: dict[int, Any]) -> Own:
            assert self._get_parent() is None  # else it might copy all that it hangs from
            return Own(f"{self._val}'")

    config = OmegaConf.create({"x": Own("it"), "y": [Own("this")]})
    copied = copy.deepcopy(config)
    assert copied == {"x": f"{config.x}'", "y": [f"{config.y[0]}'"]}
    assert parents_are_right(copied) and parents_are_right(config)


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
    assert float(done.stdout) > 8
