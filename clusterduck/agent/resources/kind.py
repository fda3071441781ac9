"""What every kind of resource is: options, checked at launch, and a division of a node, made in the agent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from clusterduck.agent.node import Node


@dataclass(frozen=True)
class Grant:
    """What one slot gets; the same fields as in ``model.Slot``, where they are explained.

    Attributes:
        cpus: kernel CPU ids for the run's affinity.
        gpus: GPU ids as CUDA names them.
        env: environment variables that the run gets.
        start_delay_s: seconds after the agent's start before the slot's first run may start.
        tmpdir_vars: variables naming a folder, of which each run gets a sub-folder.
        note: why, in a few words, for people.
    """

    cpus: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    start_delay_s: float = 0.0
    tmpdir_vars: tuple[str, ...] = ()
    note: str = ""


class Kind(ABC):
    """A kind of resource, made from its options in ``resources_config``.

    Attributes:
        option_names: the options there are; others are refused before the class is called.
        order: kinds of a lower order divide first, and those of a higher one see what they gave.
        needs_gpus: whether the node's GPUs are to be looked for (which may start NVML).
    """

    option_names: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[int] = 0
    needs_gpus: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, options: Mapping[str, object]) -> None:
        """Take the options; one that is None or absent means its default. Runs at launch and again in the agent.

        Raises:
            ConfigError: if an option's value cannot be meant.
        """

    def check(self, slots: int) -> None:  # noqa: B027 - not every kind has something that can be known at launch
        """Refuse, at launch, a number of slots that can be known to be impossible.

        Raises:
            ConfigError: saying what would work.
        """

    @abstractmethod
    def divide(self, node: Node, slots: int, so_far: Sequence[Grant]) -> list[Grant]:
        """Divide the node, in the agent.

        Args:
            node: what there is.
            slots: among how many.
            so_far: what kinds of lower order gave, merged, one for each slot.

        Returns:
            One grant for each slot.

        Raises:
            ConfigError: if it cannot be done on this node.
        """
