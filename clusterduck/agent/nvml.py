"""NVML, NVIDIA's own word on its GPUs, made safe to ask: a node without it, or a GPU that fails, is never an error.

The one place that imports ``pynvml`` (the package nvidia-ml-py), and it does so late, so that validating a launch is
cheap. GPUs are numbered among those that this process may open: in a job whose devices are contained by a cgroup, CUDA
counts like that too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clusterduck.agent.node import SYSFS, GpuDevice, find_device

_log = logging.getLogger(__name__)


class Nvml:
    """An open NVML: the devices there are, and how busy they are. Use :meth:`open`."""

    def __init__(self, api: Any, sysfs: Path) -> None:
        self._api = api
        # pynvml raises AttributeError for a function it lacks, and ValueError for a text that is no UTF-8.
        self._failures: tuple[type[Exception], ...] = (api.NVMLError, OSError, AttributeError, ValueError)
        self._handles: dict[str, Any] = {}  # by UUID, also of MIG devices
        self._silent: set[tuple[str, str]] = set()  # (UUID, reading) that failed once and is not asked again
        self.devices: tuple[GpuDevice, ...] = self._list_devices(sysfs)

    @classmethod
    def open(cls, sysfs: Path = SYSFS) -> Nvml | None:
        """Load and initialise NVML; None where there is none or it does not start (which is logged, at debug level)."""
        try:
            import pynvml
        except ImportError as error:
            _log.debug("no pynvml: %s", error)
            return None
        try:
            pynvml.nvmlInit()
        except (pynvml.NVMLError, OSError, AttributeError) as error:
            _log.debug("no NVML: %s", error)
            return None
        return cls(pynvml, sysfs)

    def close(self) -> None:
        """Let go of NVML; harmless if it has failed in the meantime."""
        self._handles.clear()
        self._ask("close", self._api.nvmlShutdown)

    def _ask(self, what: str, question: Callable[..., Any], *arguments: object) -> Any:
        try:
            return question(*arguments)
        except self._failures as error:
            _log.debug("NVML, %s: %s", what, error)
            return None

    def _list_devices(self, sysfs: Path) -> tuple[GpuDevice, ...]:
        devices: list[GpuDevice] = []
        for index in range(self._ask("count", self._api.nvmlDeviceGetCount) or 0):
            # A GPU that belongs to another job may be counted and still not be ours to open.
            handle = self._ask(f"GPU {index}", self._api.nvmlDeviceGetHandleByIndex, index)
            uuid = None if handle is None else self._ask(f"GPU {index}", self._api.nvmlDeviceGetUUID, handle)
            if uuid is None:
                continue
            self._handles[str(uuid)] = handle
            devices.append(GpuDevice(len(devices), str(uuid), self._read_numa(handle, sysfs), self._list_mig(handle)))
        return tuple(devices)

    def _read_numa(self, handle: Any, sysfs: Path) -> int | None:
        info = self._ask("PCI address", self._api.nvmlDeviceGetPciInfo, handle)
        if info is None:
            return None
        address = f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0"
        try:
            text = (sysfs / "bus/pci/devices" / address / "numa_node").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        text = text.strip()
        return int(text) if re.fullmatch(r"\d{1,6}", text, re.ASCII) else None  # -1: the firmware does not say

    def _list_mig(self, handle: Any) -> tuple[str, ...]:
        mode = self._ask("MIG mode", self._api.nvmlDeviceGetMigMode, handle)
        if not mode or not mode[0]:
            return ()
        found = []
        for place in range(self._ask("MIG count", self._api.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            part = self._ask(f"MIG device {place}", self._api.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
            uuid = None if part is None else self._ask("MIG UUID", self._api.nvmlDeviceGetUUID, part)
            if uuid is not None:
                self._handles[str(uuid)] = part
                found.append(str(uuid))
        return tuple(found)

    def identify(self, gpu: str) -> str | None:
        """The full UUID behind an id as CUDA takes it, so that two names of one GPU can be told; None if unknown."""
        matches = [uuid for uuid in self._handles if gpu.startswith("MIG-") and uuid.startswith(gpu)]
        if len(matches) == 1:
            return matches[0]
        device = find_device(self.devices, gpu)
        return device.uuid if device is not None else None

    def read(self, uuid: str) -> tuple[int | None, int | None]:
        """Load in percent and used memory in bytes of one GPU; None for what it does not tell (MIG has no load).

        What failed once is not asked again: a sick GPU may take seconds to say no.
        """
        load = self._read_once(uuid, "load", self._api.nvmlDeviceGetUtilizationRates)
        memory = self._read_once(uuid, "memory", self._api.nvmlDeviceGetMemoryInfo)
        return (None if load is None else int(load.gpu), None if memory is None else int(memory.used))

    def _read_once(self, uuid: str, what: str, question: Callable[..., Any]) -> Any:
        if uuid not in self._handles or (uuid, what) in self._silent:
            return None
        answer = self._ask(f"{what} of {uuid}", question, self._handles[uuid])
        if answer is None:
            self._silent.add((uuid, what))
        return answer
