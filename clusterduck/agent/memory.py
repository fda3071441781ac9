"""How often the kernel killed a process of our cgroup for want of memory: tells OUT_OF_MEMORY from a plain SIGKILL."""

from __future__ import annotations

from pathlib import Path


class OomCounter:
    """Counts the out-of-memory kills in the cgroup of this process, since that cgroup was made.

    Read it when a run starts and when one was killed: a higher count means that memory ran out in between, for this run
    or another one in the same cgroup (a job's runs share it). Sources: ``oom_kill`` of ``memory.events`` in cgroup v2,
    of ``memory.oom_control`` in v1.

    Args:
        root: where ``proc`` and ``sys`` are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._file = next((file for file in _counter_files(root) if _read_counter(file) is not None), None)

    def kills(self) -> int | None:
        """The count now; None where there is no memory cgroup, or a kernel too old to count."""
        return None if self._file is None else _read_counter(self._file)


def _counter_files(root: Path) -> list[Path]:
    """Where our counter may stand, the likeliest first: v1's memory hierarchy, if any, holds memory even on hybrids."""
    mounts = root / "sys/fs/cgroup"
    old: list[Path] = []
    new: list[Path] = []
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, name = rest.partition(":")
        inside = name.lstrip("/")
        if not colon or ".." in Path(inside).parts:
            continue  # a cgroup outside our namespace: not to be seen from here
        # In a container the named path may be the host's, and the mount itself our cgroup.
        if not controllers:
            for top in (mounts, mounts / "unified"):
                new += [top / inside / "memory.events", top / "memory.events"]
        elif "memory" in controllers.split(","):
            top = mounts / "memory"
            old += [top / inside / "memory.oom_control", top / "memory.oom_control"]
    return old + new


def _read_counter(file: Path) -> int | None:
    for line in _read_text(file).splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isascii() and value.isdecimal():
            return int(value)
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
