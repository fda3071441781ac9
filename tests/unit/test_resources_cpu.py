from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fake_nvml import no_nvml  # noqa: F401 - a fixture
from fake_sysfs import make_node
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterduck.agent.node import GpuDevice, Node
from clusterduck.agent.resources.cpu_shares import share_cpus
from clusterduck.agent.slots import build_slots, validate
from clusterduck.errors import ConfigError


def cores_of(node: Node, cpus: tuple[int, ...]) -> set[int]:
    return {node.core_of[cpu] for cpu in cpus}


def numa_of(node: Node, cpus: tuple[int, ...]) -> set[int]:
    return {node.numa_of[cpu] for cpu in cpus}


def shares(node: Node, count: int, options: dict[str, object] | None = None) -> list[tuple[int, ...]]:
    return [slot.cpus for slot in build_slots(node, count, {"cpu": options})]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """2 sockets of 4 cores of 2 hyperthreads: CPU c and c + 8 are one core."""
    return make_node(tmp_path, sockets=2, cores=4, threads=2)


@pytest.mark.parametrize("count", range(1, 9))
def test_while_cores_suffice_no_two_slots_share_one(node: Node, count: int) -> None:
    got = shares(node, count)
    assert sorted(cpu for share in got for cpu in share) == list(node.cpus)  # all CPUs, each once
    cores = [cores_of(node, share) for share in got]
    assert sum(map(len, cores)) == 8
    assert max(map(len, cores)) - min(map(len, cores)) <= 1


@pytest.mark.parametrize(("count", "straddling"), [(1, 1), (2, 0), (3, 1), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0)])
def test_a_slot_stays_on_one_numa_node_unless_evenness_forbids(node: Node, count: int, straddling: int) -> None:
    assert sum(len(numa_of(node, share)) > 1 for share in shares(node, count)) == straddling


def test_more_slots_than_cores_share_cores_but_not_cpus(node: Node) -> None:
    got = shares(node, 12)
    assert sorted(cpu for share in got for cpu in share) == list(node.cpus)
    assert Counter(map(len, got)) == {2: 4, 1: 8}
    whole = [share for share in got if len(share) == 2]
    assert all(len(cores_of(node, share)) == 1 for share in whole)  # who gets two CPUs gets one core


