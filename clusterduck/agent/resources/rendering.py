"""``rendering``: a GPU for off-screen rendering through EGL, as MuJoCo, pyglet and Habitat choose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clusterduck.agent.node import Node
from clusterduck.agent.resources.gpus import check_division, divide_gpus, gpus_of
from clusterduck.agent.resources.kind import Grant, Kind
from clusterduck.agent.resources.options import read_gpus
from clusterduck.errors import ConfigError

VARIABLES = ("EGL_DEVICE_ID", "PYGLET_HEADLESS_DEVICE", "MUJOCO_EGL_DEVICE_ID")


class Rendering(Kind):
    """Sets the EGL device number to the first of a slot's share of ``gpus``; by default those that ``cuda`` gave it.

    EGL knows no UUIDs: these are turned into numbers by NVML.
    """

    option_names = ("gpus",)
    order = 10
    needs_gpus = True

    def __init__(self, options: Mapping[str, object]) -> None:
        self.gpus = read_gpus("resources_config.rendering.gpus", options.get("gpus"))

    def check(self, slots: int) -> None:
        """Refuse listed GPUs that do not divide among the slots."""
        if self.gpus is not None:
            check_division("rendering", len(self.gpus), slots)

    def divide(self, node: Node, slots: int, so_far: Sequence[Grant]) -> list[Grant]:
        """Give each slot the number of its GPU."""
        if self.gpus is None and all(grant.gpus for grant in so_far):
            chosen = [grant.gpus[0] for grant in so_far]
        else:
            gpus, _ = gpus_of("rendering", self.gpus, node)
            check_division("rendering", len(gpus), slots)
            chosen = [share[0] for share in divide_gpus(gpus, slots)]
        numbers = [_egl_number(gpu, node) for gpu in chosen]
        return [
            Grant(gpus=(gpu,), env=dict.fromkeys(VARIABLES, number), note=f"renders on EGL device {number}")
            for gpu, number in zip(chosen, numbers, strict=True)
        ]


def _egl_number(gpu: str, node: Node) -> str:
    if gpu.isdecimal():
        return gpu
    device = node.device(gpu)
    if device is None:
        raise ConfigError(
            f"resources_config.rendering needs a device number for EGL, and NVML on {node.host} knows none for {gpu}: "
            f"list numbers in resources_config.rendering.gpus, e.g. [0, 1]."
        )
    return str(device.index)
