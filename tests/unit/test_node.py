from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_sysfs import lay_out
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterduck.agent.node import (
    GpuDevice,
    Node,
    choose_cpus,
    discover,
    find_device,
    format_cpu_list,
    granted_cpus,
    parse_cpu_list,
    read_cores,
    read_numa,
)

DISCOVER = """
import json, os, sys
from clusterduck.agent.node import discover
if sys.argv[1]:
    os.sched_setaffinity(0, {int(sys.argv[1])})
node = discover(json.loads(sys.argv[3]), sys.argv[2])
print(json.dumps([node.cpus, sorted(os.sched_getaffinity(0))]))
"""

several_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")


def discover_bound(cluster: str, environ: dict[str, str], bind: bool = True) -> tuple[list[int], list[int], int]:
    """Discover in a process that is bound to one CPU; gives the node's CPUs, the affinity afterwards, and that CPU."""
    one = max(os.sched_getaffinity(0))
    command = [sys.executable, "-c", DISCOVER, str(one) if bind else "", cluster, json.dumps(environ)]
    cpus, affinity = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout)
    return cpus, affinity, one


@several_cpus
def test_a_step_bound_to_one_cpu_gets_all_of_its_job() -> None:
    cpus, affinity, _ = discover_bound("slurm", {"SLURM_CPUS_ON_NODE": "1", "SLURM_JOB_CPUS_PER_NODE": "100000"})
    assert set(cpus) >= set(os.sched_getaffinity(0))
    assert affinity == cpus  # runs without a cpu resource inherit it


@several_cpus
def test_never_more_than_the_job_has() -> None:
    cpus, affinity, one = discover_bound("slurm", {"SLURM_JOB_CPUS_PER_NODE": "1(x3)", "SLURM_NODEID": "2"})
    assert cpus == affinity == [one]  # one CPU is granted, and it is the one the step is bound to


@several_cpus
def test_a_job_that_slurm_left_unbound_stays_so() -> None:
    # One CPU is ours, and nobody says which: to bind every run to a guess would crowd several jobs onto one CPU.
    cpus, affinity, _ = discover_bound("slurm", {"SLURM_JOB_CPUS_PER_NODE": "1"}, bind=False)
    assert len(cpus) == 1
    assert set(affinity) == set(os.sched_getaffinity(0))


@several_cpus
def test_a_local_job_stays_where_it_is_bound() -> None:
    cpus, affinity, one = discover_bound("local", {"SLURM_JOB_CPUS_PER_NODE": "100000"})
    assert cpus == affinity == [one]


@pytest.mark.parametrize(
    ("bound", "granted", "cpus", "affinity"),
    [
        ({2}, "4", (0, 1, 2, 3), {0, 1, 2, 3}),  # bound too tightly
        ({2, 3, 4}, "3", (2, 3, 4), {2, 3, 4}),  # bound to what is ours
        ({2, 3, 4}, "2", (2, 3), {2, 3, 4}),  # bound more loosely: left so
        ({2}, "8", tuple(range(8)), set(range(8))),
    ],
)
def test_what_runs_inherit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bound: set[int], granted: str, cpus: object, affinity: set[int]
) -> None:
    now = bound

    def bind(_pid: int, wanted: range) -> None:
        nonlocal now
        now = set(wanted) & set(range(8))  # a cpuset of eight CPUs, each a core of its own

    monkeypatch.setattr(os, "sched_setaffinity", bind)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(now))
    assert discover({"SLURM_CPUS_ON_NODE": granted}, "slurm", tmp_path).cpus == cpus
    assert now == affinity


def test_a_binding_that_cannot_be_widened_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(_pid: int, _cpus: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {5})
    node = discover({"SLURMD_NODENAME": "node07", "SLURM_JOB_CPUS_PER_NODE": "8"}, "slurm", tmp_path)
    assert (node.host, node.cpus, dict(node.core_of), dict(node.numa_of)) == ("node07", (5,), {5: 5}, {5: 0})


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, None),
        ({"SLURM_JOB_CPUS_PER_NODE": "72"}, 72),
        ({"SLURM_JOB_CPUS_PER_NODE": "72(x2),36", "SLURM_NODEID": "0"}, 72),
        ({"SLURM_JOB_CPUS_PER_NODE": "72(x2),36", "SLURM_NODEID": "1"}, 72),
        ({"SLURM_JOB_CPUS_PER_NODE": "72(x2),36", "SLURM_NODEID": "2"}, 36),
        ({"SLURM_JOB_CPUS_PER_NODE": "72(x2),36", "SLURM_NODEID": "3", "SLURM_CPUS_ON_NODE": "5"}, 5),
        ({"SLURM_JOB_CPUS_PER_NODE": "72", "SLURM_CPUS_ON_NODE": "1"}, 72),  # the step has fewer than the job
        ({"SLURM_CPUS_ON_NODE": "8"}, 8),
        ({"SLURM_CPUS_ON_NODE": "0"}, None),
        ({"SLURM_CPUS_ON_NODE": "-3"}, None),
        ({"SLURM_CPUS_ON_NODE": "٣"}, None),  # a digit, but none of Slurm's
        ({"SLURM_JOB_CPUS_PER_NODE": "nonsense", "SLURM_NODEID": "x"}, None),
        ({"SLURM_JOB_CPUS_PER_NODE": "4(x999999999999)"}, None),
        ({"SLURM_JOB_CPUS_PER_NODE": "4", "SLURM_NODEID": "-1"}, None),
    ],
)
def test_how_many_cpus_slurm_granted(environ: dict[str, str], count: int | None) -> None:
    assert granted_cpus(environ) == count


