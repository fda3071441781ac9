from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_nvml import no_nvml  # noqa: F401 - a fixture
from fake_sysfs import make_node

from clusterduck.agent.node import Node
from clusterduck.agent.slots import build_slots, describe, validate
from clusterduck.model import Slot


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return make_node(tmp_path, 2, 4, 2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})


@pytest.mark.parametrize("resources", [None, {}])
def test_kinds_must_be_asked_for(node: Node, resources: dict[str, object] | None) -> None:
    slots = build_slots(node, 3, resources)
    assert [replace(slot, why="") for slot in slots] == [Slot(0), Slot(1), Slot(2)]
    assert slots[0].why


def test_everything_at_once(node: Node) -> None:
    slots = build_slots(
        node, 4, {"tmpdir": None, "stagger": {"delay": 1}, "rendering": None, "cuda": None, "cpu": None}
    )
    assert slots[2] == Slot(
        index=2,
        cpus=(2, 3, 10, 11),
        gpus=("2",),
        env={
            "CUDA_VISIBLE_DEVICES": "2",
            "EGL_DEVICE_ID": "2",
            "PYGLET_HEADLESS_DEVICE": "2",
            "MUJOCO_EGL_DEVICE_ID": "2",
            "OMP_NUM_THREADS": "4",
            "MKL_NUM_THREADS": "4",
            "OPENBLAS_NUM_THREADS": "4",
        },
        start_delay_s=2.0,
        tmpdir_vars=("TMPDIR",),
        why=slots[2].why,
    )
    assert [slot.index for slot in slots] == [0, 1, 2, 3]
    assert Slot.from_json(slots[2].to_json()) == slots[2]


def test_the_order_in_which_kinds_are_written_does_not_matter(node: Node) -> None:
    resources: dict[str, object] = {"cuda": None, "cpu": None, "rendering": {"gpus": [0]}, "stagger": None}
    backwards = dict(reversed(resources.items()))
    assert build_slots(node, 2, resources) == build_slots(node, 2, backwards)


def test_verbose_says_who_got_what_and_why(node: Node) -> None:
    lines = describe(node, build_slots(node, 8, {"cpu": None, "cuda": None, "stagger": {"delay": 2}}))
    assert lines[0] == "node07: CPUs 0-15 (16 CPUs, 8 cores, 2 NUMA nodes) for 8 slots"
    assert lines[2] == (
        "slot 1: GPU 1 (CUDA_VISIBLE_DEVICES, shared with 1 other slot); first run after 2 s; "
        "CPUs 4,12 (2 of 16, on 1 core of NUMA node 1); "
        "sets CUDA_VISIBLE_DEVICES=1 MKL_NUM_THREADS=2 OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2"
    )
    assert len(lines) == 9


def test_verbose_with_shared_cpus_and_with_nothing(node: Node) -> None:
    assert "shared by 2 slots)" in describe(node, build_slots(node, 32, {"cpu": None}))[1]
    assert describe(node, build_slots(node, 1, {}))[1] == "slot 0: nothing of its own: resources_config is empty"


def test_verbose_lines_hold_no_control_characters(node: Node) -> None:
    nasty = replace(node, host="node\x1b[31m\nslot 0: lies")
    lines = describe(nasty, [Slot(0, env={"A": "\x1b]0;x\x07\n"}, why="x\ry")])
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_validation_at_launch_is_light() -> None:
    script = (
        "import sys; from clusterduck.agent.slots import validate; validate({'cuda': {'gpus': [0, 1]}}, 2);"
        "print([name for name in ('pynvml', 'psutil', 'sqlite3', 'hydra', 'submitit') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout.strip() == "[]"


def test_many_slots(node: Node) -> None:
    validate({"cpu": None}, 10_000)
    assert len(build_slots(node, 128, {"cpu": None, "cuda": None})) == 128
