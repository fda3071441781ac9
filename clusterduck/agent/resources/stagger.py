"""``stagger``: the first runs of a node start one after another, so that they do not all read the data set at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clusterduck.agent.node import Node
from clusterduck.agent.resources.kind import Grant, Kind
from clusterduck.agent.resources.options import read_seconds

DEFAULT_DELAY_S = 5.0


class Stagger(Kind):
    """Slot k's first run starts k times ``delay`` seconds (default 5) after slot 0's; the agent's timer waits."""

    option_names = ("delay",)

    def __init__(self, options: Mapping[str, object]) -> None:
        self.delay_s = read_seconds("resources_config.stagger.delay", options.get("delay"), DEFAULT_DELAY_S)

    def divide(self, node: Node, slots: int, so_far: Sequence[Grant]) -> list[Grant]:
        """Give slot k a delay of k times ``delay``."""
        delays = [slot * self.delay_s for slot in range(slots)]
        return [Grant(start_delay_s=delay, note=f"first run after {delay:g} s") for delay in delays]
