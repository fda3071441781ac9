"""What the node gives us: which CPUs, how they form cores and NUMA nodes, and which GPUs.

A job step may be bound to fewer CPUs than its job has (Slurm's task/affinity binds a step without ``--cpus-per-task``
to one), and a cluster without containment shows a job CPUs that belong to others. :func:`discover` takes all CPUs of
the allocation and never more than the allocation has. Topology is read from Linux's sysfs; where it says nothing, every
CPU counts as a core of its own.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

_log = logging.getLogger(__name__)

SYSFS = Path("/sys")

#: As many CPUs as Linux can be built for; the kernel passes over those that a machine has not.
MOST_CPUS = 8192


@dataclass(frozen=True)
class GpuDevice:
    """A GPU as NVML lists it.

    Attributes:
        index: its place among the GPUs that this process may open, in the order of the PCI bus; what CUDA calls it when
            ``CUDA_DEVICE_ORDER=PCI_BUS_ID``, or where all GPUs are of one model.
        uuid: ``GPU-…``.
        numa: the NUMA node it hangs on, where the kernel knows.
        mig: the ids (``MIG-…``) of its MIG devices, if it is cut into such.
    """

    index: int
    uuid: str
    numa: int | None = None
    mig: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """A node as seen from the job's allocation.

    Attributes:
        host: the node's name.
        cpus: kernel ids of the allocation's CPUs, ascending.
        core_of: CPU -> its core, named by the lowest CPU id of that core.
        numa_of: CPU -> its NUMA node.
        environ: the environment of the job, from which GPUs and the user's own settings are read.
        gpus: GPU ids as CUDA names them; None until somebody asked for GPUs, and where there are none.
        gpu_source: where ``gpus`` was read, or a few words on why there are none.
        devices: the GPUs as NVML lists them; empty where there is no NVML or nobody asked.
    """

    host: str
    cpus: tuple[int, ...]
    core_of: Mapping[int, int] = field(default_factory=dict)
    numa_of: Mapping[int, int] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[str, ...] | None = None
    gpu_source: str = ""
    devices: tuple[GpuDevice, ...] = ()

    def device(self, gpu: str) -> GpuDevice | None:
        """The NVML device behind a GPU id (a number, a UUID or the unique beginning of one), where known."""
        return find_device(self.devices, gpu)

    @property
    def gpu_numa(self) -> dict[str, int]:
        """GPU id -> NUMA node, for those of ``gpus`` where it is known."""
        found = ((gpu, self.device(gpu)) for gpu in self.gpus or ())
        return {gpu: device.numa for gpu, device in found if device is not None and device.numa is not None}


def find_device(devices: Iterable[GpuDevice], gpu: str) -> GpuDevice | None:
    """The device that a GPU id names: by number, by UUID (CUDA accepts its unique beginning), or that of a MIG id."""
    if gpu.isdecimal():
        return next((device for device in devices if device.index == int(gpu)), None)
    # Older drivers write a MIG device as MIG-GPU-<uuid of the GPU>/<instance>/<compute instance>.
    whole = gpu[len("MIG-") :].partition("/")[0] if gpu.startswith("MIG-GPU-") else gpu
    matches = [
        device
        for device in devices
        if device.uuid.startswith(whole) or any(part.startswith(gpu) for part in device.mig)
    ]
    return matches[0] if len(matches) == 1 else None


def discover(environ: Mapping[str, str], cluster: str, sysfs: Path = SYSFS) -> Node:
    """Find the CPUs of our allocation and their topology; GPUs are looked for only when a resource asks for them.

    On ``slurm`` the calling thread, and what it starts from then on, is left free to use all CPUs that were found, so
    that runs without a ``cpu`` resource are not squeezed into the step's own binding; it is never bound more tightly
    than Slurm bound it. So call it in the thread that starts the runs. On ``local`` the CPUs are those this process may
    use already, and nothing is changed.

    Args:
        environ: the job's environment. For a local job, ``CUDA_VISIBLE_DEVICES`` must be the launching process's own.
        cluster: ``local`` or ``slurm``.
        sysfs: where sysfs is mounted.
    """
    bound = frozenset(os.sched_getaffinity(0))
    host = socket.gethostname()
    cpus: Set[int] = bound
    core_of = read_cores(bound, sysfs)
    if cluster == "slurm":
        host = environ.get("SLURMD_NODENAME") or host
        reachable = _widen(bound)
        core_of = read_cores(reachable, sysfs)
        granted = granted_cpus(environ)
        cpus = choose_cpus(bound, reachable, granted, core_of)
        if cpus not in (reachable, bound):
            text = "%s: the job has %d of %d CPUs and Slurm does not say which; another job may be taking the same"
            _log.warning(text, host, len(cpus), len(reachable))
        if reachable != bound | cpus:
            os.sched_setaffinity(0, bound | cpus)
    ordered = tuple(sorted(cpus))
    return Node(
        host=host,
        cpus=ordered,
        core_of={cpu: core_of[cpu] for cpu in ordered},
        numa_of=read_numa(ordered, sysfs),
        environ=dict(environ),
    )


def _widen(bound: frozenset[int]) -> frozenset[int]:
    """Let this thread run on every CPU that the kernel allows it; a cgroup's cpuset clips what we ask for."""
    try:
        os.sched_setaffinity(0, range(MOST_CPUS))
    except OSError as error:
        _log.warning("the CPU binding of this job step cannot be widened (%s): using its %d CPUs", error, len(bound))
        return bound
    return frozenset(os.sched_getaffinity(0))


