from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fake_nvml import no_nvml  # noqa: F401 - a fixture
from omegaconf import OmegaConf

from clusterduck.agent.node import Node
from clusterduck.agent.slots import build_slots, validate
from clusterduck.errors import ConfigError

NODE = Node("node07", (0, 1, 2, 3))


def test_stagger_delays_slot_k_by_k_times() -> None:
    slots = build_slots(NODE, 4, {"stagger": {"delay": 2.5}})
    assert [slot.start_delay_s for slot in slots] == [0.0, 2.5, 5.0, 7.5]
    assert all(not slot.env and not slot.cpus for slot in slots)


@pytest.mark.parametrize("options", [None, {}, {"delay": None}])
def test_stagger_has_a_default(options: object) -> None:
    assert [slot.start_delay_s for slot in build_slots(NODE, 3, {"stagger": options})] == [0.0, 5.0, 10.0]


def test_no_delay_at_all() -> None:
    assert [slot.start_delay_s for slot in build_slots(NODE, 2, {"stagger": {"delay": 0}})] == [0.0, 0.0]


@pytest.mark.parametrize("delay", [-1, -0.1, float("nan"), float("inf"), True, "5", [5], 10**400, 1e8])
def test_delays_that_cannot_be_meant(delay: object) -> None:
    with pytest.raises(ConfigError, match=r"resources_config\.stagger\.delay must be a number of seconds"):
        validate({"stagger": {"delay": delay}}, 2)


@pytest.mark.parametrize(("options", "names"), [(None, ("TMPDIR",)), ({"vars": ["TMPDIR", "TMP"]}, ("TMPDIR", "TMP"))])
def test_tmpdir(options: object, names: tuple[str, ...]) -> None:
    assert [slot.tmpdir_vars for slot in build_slots(NODE, 2, {"tmpdir": options})] == [names] * 2


