"""``cpu``: an even share of the node's CPUs, so that runs side by side do not get into each other's way."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from clusterduck.agent.node import Node, counted, format_cpu_list
from clusterduck.agent.resources.cpu_shares import share_cpus
from clusterduck.agent.resources.kind import Grant, Kind
from clusterduck.agent.resources.options import read_cpus
from clusterduck.errors import ConfigError

_log = logging.getLogger(__name__)

#: Thread counts of the libraries that would otherwise start as many threads as the node has CPUs.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Cpu(Kind):
    """Binds each slot to its share of ``cpus`` (default: the job's), and sets thread counts the user left unset."""

    option_names = ("cpus",)
    order = 20  # after all kinds that give GPUs, to be near these

    def __init__(self, options: Mapping[str, object]) -> None:
        self.cpus = read_cpus("resources_config.cpu.cpus", options.get("cpus"))

    def divide(self, node: Node, slots: int, so_far: Sequence[Grant]) -> list[Grant]:
        """Give each slot its CPUs, near its GPUs.

        Raises:
            ConfigError: if CPUs are listed that are not the job's.
        """
        cpus = node.cpus if self.cpus is None else self.cpus
        missing = sorted({*cpus} - {*node.cpus})
        if missing:
            raise ConfigError(
                f"resources_config.cpu.cpus names {format_cpu_list(missing)}, but the CPUs of this job on {node.host} "
                f"are {format_cpu_list(node.cpus)}."
            )
        if len(cpus) < slots:
            _log.warning("%s: %s share %s in turn", node.host, counted(slots, "slot"), counted(len(cpus), "CPU"))
        near = [_numa_of_gpus(grant.gpus, node) for grant in so_far]
        shares = share_cpus(cpus, node.core_of, node.numa_of, near)
        users = Counter(cpu for share in shares for cpu in share)
        return [
            Grant(
                cpus=share,
                env={name: str(len(share)) for name in THREAD_VARIABLES if name not in node.environ},
                note=_describe(share, node, wish, max(users[cpu] for cpu in share)),
            )
            for share, wish in zip(shares, near, strict=True)
        ]


def _numa_of_gpus(gpus: Sequence[str], node: Node) -> int | None:
    """The NUMA node on which most of the GPUs hang, where known."""
    devices = [node.device(gpu) for gpu in gpus]
    known = Counter(device.numa for device in devices if device is not None and device.numa is not None)
    return known.most_common(1)[0][0] if known else None


def _describe(share: Sequence[int], node: Node, wish: int | None, users: int) -> str:
    cores = len({node.core_of.get(cpu, cpu) for cpu in share})
    places = sorted({node.numa_of.get(cpu, 0) for cpu in share})
    text = f"CPU{'s' if len(share) > 1 else ''} {format_cpu_list(share)} ({len(share)} of {len(node.cpus)}, "
    text += f"on {counted(cores, 'core')} of NUMA node {', '.join(map(str, places))}"
    if places == [wish]:
        text += ", where its GPU is"
    return text + (f", shared by {users} slots)" if users > 1 else ")")