def granted_cpus(environ: Mapping[str, str]) -> int | None:
    """How many CPUs of this node Slurm gave to the job; None where its variables say nothing.

    ``SLURM_JOB_CPUS_PER_NODE`` (e.g. ``72(x2),36``) counts the job's, ``SLURM_CPUS_ON_NODE`` may count only the step's,
    so the first is believed first.
    """
    counts: list[int] = []
    for part in environ.get("SLURM_JOB_CPUS_PER_NODE", "").split(","):
        match = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part.strip(), re.ASCII)
        if match is None:
            counts.clear()
            break
        counts.extend([int(match[1])] * int(match[2] or 1))
    place = environ.get("SLURM_NODEID", "0")
    if counts and re.fullmatch(r"\d{1,6}", place, re.ASCII) and int(place) < len(counts) and counts[int(place)]:
        return counts[int(place)]
    own = environ.get("SLURM_CPUS_ON_NODE", "")
    return (int(own) or None) if re.fullmatch(r"\d{1,6}", own, re.ASCII) else None


def choose_cpus(
    bound: Set[int], reachable: Set[int], granted: int | None, core_of: Mapping[int, int]
) -> frozenset[int]:
    """Which CPUs are the allocation's: all that can be reached, unless that is more than Slurm granted.

    More can be reached only where Slurm contains jobs by binding, or not at all. Then the step's binding is the
    allocation if it is as large; if not, nothing says which CPUs are ours, and we take those we are bound to, their
    cores' siblings, and further whole cores in order. Where as many CPUs were granted as there are cores, Slurm counts
    cores as CPUs: then one hyperthread of each core.
    """
    if granted is None:
        return frozenset(reachable)
    cores: dict[int, list[int]] = {}
    for cpu in sorted(reachable):
        cores.setdefault(core_of.get(cpu, cpu), []).append(cpu)
    bound_cores = {core_of.get(cpu, cpu) for cpu in bound}
    one_per_core = granted == len(cores)

    def wanted_first(cpu: int) -> tuple[bool, int, bool, int, int]:
        core = core_of.get(cpu, cpu)
        thread = cores[core].index(cpu) if one_per_core else 0
        return cpu not in bound, thread, core not in bound_cores, core, cpu

    return frozenset(sorted(reachable, key=wanted_first)[:granted])


def read_cores(cpus: Iterable[int], sysfs: Path = SYSFS) -> dict[int, int]:
    """CPU -> its core, named by the lowest CPU id of that core."""
    cores = {}
    for cpu in cpus:
        topology = sysfs / f"devices/system/cpu/cpu{cpu}/topology"
        siblings = _read_list(topology / "core_cpus_list") or _read_list(topology / "thread_siblings_list")
        cores[cpu] = min(siblings) if cpu in siblings else cpu
    return cores


def read_numa(cpus: Iterable[int], sysfs: Path = SYSFS) -> dict[int, int]:
    """CPU -> its NUMA node; its socket where the kernel shows no NUMA nodes, and 0 where it shows nothing."""
    numa: dict[int, int] = {}
    for folder in sorted((sysfs / "devices/system/node").glob("node[0-9]*")):
        number = folder.name[len("node") :]
        if number.isdecimal():
            numa.update(dict.fromkeys(_read_list(folder / "cpulist"), int(number)))
    return {cpu: numa[cpu] if cpu in numa else _read_socket(cpu, sysfs) for cpu in cpus}


def _read_socket(cpu: int, sysfs: Path) -> int:
    text = _read_text(sysfs / f"devices/system/cpu/cpu{cpu}/topology/physical_package_id").strip()
    return int(text) if re.fullmatch(r"\d{1,6}", text, re.ASCII) else 0


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _read_list(path: Path) -> tuple[int, ...]:
    return parse_cpu_list(_read_text(path))


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list format, e.g. ``0-3,8``, ascending; anything else gives an empty list."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip(), re.ASCII)
        if match is None:
            return ()
        cpus.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(cpus))


def counted(number: int, noun: str) -> str:
    """A number with its noun, e.g. ``1 core`` or ``2 cores``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Write CPU ids the way the kernel does, e.g. ``0-3,8``."""
    parts: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)