PAIRS = {cpu: cpu % 8 for cpu in range(16)}  # 8 cores of two hyperthreads


@pytest.mark.parametrize(
    ("bound", "reachable", "granted", "chosen"),
    [
        ({0}, range(16), None, range(16)),  # nothing says that there is a limit
        ({0}, range(16), 16, range(16)),
        ({0}, range(4), 16, range(4)),  # a cpuset has fewer than Slurm says: no more than the cpuset
        ({4, 5, 12, 13}, range(16), 4, {4, 5, 12, 13}),  # bound to just what was granted
        ({6}, range(16), 4, {6, 14, 0, 8}),  # ours, its sibling, and a whole core
        (set(range(16)), range(16), 4, {0, 8, 1, 9}),  # not bound at all: whole cores
        (set(range(16)), range(16), 8, range(8)),  # as many as cores: Slurm counts cores
        ({3, 11, 4, 12, 5, 13}, range(16), 3, {3, 11, 4}),  # bound to more than granted: never beyond the binding
    ],
)
def test_which_cpus_are_the_allocations(bound: set[int], reachable: range, granted: int | None, chosen: object) -> None:
    assert choose_cpus(bound, set(reachable), granted, PAIRS) == frozenset(chosen)  # type: ignore[call-overload]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 40), min_size=1), st.sets(st.integers(0, 40)), st.integers(1, 50))
def test_the_choice_is_never_larger_than_the_grant_nor_out_of_reach(
    bound: set[int], more: set[int], granted: int
) -> None:
    reachable = bound | more
    chosen = choose_cpus(bound, reachable, granted, PAIRS)
    assert chosen <= reachable
    assert len(chosen) == min(granted, len(reachable))
    assert chosen <= bound or bound <= chosen


def test_topology_of_two_sockets(tmp_path: Path) -> None:
    sysfs = lay_out(tmp_path, sockets=2, cores=4, threads=2)
    assert read_cores(range(16), sysfs) == {cpu: cpu % 8 for cpu in range(16)}
    assert read_numa(range(16), sysfs) == {cpu: (cpu % 8) // 4 for cpu in range(16)}


def test_sockets_stand_in_for_numa_nodes(tmp_path: Path) -> None:
    sysfs = lay_out(tmp_path, sockets=2, cores=2, threads=1, numa=False)
    assert read_numa(range(4), sysfs) == {0: 0, 1: 0, 2: 1, 3: 1}


def test_without_topology_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert read_cores((3, 9), tmp_path / "absent") == {3: 3, 9: 9}
    assert read_numa((3, 9), tmp_path / "absent") == {3: 0, 9: 0}


def test_strange_topology_is_as_good_as_none(tmp_path: Path) -> None:
    for cpu, text in ((0, "garbage"), (1, "\0\xff"), (2, "7-9")):  # the last does not even hold CPU 2
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "core_cpus_list").write_text(text)
        (folder / "physical_package_id").write_text("-1")
    assert read_cores(range(3), tmp_path) == {0: 0, 1: 1, 2: 2}
    assert read_numa(range(3), tmp_path) == {0: 0, 1: 0, 2: 0}


@given(st.sets(st.integers(0, 300)))
def test_cpu_lists_survive_writing_and_reading(cpus: set[int]) -> None:
    assert parse_cpu_list(format_cpu_list(cpus)) == tuple(sorted(cpus))


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", ()), ("\n", ()), ("3", (3,)), ("0-2,8\n", (0, 1, 2, 8)), ("5-3", ()), ("a", ()), ("1,,2", ()), ("-1", ())],
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


DEVICES = (
    GpuDevice(0, "GPU-aa11", numa=1),
    GpuDevice(1, "GPU-aa22", numa=None),
    GpuDevice(2, "GPU-bb33", numa=0, mig=("MIG-x1", "MIG-x2")),
)


@pytest.mark.parametrize(
    ("gpu", "index"),
    [
        ("0", 0),
        ("3", None),
        ("GPU-aa22", 1),
        ("GPU-bb", 2),
        ("GPU-aa", None),  # of two GPUs
        ("MIG-x2", 2),
        ("MIG-GPU-bb33/1/0", 2),
        ("MIG-GPU-cc/1/0", None),
        ("GPU-zz", None),
    ],
)
def test_devices_by_any_name(gpu: str, index: int | None) -> None:
    found = find_device(DEVICES, gpu)
    assert (found.index if found else None) == index


def test_numa_nodes_of_gpus_where_known() -> None:
    node = Node("n", (0,), gpus=("0", "1", "GPU-bb33", "7"), devices=DEVICES)
    assert node.gpu_numa == {"0": 1, "GPU-bb33": 0}
