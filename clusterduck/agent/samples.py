"""How busy each slot is: CPU and memory of its run's processes, and load and memory of its GPUs.

One pass over ``/proc`` serves all slots: one small file per process of ours (other users' are passed over by their
owner), so that the cost grows with the processes of the node, not with slots times processes. A process belongs to a
slot if its session or process group is the run's, or if one of its ancestors belongs to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from clusterduck.agent.node import SYSFS
from clusterduck.agent.nvml import Nvml
from clusterduck.model import Slot

#: The row of the node as a whole.
NODE = -1

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Row = list[float | int | None]


@dataclass(frozen=True)
class _Process:
    parent: int
    group: int
    session: int
    cpu_s: float  # its own, and that of its children which have ended
    started_s: float  # since boot
    rss_bytes: int


@dataclass
class _Usage:
    cpu_s: float = 0.0
    rss_bytes: int = 0


@dataclass(frozen=True)
class _Reading:
    leader: int
    cpu_s: float
    at_s: float


class Sampler:
    """Takes samples of slots; keeps what it needs from one to the next. Not for use by two threads at once.

    Percentages are of one CPU, 100 being one CPU fully busy, for slots and node alike. CPU is the average since the
    previous sample, or since the run began: see :meth:`begins`. Memory of a slot is the sum of its processes' resident
    sets, in which pages that several of them share count for each. A GPU's load and memory are the whole GPU's, also
    where slots share it; of several GPUs, load is averaged and memory added.

    Args:
        slots: the node's slots; NVML is started only if one of them has GPUs.
        proc: where procfs is mounted.
        sysfs: where sysfs is mounted.
    """

    def __init__(self, slots: Sequence[Slot], proc: Path = Path("/proc"), sysfs: Path = SYSFS) -> None:
        self._proc = str(proc)
        self._nvml = Nvml.open(sysfs) if any(slot.gpus for slot in slots) else None
        self._uuids: dict[int, tuple[str, ...]] = {}
        if self._nvml is not None:
            for slot in slots:
                uuids = (self._nvml.identify(gpu) for gpu in slot.gpus)
                self._uuids[slot.index] = tuple(dict.fromkeys(uuid for uuid in uuids if uuid is not None))
        self._last: dict[int, _Reading] = {}
        self._begun: dict[int, _Reading] = {}
        self._last_node = (_busy_s(), time.monotonic())

    def begins(self, slot: int, leader: int) -> None:
        """Note that a run begins in a process that has waited for it: what was used before is not the run's.

        May be called by another thread, also during :meth:`sample`.
        """
        process = _read_process(self._proc, leader)
        if process is not None:
            self._begun[slot] = _Reading(leader, process.cpu_s, time.clock_gettime(time.CLOCK_BOOTTIME))

    def sample(self, groups: Mapping[int, int]) -> list[Row]:
        """Read all busy slots, and the node.

        Args:
            groups: slot -> process id of the leader of its run's session.

        Returns:
            Rows ``[slot, cpu_percent, memory_bytes, gpu_percent, gpu_memory_bytes]``, None for what is not known: one
            for each of ``groups`` and one for the node (slot -1; its GPU columns are those of all GPUs of the slots).
        """
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        processes = _read_processes(self._proc, frozenset(groups.values()))
        usage = _add_up(processes, {leader: slot for slot, leader in groups.items()})
        gpus = self._read_gpus()
        rows: list[Row] = []
        readings: dict[int, _Reading] = {}
        for slot, leader in groups.items():
            used = usage.get(slot)
            row: Row = [slot, None, None, *_join(gpus, self._uuids.get(slot, ()))]
            if used is not None:
                row[1] = self._percent(slot, leader, used.cpu_s, now_s, processes.get(leader))
                row[2] = used.rss_bytes
                readings[slot] = _Reading(leader, used.cpu_s, now_s)
            rows.append(row)
        self._last = readings
        rows.append([NODE, *self._sample_node(), *_join(gpus, tuple(gpus))])
        return rows

    def close(self) -> None:
        """Let go of NVML."""
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None
            self._uuids.clear()

    def _percent(self, slot: int, leader: int, cpu_s: float, now_s: float, process: _Process | None) -> float | None:
        for last in (self._last.get(slot), self._begun.get(slot)):
            if last is not None and last.leader == leader:
                # Less than before: a process that had left its parent has ended, and its time went with it.
                return _rate(max(cpu_s - last.cpu_s, 0.0), now_s - last.at_s)
        return None if process is None else _rate(cpu_s, now_s - process.started_s)

    def _sample_node(self) -> tuple[float | None, int]:
        busy_s, at_s = _busy_s(), time.monotonic()
        last_busy_s, last_at_s = self._last_node
        self._last_node = (busy_s, at_s)
        memory = psutil.virtual_memory()
        return _rate(max(busy_s - last_busy_s, 0.0), at_s - last_at_s), int(memory.total - memory.available)

    def _read_gpus(self) -> dict[str, tuple[int | None, int | None]]:
        if self._nvml is None:
            return {}
        distinct = {uuid for uuids in self._uuids.values() for uuid in uuids}
        return {uuid: self._nvml.read(uuid) for uuid in sorted(distinct)}


def _rate(cpu_s: float, elapsed_s: float) -> float | None:
    return round(100.0 * cpu_s / elapsed_s, 1) if elapsed_s > 0 else None


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice + times.irq + times.softirq + times.steal)


def _join(gpus: Mapping[str, tuple[int | None, int | None]], uuids: Sequence[str]) -> tuple[float | None, int | None]:
    readings = [gpus[uuid] for uuid in uuids if uuid in gpus]
    loads = [load for load, _ in readings if load is not None]
    memories = [memory for _, memory in readings if memory is not None]
    return round(sum(loads) / len(loads), 1) if loads else None, sum(memories) if memories else None


def _read_processes(proc: str, leaders: frozenset[int]) -> dict[int, _Process]:
    """All processes of our own user, and the leaders whoever they belong to."""
    user = os.geteuid()
    processes = {}
    for name in os.listdir(proc):
        if not name.isdecimal():
            continue
        try:
            if os.stat(f"{proc}/{name}").st_uid != user and int(name) not in leaders:
                continue
        except OSError:
            continue  # it has ended since we listed it
        process = _read_process(proc, int(name))
        if process is not None:
            processes[int(name)] = process
    return processes


def _read_process(proc: str, pid: int) -> _Process | None:
    """None if it has ended."""
    try:
        file = os.open(f"{proc}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(file, 4096)
        finally:
            os.close(file)
    except OSError:
        return None
    return _parse_stat(text)


def _parse_stat(text: bytes) -> _Process | None:
    """Read ``/proc/<pid>/stat``, see proc(5); a command's name may hold anything, also blanks and brackets."""
    fields = text[text.rfind(b")") + 1 :].split()
    if len(fields) < 22:
        return None
    return _Process(
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        cpu_s=(int(fields[11]) + int(fields[12]) + int(fields[13]) + int(fields[14])) / _TICKS_PER_S,
        started_s=int(fields[19]) / _TICKS_PER_S,
        rss_bytes=int(fields[21]) * _PAGE_BYTES,
    )


def _add_up(processes: Mapping[int, _Process], slots: Mapping[int, int]) -> dict[int, _Usage]:
    """Slot -> what its processes use together; ``slots`` is leader -> slot."""
    owner: dict[int, int | None] = {}
    usage: dict[int, _Usage] = {}
    for pid, process in processes.items():
        slot = _find_slot(pid, processes, slots, owner)
        if slot is not None:
            total = usage.setdefault(slot, _Usage())
            total.cpu_s += process.cpu_s
            total.rss_bytes += process.rss_bytes
    return usage


def _find_slot(
    pid: int, processes: Mapping[int, _Process], slots: Mapping[int, int], owner: dict[int, int | None]
) -> int | None:
    """The slot of a process: by session, by group, or by the nearest ancestor that has one."""
    path: list[int] = []
    slot: int | None = None
    while pid in processes and pid not in path:
        if pid in owner:
            slot = owner[pid]
            break
        path.append(pid)
        process = processes[pid]
        slot = slots.get(process.session, slots.get(process.group))
        if slot is not None:
            break
        pid = process.parent
    owner.update(dict.fromkeys(path, slot))
    return slot
