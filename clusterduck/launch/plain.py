"""The part of the user's side that needs nothing of the user's: enough to compose a run's configuration ahead of time.

The sweep's configuration, Hydra's config loader and its singletons are data of Hydra's own unless the user put classes
or functions of theirs into them (structured configs, custom resolvers). Where they are, a fork server may hold them
unpickled, and a run's process may compose before it has its slot. Callbacks and the main function never belong here.
"""

from __future__ import annotations

import copy
import io
import pickle
import sys
from dataclasses import dataclass
from typing import Any

from hydra.types import HydraContext
from omegaconf import DictConfig
from omegaconf.basecontainer import BaseContainer

from clusterduck.launch.payload import UserSide, become, dumps

#: Packages besides the standard library whose classes are there wherever a run is.
_NOT_THE_USERS = frozenset({"hydra", "hydra_plugins", "omegaconf", "packaging"})


@dataclass
class PlainSide:
    """What composing needs.

    Attributes:
        config: the sweep's own configuration.
        hydra_context: with the config loader, and without callbacks.
        instances: Hydra's singletons, by class.
        resolvers: names of the OmegaConf resolvers that the user registered; they are left out.
    """

    config: DictConfig
    hydra_context: HydraContext
    instances: dict[type, Any]
    resolvers: tuple[str, ...]

    def activate(self) -> None:
        """Make Hydra in this process what it was in the launching one, but for the user's resolvers."""
        become({"instances": self.instances, "omegaconf_resolvers": BaseContainer._resolvers}, self.hydra_context)


def plain_side(user: UserSide) -> bytes | None:
    """The plain part as a pickle; None if something of the user's is in it."""
    context = copy.copy(user.hydra_context)
    context.callbacks = None  # type: ignore[assignment]
    resolvers = user.singleton_state["omegaconf_resolvers"]
    side = PlainSide(
        config=user.config,
        hydra_context=context,
        instances=user.singleton_state["instances"],
        resolvers=tuple(name for name, resolver in resolvers.items() if not is_hydras(resolver)),
    )
    try:
        data = dumps(side)
        _Checking(io.BytesIO(data)).load()
    except Exception:
        return None
    return data


def load(data: bytes) -> PlainSide:
    """The inverse of :func:`plain_side`; imports nothing of the user's.

    Raises:
        pickle.UnpicklingError: if something of the user's is in it.
        ImportError, AttributeError: if Hydra or one of its plugins is another one here.
    """
    side = _Checking(io.BytesIO(data)).load()
    assert isinstance(side, PlainSide)
    return side


def is_hydras(resolver: Any) -> bool:
    """Whether an OmegaConf resolver is one of OmegaConf's or Hydra's own."""
    cells = [cell.cell_contents for cell in getattr(resolver, "__closure__", None) or ()]
    return all(
        str(getattr(part, "__module__", "")).partition(".")[0] in ("omegaconf", "hydra")
        for part in (resolver, *filter(callable, cells))
    )


class _Checking(pickle.Unpickler):
    """Unpickles objects of classes that are no user's, and refuses to look up anything else."""

    def find_class(self, module: str, name: str) -> Any:
        package = module.partition(".")[0]
        known = package in _NOT_THE_USERS or package in sys.stdlib_module_names
        if not (known or (module, name) == (__name__, PlainSide.__name__)):
            raise pickle.UnpicklingError(f"{module}.{name} may be the user's")
        return super().find_class(module, name)
