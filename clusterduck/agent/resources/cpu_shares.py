"""The arithmetic of ``cpu``: even shares of whole cores, each on one NUMA node as far as the numbers allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence


def share_cpus(
    cpus: Sequence[int], core_of: Mapping[int, int], numa_of: Mapping[int, int], near: Sequence[int | None]
) -> list[tuple[int, ...]]:
    """Divide CPUs among slots; every CPU goes to one slot, and every slot gets at least one CPU.

    - With at least as many cores as slots, each slot gets whole cores, their numbers differing by at most one.
    - With fewer, cores are split between slots by hyperthreads, CPU numbers differing by at most one.
    - With fewer CPUs than slots, slots share CPUs in turn.

    A share lies on one NUMA node, the slot's near one if it has room, unless evenness demands otherwise.

    Args:
        cpus: the CPUs to divide, at least one.
        core_of: CPU -> core; a CPU that is missing is a core of its own.
        numa_of: CPU -> NUMA node; a CPU that is missing is on node 0.
        near: for each slot the NUMA node it would like, e.g. that of its GPU.

    Returns:
        For each slot its CPUs, ascending.
    """
    cores: dict[int, list[int]] = {}
    for cpu in sorted(cpus):
        cores.setdefault(core_of.get(cpu, cpu), []).append(cpu)
    whole = [tuple(core) for core in cores.values()]
    if len(cpus) < len(near):
        shares = _in_turn(whole, numa_of, near)
    elif len(whole) < len(near):
        shares = _in_blocks([(cpu,) for core in whole for cpu in core], numa_of, near)
    elif len({len(core) for core in whole}) > 1:
        shares = _dealt(whole, numa_of, near)
    else:
        shares = _in_blocks(whole, numa_of, near)
    return [tuple(sorted(share)) for share in shares]


def _in_blocks(
    units: Sequence[tuple[int, ...]], numa_of: Mapping[int, int], near: Sequence[int | None]
) -> list[list[int]]:
    """Equal units (cores, or CPUs) in even numbers, as runs of neighbours within a NUMA node."""
    rooms: dict[int, list[tuple[int, ...]]] = {}
    for unit in units:
        rooms.setdefault(numa_of.get(unit[0], 0), []).append(unit)
    counts = _count_by_node({node: len(room) for node, room in rooms.items()}, near)
    shares: list[list[int]] = [[] for _ in near]
    for node, room in rooms.items():
        # In order: those that took a remainder come first, so that who gets two hyperthreads gets those of one core.
        for share, count in zip(shares, counts, strict=True):
            for _ in range(count[node]):
                share.extend(room.pop(0))
    return shares


def _count_by_node(room: dict[int, int], near: Sequence[int | None]) -> list[Counter[int]]:
    """How many units of each NUMA node each slot gets; uses ``room`` (node -> free units) up entirely."""
    slots = range(len(near))
    each = sum(room.values()) // len(near)
    counts: list[Counter[int]] = [Counter() for _ in slots]

    def take(slot: int, node: int, number: int) -> None:
        room[node] -= number
        counts[slot][node] += number

    def roomiest() -> int:
        return max(room, key=lambda node: (room[node], -node))

    # Each slot finds one node for all of its units, those with a wish first.
    pieced: list[int] = []
    for slot in sorted(slots, key=lambda slot: near[slot] is None):
        wish = near[slot]
        home = wish if wish is not None and room.get(wish, 0) >= each else roomiest()
        if room[home] >= each:
            take(slot, home, each)
        else:
            pieced.append(slot)
    # Those that fitted nowhere are pieced together.
    for slot in pieced:
        while counts[slot].total() < each:
            wish = near[slot]
            node = wish if wish is not None and room.get(wish, 0) else roomiest()
            take(slot, node, min(room[node], each - counts[slot].total()))
    # The remainder, one unit to a slot, goes to slots at home there as long as there are any.
    growing = [slot for slot in slots if slot not in pieced] + pieced
    for node in list(room):
        for slot in list(growing):
            if room[node] and counts[slot][node]:
                take(slot, node, 1)
                growing.remove(slot)
    for slot in growing[: sum(room.values())]:
        take(slot, roomiest(), 1)
    return counts


def _dealt(cores: Sequence[tuple[int, ...]], numa_of: Mapping[int, int], near: Sequence[int | None]) -> list[list[int]]:
    """Cores of different sizes (some CPUs left out, or two kinds of cores): the largest first, to who has least."""
    homes = list(near)
    shares: list[list[int]] = [[] for _ in near]
    for core in sorted(cores, key=lambda core: (-len(core), numa_of.get(core[0], 0), core)):
        node = numa_of.get(core[0], 0)
        slot = min(range(len(near)), key=lambda slot: (len(shares[slot]), homes[slot] not in (None, node), slot))
        shares[slot].extend(core)
        if homes[slot] is None:
            homes[slot] = node
    return shares


def _in_turn(
    cores: Sequence[tuple[int, ...]], numa_of: Mapping[int, int], near: Sequence[int | None]
) -> list[list[int]]:
    """One CPU for each slot, of those with the fewest users; where there is a choice, a near one on an idle core."""
    users = Counter({cpu: 0 for core in cores for cpu in core})
    shares: list[list[int]] = []
    for wish in near:
        *_, cpu = min(
            (users[cpu], wish not in (None, numa_of.get(cpu, 0)), sum(users[other] for other in core), cpu)
            for core in cores
            for cpu in core
        )
        users[cpu] += 1
        shares.append([cpu])
    return shares
