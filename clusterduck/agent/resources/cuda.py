"""``cuda``: GPUs for CUDA: several per slot, one each, or several slots on one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clusterduck.agent.node import Node
from clusterduck.agent.resources.gpus import check_division, describe_share, divide_gpus, gpus_of
from clusterduck.agent.resources.kind import Grant, Kind
from clusterduck.agent.resources.options import read_gpus


class Cuda(Kind):
    """Sets ``CUDA_VISIBLE_DEVICES`` to a slot's share of ``gpus``, or of those found (see the module ``gpus``)."""

    option_names = ("gpus",)
    needs_gpus = True

    def __init__(self, options: Mapping[str, object]) -> None:
        self.gpus = read_gpus("resources_config.cuda.gpus", options.get("gpus"))

    def check(self, slots: int) -> None:
        """Refuse listed GPUs that do not divide among the slots."""
        if self.gpus is not None:
            check_division("cuda", len(self.gpus), slots)

    def divide(self, node: Node, slots: int, so_far: Sequence[Grant]) -> list[Grant]:
        """Give each slot its GPUs."""
        gpus, source = gpus_of("cuda", self.gpus, node)
        check_division("cuda", len(gpus), slots)
        shares = divide_gpus(gpus, slots)
        return [
            Grant(
                gpus=share,
                env={"CUDA_VISIBLE_DEVICES": ",".join(share)},
                note=describe_share(share, shares, source),
            )
            for share in shares
        ]
