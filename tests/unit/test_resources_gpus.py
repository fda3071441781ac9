from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
from fake_nvml import FakeNvml, fake_nvml, no_nvml  # noqa: F401 - fixtures

from clusterduck.agent.node import GpuDevice, Node
from clusterduck.agent.nvml import Nvml
from clusterduck.agent.resources.gpus import detect, divide_gpus, survey
from clusterduck.agent.slots import build_slots, validate
from clusterduck.errors import ConfigError
from clusterduck.model import Slot

MIG = "MIG-GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f/7/0"


def devices(count: int) -> tuple[GpuDevice, ...]:
    return tuple(GpuDevice(index, f"GPU-{index}{index}") for index in range(count))


def slots_of(environ: dict[str, str], count: int, **resources: object) -> list[Slot]:
    return build_slots(Node("node07", (0, 1), environ=environ), count, resources)


def visible(slots: list[Slot]) -> list[str]:
    assert all(slot.env["CUDA_VISIBLE_DEVICES"] == ",".join(slot.gpus) for slot in slots)
    return [slot.env["CUDA_VISIBLE_DEVICES"] for slot in slots]


@pytest.mark.parametrize(
    ("gpus", "count", "got"),
    [
        ("0,1,2,3", 4, ["0", "1", "2", "3"]),
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("0,1,2,3", 1, ["0,1,2,3"]),
        ("2,3", 4, ["2", "3", "2", "3"]),
        ("7", 3, ["7", "7", "7"]),
        (" 1 , 0 ", 2, ["1", "0"]),
        (f"GPU-8932f937,{MIG}", 2, ["GPU-8932f937", MIG]),
        ("0,0,1", 2, ["0", "1"]),
        ("0,1,-1,2", 2, ["0", "1"]),  # CUDA stops at the first that is no device
        ("0,1,01", 2, ["0", "1"]),
    ],
)
def test_gpus_of_the_environment(gpus: str, count: int, got: list[str]) -> None:
    assert visible(slots_of({"CUDA_VISIBLE_DEVICES": gpus}, count, cuda=None)) == got


@pytest.mark.parametrize("value", ["", " ", "-1", "NoDevFiles", ",0"])
def test_an_empty_list_means_none(value: str) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": value, "SLURM_JOB_GPUS": "0,1"}
    with pytest.raises(ConfigError, match=r"found no GPU on node07: CUDA_VISIBLE_DEVICES is .*, which hides them all"):
        slots_of(environ, 2, cuda=None)


def test_no_gpu_anywhere() -> None:
    with pytest.raises(ConfigError, match=r"found no GPU on node07: .* Ask for GPUs \(gpus_per_node\), or list"):
        slots_of({}, 2, cuda=None)


def test_listed_gpus_come_first_and_stay_strings() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "5,6"}
    assert visible(slots_of(environ, 2, cuda={"gpus": [3, "1"]})) == ["3", "1"]
    assert visible(slots_of({"CUDA_VISIBLE_DEVICES": ""}, 1, cuda={"gpus": ["GPU-abc", MIG]})) == [f"GPU-abc,{MIG}"]


@pytest.mark.parametrize(
    ("environ", "visible_to_nvml", "ids", "source"),
    [
        ({"GPU_DEVICE_ORDINAL": "0,1", "SLURM_JOB_GPUS": "2,3"}, 0, "0,1", "GPU_DEVICE_ORDINAL"),
        ({"SLURM_STEP_GPUS": "1", "SLURM_JOB_GPUS": "0,1"}, 0, "1", "SLURM_STEP_GPUS"),
        ({"SLURM_STEP_GPUS": "", "SLURM_JOB_GPUS": "0-2,5"}, 0, "0,1,2,5", "SLURM_JOB_GPUS"),
        ({"SLURM_JOB_GPUS": "2,3"}, 4, "2,3", "SLURM_JOB_GPUS"),  # nothing contains the job: NVML sees all four
        ({"SLURM_JOB_GPUS": "2,3"}, 2, "0,1", "NVML, as many as it may open of SLURM_JOB_GPUS 2-3"),  # a cgroup does
        ({"SLURM_JOB_GPUS": "0,1"}, 2, "0,1", "SLURM_JOB_GPUS"),  # the same either way
        (
            {"SLURM_STEP_GPUS": "3", "SLURM_JOB_GPUS": "2,3"},
            1,
            "0",
            "NVML, as many as it may open of SLURM_STEP_GPUS 3",
        ),
        ({"SLURM_JOB_GPUS": "1"}, 1, "0", "NVML, as many as it may open of SLURM_JOB_GPUS 1"),
        ({"SLURM_JOB_GPUS": "gpu:a100"}, 2, "0,1", "NVML"),
        ({}, 3, "0,1,2", "NVML"),
    ],
)
def test_where_ids_come_from(environ: dict[str, str], visible_to_nvml: int, ids: str, source: str) -> None:
    gpus, said = detect(environ, devices(visible_to_nvml))
    assert (",".join(gpus), said) == (ids, source)