def test_tmpdir_of_a_variable_that_is_not_set() -> None:
    with pytest.raises(ConfigError, match=r"names SCRATCH, which is not set on node07: set it"):
        build_slots(NODE, 2, {"tmpdir": {"vars": ["TMPDIR", "SCRATCH"]}})
    node = Node("node07", (0,), environ={"SCRATCH": "/scratch"})
    assert build_slots(node, 1, {"tmpdir": {"vars": ["SCRATCH"]}})[0].tmpdir_vars == ("SCRATCH",)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ([], "empty list"),
        ("TMPDIR", "must be a list such as"),
        (["A=B"], "'A=B' is none"),
        (["$TMPDIR"], "is none"),
        ([""], "'' is none"),
        (["A\0"], "is none"),
        ([1], "1 is none"),
        (["TMP", "TMP"], "names 'TMP' more than once"),
    ],
)
def test_variables_that_cannot_be_meant(names: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        validate({"tmpdir": {"vars": names}}, 2)


@pytest.mark.parametrize(
    ("resources", "complaint"),
    [
        ({"gpu": None}, r"no kind 'gpu'; there are cpu, cuda, rendering, stagger, tmpdir. Did you mean cuda\?"),
        ({"cudda": None}, r"Did you mean cuda\?"),
        ({"\x1b[31m": None}, r"no kind '\\x1b\[31m'"),
        ({"x" * 5000: None}, r"no kind 'x+\.\.\.;"),
        ({1: None}, "1 is no name"),
        ({"cuda": {"gpu": [0]}}, r"cuda has no option 'gpu'; it has gpus. Did you mean gpus\?"),
        ({"cpu": {1: 2}}, r"cpu has no option 1; it has cpus"),
        ({"cuda": [0, 1]}, r"cuda must be a mapping of options, or null for the defaults, not \[0, 1\]"),
        ({"cuda": True}, "must be a mapping of options"),
        ({"cuda": "null"}, "must be a mapping of options"),
        (["cpu", "cuda"], r"resources_config must be a mapping such as \{cpu: null\}, not \['cpu', 'cuda'\]"),
        ("cpu", "must be a mapping"),
    ],
)
def test_tables_that_cannot_be_meant(resources: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        validate(resources, 2)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("count", [0, -1, True, 1.0, "4", None, 10**9])
def test_numbers_of_slots_that_cannot_be_meant(count: object) -> None:
    with pytest.raises(ConfigError, match="parallel_runs_per_node must be"):
        validate({}, count)


@pytest.mark.parametrize("resources", [None, {}, {"cpu": None, "cuda": {"gpus": None}, "tmpdir": {"vars": None}}])
def test_null_means_the_defaults(resources: object) -> None:
    validate(resources, 4)


def test_what_hydra_hands_over_is_taken_as_it_is() -> None:
    config = OmegaConf.create({"cpu": {"cpus": [0, 2]}, "cuda": {"gpus": [1, "GPU-a"]}, "stagger": {"delay": 1}})
    validate(config, 2)
    slots = build_slots(NODE, 2, config)
    assert [(slot.cpus, slot.gpus, slot.start_delay_s) for slot in slots] == [((0,), ("1",), 0), ((2,), ("GPU-a",), 1)]


# --- kinds of other packages

SCRATCH = """
from clusterduck.agent.resources import Grant, Kind

class Scratch(Kind):
    option_names = ("size_gb",)
    def __init__(self, options):
        self.size = options.get("size_gb") or 10
    def divide(self, node, slots, so_far):
        return [Grant(env={"SCRATCH_GB": str(self.size // slots)}, note="scratch\\nspace") for _ in range(slots)]

class Near(Kind):
    def __init__(self, options): pass
    def divide(self, node, slots, so_far):
        return [Grant(gpus=("7",)) for _ in range(slots)]

class Broken(Kind):
    def __init__(self, options): pass
    def check(self, slots):
        if slots == 13: raise ZeroDivisionError("not with 13")
    def divide(self, node, slots, so_far):
        return self.give(slots)
class TooFew(Broken):
    def give(self, slots): return [Grant()] * (slots - 1)
class NoGrants(Broken):
    def give(self, slots): return ["x"] * slots
class Strays(Broken):
    def give(self, slots): return [Grant(cpus=(0, 77))] * slots
class Clash(Broken):
    def give(self, slots): return [Grant(env={"OMP_NUM_THREADS": "99"})] * slots
class Greedy(Broken):
    def give(self, slots): return [Grant(cpus=(0,))] * slots
class BadName(Broken):
    def give(self, slots): return [Grant(env={"A=B": "1"})] * slots
class BadValue(Broken):
    def give(self, slots): return [Grant(env={"A": 1})] * slots
class NoKind: pass
"""

POINTS = """[clusterduck.resources]
scratch = other_kinds:Scratch
near = other_kinds:Near
crash = other_kinds:Broken
too_few = other_kinds:TooFew
no_grants = other_kinds:NoGrants
strays = other_kinds:Strays
clash = other_kinds:Clash
greedy = other_kinds:Greedy
bad_name = other_kinds:BadName
bad_value = other_kinds:BadValue
no_kind = other_kinds:NoKind
no_module = absent_module:Kind
cpu = other_kinds:Scratch
"""


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "other_kinds.py").write_text(SCRATCH)
    folder = tmp_path / "other_kinds-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other-kinds\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "other_kinds", raising=False)
    return tmp_path


def test_a_kind_of_another_package(other_package: Path) -> None:
    validate({"scratch": {"size_gb": 8}}, 4)
    slots = build_slots(NODE, 4, {"scratch": {"size_gb": 8}, "cpu": None})
    assert [slot.env["SCRATCH_GB"] for slot in slots] == ["2"] * 4
    assert [slot.cpus for slot in slots] == [(0,), (1,), (2,), (3,)]  # our cpu stays ours
    assert slots[0].why.startswith("scratch space; CPU 0")
    with pytest.raises(ConfigError, match=r"scratch has no option 'size'; it has size_gb\. Did you mean size_gb\?"):
        validate({"scratch": {"size": 8}}, 4)
    with pytest.raises(ConfigError, match=r"there are .*near.*scratch.* Did you mean scratch"):
        validate({"scratsh": None}, 4)


def test_gpus_of_another_packages_kind_are_seen_by_rendering(other_package: Path) -> None:
    slots = build_slots(NODE, 2, {"rendering": None, "near": None})
    assert [(slot.gpus, slot.env["EGL_DEVICE_ID"]) for slot in slots] == [(("7",), "7")] * 2


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("crash", "resources_config.crash failed: AttributeError: "),
        ("too_few", "did not give one grant to each of 2 slots"),
        ("no_grants", "did not give one grant to each of 2 slots"),
        ("strays", "gives CPUs that are not the job's: 77"),
        ("bad_name", r"sets a variable that cannot be: \('A=B', '1'\)"),
        ("bad_value", r"sets a variable that cannot be: \('A', 1\)"),
        ("no_kind", "no_kind of other-kinds is not a clusterduck.agent.resources.Kind"),
        ("no_module", "no_module of other-kinds cannot be imported: ModuleNotFoundError: "),
    ],
)
def test_a_bad_kind_is_a_sentence_not_a_traceback(other_package: Path, kind: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_slots(NODE, 2, {kind: None})


def test_a_kind_that_crashes_over_its_options_or_its_check(other_package: Path) -> None:
    with pytest.raises(ConfigError, match=r"scratch failed: TypeError: "):
        build_slots(NODE, 2, {"scratch": {"size_gb": "much"}})
    with pytest.raises(ConfigError, match=r"crash failed: ZeroDivisionError: 'not with 13'"):
        validate({"crash": None}, 13)


@pytest.mark.parametrize(
    ("kind", "complaint"), [("greedy", "gives CPUs, but another"), ("clash", "sets OMP_NUM_THREADS")]
)
def test_two_kinds_that_give_the_same_thing(other_package: Path, kind: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_slots(NODE, 2, {"cpu": None, kind: None})


def test_one_name_registered_by_two_packages(other_package: Path) -> None:
    folder = other_package / "rival-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[clusterduck.resources]\nscratch = rival:Scratch\n")
    with pytest.raises(ConfigError, match="scratch is registered by other-kinds and rival; uninstall one"):
        validate({"scratch": None}, 2)
