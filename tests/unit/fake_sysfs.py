"""A made-up sysfs: CPUs in sockets, cores and hyperthreads, numbered as on servers, and GPUs on PCI buses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clusterduck.agent.node import Node, format_cpu_list, read_cores, read_numa


def lay_out(root: Path, sockets: int, cores: int, threads: int, gpus: Sequence[int] = (), numa: bool = True) -> Path:
    """All first hyperthreads come first, socket by socket, then all second ones; ``gpus`` are the GPUs' NUMA nodes."""
    total = sockets * cores
    for cpu in range(total * threads):
        core = cpu % total
        topology = root / f"devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "core_cpus_list").write_text(format_cpu_list(core + total * t for t in range(threads)) + "\n")
        (topology / "physical_package_id").write_text(f"{core // cores}\n")
        if numa:
            folder = root / f"devices/system/node/node{core // cores}"
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "cpulist").open("a") as file:
                file.write(f"{',' if file.tell() else ''}{cpu}")
    for index, node in enumerate(gpus):
        device = root / f"bus/pci/devices/0000:{0x10 + index:02x}:00.0"
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{node}\n")
    return root


def make_node(root: Path, sockets: int, cores: int, threads: int, environ: dict[str, str] | None = None) -> Node:
    """A node of which we have all CPUs."""
    sysfs = lay_out(root, sockets, cores, threads)
    cpus = tuple(range(sockets * cores * threads))
    return Node("node07", cpus, read_cores(cpus, sysfs), read_numa(cpus, sysfs), environ or {})