def test_more_slots_than_cpus_take_turns_with_a_line_in_the_log(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        got = shares(node, 20)
    assert all(len(share) == 1 for share in got)
    assert Counter(Counter(got).values()) == {1: 12, 2: 4}
    assert [record.getMessage() for record in caplog.records] == ["node07: 20 slots share 16 CPUs in turn"]
    # Before anybody's CPU is shared, nobody's core is: the first 8 slots are on 8 cores.
    assert len({node.core_of[share[0]] for share in got[:8]}) == 8


def test_a_remainder_is_spread(tmp_path: Path) -> None:
    node = make_node(tmp_path, sockets=1, cores=7, threads=1)
    assert sorted(map(len, shares(node, 4))) == [1, 2, 2, 2]


def test_five_cores_a_socket_for_four_slots(tmp_path: Path) -> None:
    node = make_node(tmp_path, sockets=2, cores=5, threads=1)
    got = shares(node, 4)
    assert sorted(map(len, got)) == [2, 2, 3, 3]
    assert all(len(numa_of(node, share)) == 1 for share in got)


def test_slots_are_near_their_gpus(node: Node) -> None:
    devices = tuple(GpuDevice(index, f"GPU-{index}", numa=numa) for index, numa in enumerate((1, 1, 0, 0)))
    node = replace(node, gpus=("0", "1", "2", "3"), devices=devices)
    slots = build_slots(node, 4, {"cpu": None, "cuda": None})
    assert [numa_of(node, slot.cpus) for slot in slots] == [{1}, {1}, {0}, {0}]
    assert "where its GPU is" in slots[0].why
    # by UUID just as well, and whatever the order in which kinds are written down
    node = replace(node, gpus=("GPU-2", "GPU-0"))
    slots = build_slots(node, 2, {"cuda": None, "cpu": None})
    assert [numa_of(node, slot.cpus) for slot in slots] == [{0}, {1}]


def test_evenness_comes_before_nearness(node: Node) -> None:
    devices = tuple(GpuDevice(index, f"GPU-{index}", numa=0) for index in range(4))
    node = replace(node, gpus=("0", "1", "2", "3"), devices=devices)
    slots = build_slots(node, 4, {"cpu": None, "cuda": None})
    assert [len(slot.cpus) for slot in slots] == [4, 4, 4, 4]
    assert [numa_of(node, slot.cpus) for slot in slots] == [{0}, {0}, {1}, {1}]


def test_a_gpu_whose_numa_node_gives_us_no_cpus_is_no_wish(node: Node) -> None:
    node = replace(node, gpus=("0", "1"), devices=(GpuDevice(0, "GPU-0", numa=5), GpuDevice(1, "GPU-1", numa=None)))
    slots = build_slots(node, 2, {"cpu": None, "cuda": None})
    assert [len(slot.cpus) for slot in slots] == [8, 8]


def test_listed_cpus_restrict(node: Node) -> None:
    assert shares(node, 2, {"cpus": [12, 4, 0, 8]}) == [(0, 8), (4, 12)]
    assert shares(node, 2, {"cpus": [3]}) == [(3,), (3,)]


def test_listed_cpus_that_are_not_ours(node: Node) -> None:
    with pytest.raises(ConfigError, match=r"names 16,40-41, but the CPUs of this job on node07 are 0-15"):
        shares(node, 2, {"cpus": [0, 41, 16, 40]})


def test_cores_of_different_sizes_are_balanced_by_cpus(node: Node) -> None:
    # Cores 0 and 1 with both hyperthreads, four more with one: 8 CPUs for two slots.
    got = shares(node, 2, {"cpus": [0, 8, 1, 9, 2, 3, 4, 5]})
    assert [len(share) for share in got] == [4, 4]
    assert not cores_of(node, got[0]) & cores_of(node, got[1])


def test_a_core_for_each_slot_where_some_cores_have_one_cpu(node: Node) -> None:
    assert shares(node, 2, {"cpus": [0, 1, 9]}) == [(1, 9), (0,)]


def test_wishes_come_before_those_who_have_none() -> None:
    assert share_cpus([0, 1], {}, {0: 0, 1: 1}, [None, 0]) == [(1,), (0,)]


def test_a_whole_share_elsewhere_is_better_than_part_of_one_nearby() -> None:
    numa = {cpu: int(cpu >= 3) for cpu in range(7)}
    assert share_cpus(range(7), {}, numa, [0, 0, None]) == [(0, 1, 2), (3, 4), (5, 6)]


def test_idle_cores_come_first_when_cpus_are_shared() -> None:
    got = share_cpus(range(4), {0: 0, 1: 0, 2: 2, 3: 2}, {}, [None] * 6)
    assert got == [(0,), (2,), (1,), (3,), (0,), (2,)]


def test_wishes_count_when_cpus_are_shared() -> None:
    assert share_cpus([0, 1], {}, {0: 0, 1: 1}, [1, 0, 1]) == [(1,), (0,), (1,)]


def test_thread_counts_follow_unless_the_user_set_them(tmp_path: Path) -> None:
    node = make_node(tmp_path, 2, 4, 2, {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": ""})
    for slot in build_slots(node, 2, {"cpu": None}):
        assert slot.env == {"OPENBLAS_NUM_THREADS": "8"}


def test_thread_counts_of_all_three_libraries(node: Node) -> None:
    slot = build_slots(node, 3, {"cpu": None})[0]
    assert len(slot.cpus) == 6
    assert slot.env == dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "6")


@pytest.mark.parametrize(
    ("cpus", "complaint"),
    [
        ([], "empty list"),
        ("0-3", r"must be a list such as \[0, 1, 2, 3\], not '0-3'"),
        (4, "must be a list"),
        ({"0": 1}, "must be a list"),
        ([True], "True is none"),
        ([-1], "-1 is none"),
        (["0"], "'0' is none"),
        ([0.0], "0.0 is none"),
        ([None], "None is none"),
        ([10**5000], "<int> is none"),
        ([1, 2, 1], "names 1 more than once"),
        (["\x1b[31m\n"], r"'\\x1b\[31m\\n' is none"),
    ],
)
def test_options_that_cannot_be_meant(cpus: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        validate({"cpu": {"cpus": cpus}}, 2)
    assert "resources_config.cpu.cpus" in str(caught.value)
    assert str(caught.value).isprintable()


def test_fewer_listed_cpus_than_slots_are_no_error() -> None:
    validate({"cpu": {"cpus": [0]}}, 4)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_laws_of_sharing(data: st.DataObject) -> None:
    threads = data.draw(st.sampled_from([1, 2, 4]))
    per_node = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    slots = data.draw(st.integers(1, 20))
    near = data.draw(st.lists(st.sampled_from([None, 0, 1, 2, 3, 9]), min_size=slots, max_size=slots))
    numa_of_core = [node for node, cores in enumerate(per_node) for _ in range(cores)]
    total = len(numa_of_core)
    core_of = {cpu: cpu % total for cpu in range(total * threads)}
    numa = {cpu: numa_of_core[core] for cpu, core in core_of.items()}
    usable = data.draw(st.one_of(st.just(set(core_of)), st.sets(st.sampled_from(sorted(core_of)), min_size=1)))

    got = share_cpus(sorted(usable), core_of, numa, near)

    assert len(got) == slots
    assert all(share and list(share) == sorted(set(share)) for share in got)
    used = Counter(cpu for share in got for cpu in share)
    assert set(used) <= usable
    cores = {core_of[cpu] for cpu in usable}
    sizes = [len(share) for share in got]
    if len(usable) < slots:
        assert max(used.values()) - min(used[cpu] for cpu in usable) <= 1
        assert set(sizes) == {1}
        return
    assert used == dict.fromkeys(usable, 1)
    if len(cores) >= slots:
        owners = Counter(core for share in got for core in {core_of[cpu] for cpu in share})
        assert set(owners.values()) == {1}
        assert max(sizes) - min(sizes) <= threads
    else:
        assert max(sizes) - min(sizes) <= 1
    if usable == set(core_of) and len(cores) >= slots:
        # Only slots for which no NUMA node had room for the smaller share, or that took a remainder, straddle.
        each, remainder = divmod(total, slots)
        homes = sum(size // each for size in per_node)
        straddling = sum(len({numa[cpu] for cpu in share}) > 1 for share in got)
        assert straddling <= max(slots - homes, 0) + remainder


def test_a_large_node_is_quick_and_right() -> None:
    core_of = {cpu: cpu % 128 for cpu in range(256)}
    got = share_cpus(range(256), core_of, {cpu: core // 16 for cpu, core in core_of.items()}, [None] * 128)
    assert sorted(got) == [(core, core + 128) for core in range(128)]
