"""The user's side in two parts: one that needs nothing of the user's, enough to compose a run's configuration ahead of
time, and the user's own.

The sweep's configuration, Hydra's config loader and its singletons are data of Hydra's own unless the user put classes
or functions of theirs into them (structured configs, custom resolvers). Where they are, a fork server may hold them
unpickled, and a run's process may compose before it has its slot. Callbacks and the main function are always the
user's own. A run's process unpickles them once it has its slot, and nothing twice.
"""

from __future__ import annotations

import copy
import io
import pickle
import sys
from dataclasses import dataclass
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.basecontainer import BaseContainer

from clusterduck.launch.payload import Payload, UserSide, become, dumps, pickle_user

#: Packages besides the standard library whose classes are there wherever a run is.
_NOT_THE_USERS = frozenset({"hydra", "hydra_plugins", "omegaconf", "packaging"})

#: What Hydra registers itself; OmegaConf's own begin with ``oc.``.
_HYDRAS_RESOLVERS = frozenset({"hydra", "now", "python_version"})


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


@dataclass
class OwnSide:
    """What is the user's own, and so not in a :class:`PlainSide`.

    Attributes:
        task_function: the function under ``@hydra.main``.
        callbacks: Hydra's callbacks.
        resolvers: the OmegaConf resolvers that the user registered, as OmegaConf keeps them, by name.
    """

    task_function: TaskFunction
    callbacks: Callbacks
    resolvers: dict[str, Any]

    def register(self) -> None:
        """Make the resolvers known to OmegaConf."""
        BaseContainer._resolvers |= self.resolvers


def divide(user: UserSide) -> tuple[bytes | None, bytes]:
    """Pickle the user's side.

    Returns:
        The plain part, and the user's own; (None, all of it) if something of the user's is in what would be plain.

    Raises:
        ConfigError: naming the object that cannot be pickled.
    """
    plain = _plain_side(user)
    if plain is None:
        return None, pickle_user(user)
    resolvers = user.singleton_state["omegaconf_resolvers"]
    own = OwnSide(
        task_function=user.task_function,
        callbacks=user.hydra_context.callbacks,
        resolvers={name: resolver for name, resolver in resolvers.items() if not is_hydras(name, resolver)},
    )
    return plain, pickle_user(user, own)


def unpickle_user(payload: Payload) -> UserSide:
    """All of a payload's user's side. Imports the user's modules: only in a run's own process, resources applied.

    Raises:
        Exception: whatever the user's modules raise when imported.
    """
    if payload.plain is None:
        user = pickle.loads(payload.user)
        assert isinstance(user, UserSide)
        return user
    plain = load(payload.plain)
    own = load_own(payload.user, plain)
    context = copy.copy(plain.hydra_context)
    context.callbacks = own.callbacks
    resolvers = {**BaseContainer._resolvers, **own.resolvers}
    state = {"instances": plain.instances, "omegaconf_resolvers": resolvers}
    return UserSide(own.task_function, plain.config, context, state)


def load_own(data: bytes, plain: PlainSide) -> OwnSide:
    """Unpickle what is the user's own, beside the plain side of the same payload; for the rest see
    :func:`unpickle_user`."""
    own = _Beside(data, plain.config).load()
    assert isinstance(own, OwnSide)
    return own


def _plain_side(user: UserSide) -> bytes | None:
    context = copy.copy(user.hydra_context)
    context.callbacks = None  # type: ignore[assignment]
    resolvers = user.singleton_state["omegaconf_resolvers"]
    side = PlainSide(
        config=user.config,
        hydra_context=context,
        instances=user.singleton_state["instances"],
        resolvers=tuple(name for name, resolver in resolvers.items() if not is_hydras(name, resolver)),
    )
    try:
        data = dumps(side)
        _Checking(io.BytesIO(data)).load()
    except Exception:
        return None
    return data


def load(data: bytes) -> PlainSide:
    """The plain part unpickled; imports nothing of the user's.

    Raises:
        pickle.UnpicklingError: if something of the user's is in it.
        ImportError, AttributeError: if Hydra or one of its plugins is another one here.
    """
    side = _Checking(io.BytesIO(data)).load()
    assert isinstance(side, PlainSide)
    return side


def is_hydras(name: str, resolver: Any) -> bool:
    """Whether an OmegaConf resolver is one of OmegaConf's or Hydra's own, which every process with Hydra has."""
    if not (name.startswith("oc.") or name in _HYDRAS_RESOLVERS):
        return False
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


class _Beside(pickle.Unpickler):
    """Unpickles what was pickled without the configuration."""

    def __init__(self, data: bytes, config: DictConfig) -> None:
        super().__init__(io.BytesIO(data))
        self._config = config

    def persistent_load(self, pid: Any) -> DictConfig:
        if pid != "config":
            raise pickle.UnpicklingError(f"what is {pid!r}?")
        return self._config