def test_nvml_in_a_job_that_asked_for_no_gpu_is_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert detect({"SLURM_JOB_ID": "7"}, devices(2))[0] == ("0", "1")
    assert "Slurm named no GPUs for this job; taking the 2 that NVML lists" in caplog.text


def test_gpus_cut_into_mig_devices_are_offered_as_these() -> None:
    whole, cut = GpuDevice(0, "GPU-0"), GpuDevice(1, "GPU-1", mig=("MIG-a", "MIG-b"))
    assert detect({}, (whole, cut))[0] == ("0", "MIG-a", "MIG-b")


@pytest.mark.parametrize(
    ("gpus", "count", "advice"),
    [
        (
            3,
            2,
            "3 GPUs cannot be divided evenly among 2 slots; set parallel_runs_per_node to 1 or 3, or list only 2 of",
        ),
        (
            2,
            3,
            "2 GPUs cannot be divided evenly among 3 slots; set parallel_runs_per_node to 2 or 4, or list only 1 of",
        ),
        (4, 6, "set parallel_runs_per_node to 4 or 8, or list only 3 of"),
        (8, 3, "set parallel_runs_per_node to 2 or 4, or list only 6 of"),
    ],
)
@pytest.mark.parametrize("kind", ["cuda", "rendering"])
def test_divisions_that_cannot_be(kind: str, gpus: int, count: int, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):  # at launch, where they are listed
        validate({kind: {"gpus": list(range(gpus))}}, count)
    with pytest.raises(ConfigError, match=advice):  # in the agent, where they are found
        slots_of({"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}, count, **{kind: None})


def test_every_division_is_even_or_refused_and_the_advice_holds() -> None:
    for gpus in range(1, 13):
        for count in range(1, 17):
            listed = {"cuda": {"gpus": list(range(gpus))}}
            try:
                validate(listed, count)
            except ConfigError as error:
                words = str(error).replace(",", "").split()
                for better in (int(words[words.index("to") + 1]), int(words[words.index("or") + 1])):
                    validate(listed, better)
                validate({"cuda": {"gpus": list(range(int(words[words.index("only") + 1])))}}, count)
                continue
            shares = divide_gpus([str(gpu) for gpu in range(gpus)], count)
            users = [sum(str(gpu) in share for share in shares) for gpu in range(gpus)]
            assert len({len(share) for share in shares}) == 1
            assert len(set(users)) == 1
            assert users[0] >= 1


@pytest.mark.parametrize(
    ("gpus", "complaint"),
    [
        ([], "empty list"),
        ("0,1", r"must be a list such as \[0, 1\]"),
        (0, "must be a list"),
        ([True], "True is none"),
        ([-1], "-1 is none"),
        ([0.5], "0.5 is none"),
        (["a100"], "'a100' is none"),
        (["GPU-"], "'GPU-' is none"),
        (["GPU-x\n"], r"'GPU-x\\n' is none"),
        (["GPU-x,1"], "'GPU-x,1' is none"),
        (["01"], "'01' is none"),
        (["٣"], "is none"),
        ([None], "None is none"),
        ([10**5000], "<int> is none"),
        ([1, "1"], "names '1' more than once"),
        (["GPU-x", "GPU-x"], "more than once"),
    ],
)
@pytest.mark.parametrize("kind", ["cuda", "rendering"])
def test_options_that_cannot_be_meant(kind: str, gpus: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        validate({kind: {"gpus": gpus}}, 2)
    assert f"resources_config.{kind}.gpus" in str(caught.value)


def test_a_listed_gpu_that_nvml_does_not_know() -> None:
    node = Node("node07", (0,), devices=devices(2))
    with pytest.raises(ConfigError, match=r"names 2, GPU-99, but the GPUs of node07 are 0 \(GPU-00\), 1 \(GPU-11\)"):
        build_slots(node, 4, {"cuda": {"gpus": [0, 2, "GPU-11", "GPU-99"]}})
    assert visible(build_slots(node, 2, {"cuda": {"gpus": ["GPU-1", MIG]}})) == ["GPU-1", MIG]


EGL = ("EGL_DEVICE_ID", "PYGLET_HEADLESS_DEVICE", "MUJOCO_EGL_DEVICE_ID")


def egl(slots: list[Slot]) -> list[str]:
    assert all(len({slot.env[name] for name in EGL}) == 1 for slot in slots)
    return [slot.env[EGL[0]] for slot in slots]


def test_rendering_finds_gpus_like_cuda() -> None:
    slots = slots_of({"CUDA_VISIBLE_DEVICES": "2,3"}, 4, rendering=None)
    assert egl(slots) == ["2", "3", "2", "3"]
    assert [set(slot.env) for slot in slots] == [set(EGL)] * 4
    assert [slot.gpus for slot in slots] == [("2",), ("3",), ("2",), ("3",)]


def test_rendering_follows_what_cuda_was_told() -> None:
    slots = slots_of({"CUDA_VISIBLE_DEVICES": "0,1"}, 2, rendering=None, cuda={"gpus": [4, 5, 6, 7]})
    assert visible(slots) == ["4,5", "6,7"]
    assert egl(slots) == ["4", "6"]


def test_rendering_on_gpus_of_its_own() -> None:
    slots = slots_of({"CUDA_VISIBLE_DEVICES": "0,1"}, 2, rendering={"gpus": [3]}, cuda=None)
    assert egl(slots) == ["3", "3"]
    assert [slot.gpus for slot in slots] == [("0", "3"), ("1", "3")]
    assert [slot.env["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1"]


def test_egl_numbers_of_uuids() -> None:
    node = Node("node07", (0,), gpus=("GPU-11", "MIG-a"), devices=(*devices(2), GpuDevice(2, "GPU-22", mig=("MIG-a",))))
    assert egl(build_slots(node, 2, {"rendering": None})) == ["1", "2"]
    with pytest.raises(ConfigError, match="NVML on node07 knows none for GPU-11: list numbers in"):
        build_slots(replace(node, devices=()), 2, {"rendering": None})


def test_who_shares_a_gpu_is_said() -> None:
    slots = slots_of({"CUDA_VISIBLE_DEVICES": "0"}, 3, cuda=None)
    assert slots[0].why == "GPU 0 (CUDA_VISIBLE_DEVICES, shared with 2 other slots)"
    assert slots_of({}, 1, cuda={"gpus": [0, 1]})[0].why == "GPUs 0, 1 (as listed)"


def test_a_node_that_knows_its_gpus_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Nvml, "open", lambda *_: pytest.fail("NVML was asked"))
    node = Node("node07", (0,), gpus=("0",))
    assert survey(node) is node
    build_slots(Node("node07", (0,)), 2, {"cpu": None, "stagger": None, "tmpdir": None})


# --- with the real binding on a fake library

SURVEY = """
import json, sys
from pathlib import Path
from clusterduck.agent.node import Node
from clusterduck.agent.resources.gpus import survey
environ, sysfs = json.loads({environ!r}), Path({sysfs!r})
node = survey(Node("node07", (0,), environ=environ), sysfs)
print(json.dumps([node.gpus, node.gpu_source, [[d.index, d.uuid, d.numa, d.mig] for d in node.devices]]))
"""


def survey_with(
    fake: FakeNvml, environ: dict[str, str], sysfs: object = "/nowhere", **settings: object
) -> list[object]:
    answer = fake.run(SURVEY.format(environ=json.dumps(environ), sysfs=str(sysfs)), **settings)
    assert isinstance(answer, list)
    return answer


def test_nvml_lists_gpus_with_their_numa_nodes(fake_nvml: FakeNvml, tmp_path: object) -> None:  # noqa: F811
    from fake_sysfs import lay_out

    sysfs = lay_out(tmp_path, 1, 1, 1, gpus=[1, 0, -1])  # type: ignore[arg-type]
    gpus, source, listed = survey_with(fake_nvml, {}, sysfs, GPUS=3, MIG=2)
    assert gpus == ["0", "1", "MIG-fake2-part0", "MIG-fake2-part1"]
    assert source == "NVML"
    assert listed == [
        [0, "GPU-fake0-0000", 1, []],
        [1, "GPU-fake1-0000", 0, []],
        [2, "GPU-fake2-0000", None, ["MIG-fake2-part0", "MIG-fake2-part1"]],
    ]


def test_gpus_of_another_job_are_not_counted(fake_nvml: FakeNvml) -> None:  # noqa: F811
    gpus, _, listed = survey_with(fake_nvml, {"SLURM_JOB_GPUS": "2,3"}, GPUS=4, DENIED=2)
    assert gpus == ["0", "1"]
    assert listed == [[0, "GPU-fake2-0000", None, []], [1, "GPU-fake3-0000", None, []]]


@pytest.mark.parametrize("settings", [{"INIT": 9, "GPUS": 2}, {"GPUS": 0}])
def test_nvml_that_does_not_start_or_has_nothing(fake_nvml: FakeNvml, settings: dict[str, int]) -> None:  # noqa: F811
    gpus, source, listed = survey_with(fake_nvml, {}, **settings)
    assert (gpus, listed) == (None, [])
    assert source == "neither CUDA_VISIBLE_DEVICES nor Slurm names any, and NVML lists none"
