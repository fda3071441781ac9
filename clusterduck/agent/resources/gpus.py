"""Which GPUs are ours, by the ids that CUDA understands, and how they divide; for ``cuda`` and ``rendering``.

Where the ids come from, the first that says anything:

1. ``CUDA_VISIBLE_DEVICES``. CUDA counts its numbers among the devices it can open, and so does Slurm when it sets it.
   Read as CUDA does: up to the first entry that is no id (``-1``, ``NoDevFiles``); empty means that there are none.
2. ``GPU_DEVICE_ORDINAL``, which Slurm sets to the same value.
3. ``SLURM_STEP_GPUS``, then ``SLURM_JOB_GPUS``: the node's own numbers, whether or not a cgroup contains the job's
   devices (sbatch(1)). Where it does, CUDA sees only the job's GPUs and counts them from 0; that is so if NVML, under
   the same cgroup, lists too few for the highest of the numbers, and then its list is taken. Without NVML the numbers
   are taken as they are.
4. NVML: all GPUs that we may open; the MIG devices of those cut into such, because CUDA then offers only these.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clusterduck.agent.node import SYSFS, GpuDevice, Node, counted, format_cpu_list, parse_cpu_list
from clusterduck.agent.nvml import Nvml
from clusterduck.agent.resources.options import GPU_ID, show
from clusterduck.errors import ConfigError

_log = logging.getLogger(__name__)

SLURM_GLOBAL_IDS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")


def survey(node: Node, sysfs: Path = SYSFS) -> Node:
    """The node with its GPUs and NVML's devices filled in; a node that already says what it has is left alone."""
    if node.gpus is not None or node.devices:
        return node
    nvml = Nvml.open(sysfs)
    devices = nvml.devices if nvml is not None else ()
    if nvml is not None:
        nvml.close()
    gpus, source = detect(node.environ, devices)
    return replace(node, devices=devices, gpus=gpus or None, gpu_source=source)


def detect(environ: Mapping[str, str], devices: Sequence[GpuDevice]) -> tuple[tuple[str, ...], str]:
    """The ids of our GPUs and where they were read; with none, a clause that says why."""
    for name in ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"):
        value = environ.get(name)
        if value is not None:
            return read_visible(value), name if read_visible(
                value
            ) else f"{name} is {show(value)}, which hides them all"
    for name in SLURM_GLOBAL_IDS:
        ids = parse_cpu_list(environ.get(name, ""))
        if ids and devices and ids[-1] >= len(devices):
            return _list_ids(devices), f"NVML, as many as it may open of {name} {format_cpu_list(ids)}"
        if ids:
            return tuple(map(str, ids)), name
    if devices:
        if "SLURM_JOB_ID" in environ:
            _log.warning("Slurm named no GPUs for this job; taking the %d that NVML lists", len(devices))
        return _list_ids(devices), "NVML"
    return (), "neither CUDA_VISIBLE_DEVICES nor Slurm names any, and NVML lists none"


def read_visible(value: str) -> tuple[str, ...]:
    """The ids in a value of ``CUDA_VISIBLE_DEVICES``, up to the first that is none; one named twice counts once."""
    ids: list[str] = []
    for part in value.split(","):
        if not GPU_ID.fullmatch(part.strip()):
            break
        ids.append(part.strip())
    return tuple(dict.fromkeys(ids))


def _list_ids(devices: Sequence[GpuDevice]) -> tuple[str, ...]:
    return tuple(gpu for device in devices for gpu in device.mig or (str(device.index),))


def gpus_of(kind: str, listed: tuple[str, ...] | None, node: Node) -> tuple[tuple[str, ...], str]:
    """The GPUs a kind is to divide, listed in its options or found, and where they come from.

    Raises:
        ConfigError: if none are found, or if NVML knows that one of those listed does not exist here.
    """
    if listed is None:
        if not node.gpus:
            reason = node.gpu_source or "nobody names any"
            raise ConfigError(
                f"resources_config.{kind} found no GPU on {node.host}: {reason}. Ask for GPUs (gpus_per_node), or list "
                f"them in resources_config.{kind}.gpus."
            )
        return node.gpus, node.gpu_source
    # CUDA's numbers never go beyond NVML's; MIG ids are left to CUDA, since drivers write them in several ways.
    unknown = [gpu for gpu in listed if node.devices and not gpu.startswith("MIG-") and node.device(gpu) is None]
    if unknown:
        known = ", ".join(f"{device.index} ({device.uuid})" for device in node.devices)
        raise ConfigError(
            f"resources_config.{kind}.gpus names {', '.join(unknown)}, but the GPUs of {node.host} are {known}."
        )
    return listed, "as listed"


def check_division(kind: str, gpus: int, slots: int) -> None:
    """Refuse numbers of which neither is a multiple of the other.

    Raises:
        ConfigError: naming the numbers that would work.
    """
    if _divides(gpus, slots):
        return
    fewer = next(number for number in range(slots - 1, 0, -1) if _divides(gpus, number))
    more = next(number for number in range(slots + 1, slots + gpus + 1) if _divides(gpus, number))
    list_instead = next(number for number in range(gpus - 1, 0, -1) if _divides(number, slots))
    raise ConfigError(
        f"resources_config.{kind}: {gpus} GPUs cannot be divided evenly among {slots} slots; set "
        f"parallel_runs_per_node to {fewer} or {more}, or list only {list_instead} of the GPUs in "
        f"resources_config.{kind}.gpus."
    )


def _divides(gpus: int, slots: int) -> bool:
    return gpus % slots == 0 or slots % gpus == 0


def divide_gpus(gpus: Sequence[str], slots: int) -> list[tuple[str, ...]]:
    """GPUs for each slot: neighbours where a slot gets several; where slots share a GPU, they take turns.

    Takes numbers that :func:`check_division` accepts. In turns, so that few runs on many slots still use all GPUs.
    """
    each = len(gpus) // slots
    if each == 0:
        return [(gpus[slot % len(gpus)],) for slot in range(slots)]
    return [tuple(gpus[slot * each : (slot + 1) * each]) for slot in range(slots)]


def describe_share(mine: Sequence[str], everyones: Sequence[Sequence[str]], source: str) -> str:
    """A slot's GPUs in words: which, by whose word, and with how many slots they are shared."""
    sharing = sum(1 for other in everyones if set(other) & set(mine)) - 1
    shared = f", shared with {counted(sharing, 'other slot')}" if sharing else ""
    return f"GPU{'s' if len(mine) > 1 else ''} {', '.join(mine)} ({source}{shared})"
