"""What the runs of one launch need, as one file: plain data that anyone may read, and the user's own objects as bytes.

The user's side (function, configuration, callbacks, resolvers) stays bytes until the resources of a run are applied,
because unpickling it imports the user's modules. Nobody but a run's own process does that, see
:mod:`clusterduck.launch.plain`.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import cloudpickle
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from clusterduck.errors import ConfigError, JournalError
from clusterduck.launch import carried, freeze

#: Raised when an older clusterduck would get the file wrong; it refuses a newer one. Since 2, ``user`` does not repeat
#: what ``plain`` has.
VERSION = 2


@dataclass
class UserSide:
    """Everything of the user's that a run needs; pickled as one object, so that what is shared stays shared.

    Attributes:
        task_function: the function under ``@hydra.main``.
        config: the sweep's own configuration, from which each run's is composed.
        hydra_context: Hydra's config loader, the callbacks and (Hydra 1.4) the execution whitelist.
        singleton_state: Hydra's ``Singleton.get_state()``: ConfigStore, resolvers, ``version_base``.
    """

    task_function: TaskFunction
    config: DictConfig
    hydra_context: HydraContext
    singleton_state: dict[str, Any]

    @classmethod
    def capture(cls, task_function: TaskFunction, config: DictConfig, hydra_context: HydraContext) -> UserSide:
        """Gather it in the launching process, without the opened config sources (the run's process makes its own)."""
        state = Singleton.get_state()
        loader = _without_sources(hydra_context.config_loader)
        state["instances"].pop(SourcesRegistry, None)
        current = state["instances"].get(GlobalHydra)
        if current is not None and current.hydra is not None:
            current.hydra.config_loader = loader  # a deep copy of the same loader otherwise
        context = copy.copy(hydra_context)
        context.config_loader = loader
        return cls(task_function, config, context, state)

    def activate(self) -> None:
        """Make Hydra in this process what it was in the launching one; to be called once, before a run is composed.

        See :func:`become`.
        """
        become(self.singleton_state, self.hydra_context)

    def parts(self) -> Iterator[tuple[str, Any]]:
        """The objects inside, each with a name for people: to find the one that does not pickle or unpickle.

        What another one of them uses comes before that one.
        """
        yield from carried.along_with(self.task_function)
        yield f"the main function {name_of(self.task_function)}", self.task_function
        yield "the configuration", self.config
        for callback in getattr(self.hydra_context.callbacks, "callbacks", ()):
            yield f"the callback {type(callback).__module__}.{type(callback).__qualname__}", callback
        for name, resolver in self.singleton_state["omegaconf_resolvers"].items():
            yield f"the OmegaConf resolver '{name}'", resolver
        for cls, instance in self.singleton_state["instances"].items():
            repo = getattr(instance, "repo", None)
            if cls.__name__ == "ConfigStore" and isinstance(repo, dict):
                yield from _nodes("the ConfigStore's entry", repo)
            else:
                yield f"Hydra's {cls.__name__}", instance
        yield "Hydra's config loader", self.hydra_context.config_loader


def become(singleton_state: dict[str, Any], context: HydraContext) -> None:
    """Make Hydra in this process what it was in the launching one.

    This stands in for ``Singleton.set_state`` and ``setup_globals``: it calls both, keeps the config sources that
    :func:`clusterduck.launch.freeze.install` has put in place, and opens the config loader's sources with them.
    """
    instances = singleton_state["instances"]
    instances[SourcesRegistry] = SourcesRegistry.instance()
    if freeze.plugins_are_current() and Plugins in Singleton._instances:
        instances[Plugins] = Singleton._instances[Plugins]
    Singleton.set_state(singleton_state)
    setup_globals()
    loader: Any = context.config_loader
    if hasattr(loader, "repository") and loader.repository is None:
        loader.repository = ConfigRepository(loader.config_search_path)


def _without_sources(loader: ConfigLoader) -> Any:
    """A copy of the loader that has its search path, but neither opened sources nor a cache of what they yielded."""
    bare: Any = copy.copy(loader)
    if hasattr(bare, "repository") and hasattr(bare, "config_search_path"):
        bare.repository = None
    if getattr(bare, "_active_repository", None) is not None:  # Hydra 1.4's cache for listing group options
        bare._active_repository = None
    return bare


def _nodes(label: str, repo: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in repo.items():
        if isinstance(value, dict):
            yield from _nodes(label, value, f"{prefix}{key}/")
        else:
            yield f"{label} {prefix}{key}", value


def name_of(function: Any) -> str:
    """What to call a function (or any callable object) in a sentence: ``module.qualname``."""
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


@dataclass(frozen=True)
class Payload:
    """What the runs of one launch need.

    Attributes:
        first_run: number of the launch's first run; run ``n`` has ``overrides[n - first_run]``.
        overrides: the override list of each run.
        sys_path: ``sys.path`` of the launching process, entries made absolute.
        cwd: working directory of the launching process.
        sources: frozen config sources: the source's path as Hydra names it (``file:///x/conf``, ``pkg://my.conf``) ->
            file name relative to it -> text.
        script: absolute path of the ``__main__`` file the function came from, if it did.
        module: name of the module it came from: of ``python -m``'s, or the one that was imported.
        function: its ``__qualname__``.
        user: a cloudpickle of :class:`UserSide`, or of what its plain part leaves out.
        sweep_dir: where the sweep's folder was at launch; None where that was not kept.
        plain: its part that needs nothing of the user's, see ``clusterduck.launch.plain``; None if there is none.
    """

    first_run: int
    overrides: list[list[str]]
    sys_path: list[str]
    cwd: str
    sources: dict[str, dict[str, str]]
    script: str | None
    module: str | None
    function: str
    user: bytes
    sweep_dir: str | None = None
    plain: bytes | None = None

    def dump(self) -> bytes:
        """The payload as a pickle of builtin types only."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return pickle.dumps({"clusterduck_payload": VERSION, **data}, protocol=4)

    @classmethod
    def load(cls, data: bytes) -> Payload:
        """The inverse of :meth:`dump`; runs no code of the user's.

        Raises:
            JournalError: if it is no payload, or one of a newer version.
        """
        try:
            found = _PlainUnpickler.loads(data)
            version = found.pop("clusterduck_payload")
        except Exception as error:
            raise JournalError(f"This is not the payload of a launch ({type(error).__name__}: {error}).") from None
        if version > VERSION:
            raise JournalError(
                f"The payload was written by a newer clusterduck (payload version {version}, this one reads up to "
                f"{VERSION}): upgrade clusterduck here."
            )
        if version < 2:  # its ``user`` is all of the user's side
            found.pop("plain", None)
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{key: value for key, value in found.items() if key in known})
        except TypeError as error:
            raise JournalError(f"The payload of the launch is not whole ({error}).") from None


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles builtin containers and values; refuses to look anything up."""

    @classmethod
    def loads(cls, data: bytes) -> dict[str, Any]:
        found = cls(io.BytesIO(data)).load()
        if not isinstance(found, dict):
            raise TypeError("not a mapping")
        return found

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, but a payload holds plain data only")


def origin(function: Any) -> tuple[str | None, str | None, str]:
    """Where the user's function came from: (script, module, qualname); one of the first two is set, none in a notebook.

    A function of ``__main__`` came from a script, or from the module that ``python -m`` was given.
    """
    while hasattr(function, "func"):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    if named.__module__ != "__main__":
        return None, named.__module__, named.__qualname__
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return None, spec.name, named.__qualname__
    file = getattr(main, "__file__", None)
    return (os.path.abspath(file) if file else None), None, named.__qualname__


def absolute_path_entries(entries: list[str], cwd: str) -> list[str]:
    """``sys.path`` with relative entries ("" means the working directory) made absolute, in the same order."""
    return [os.path.normpath(os.path.join(cwd, entry)) for entry in entries]


def dumps(what: object, known: DictConfig | None = None) -> bytes:
    """Like ``cloudpickle.dumps``, but code keeps its file's name, which tracebacks show to people.

    cloudpickle puts ``<dynamic-code>`` there since 3.1.

    Args:
        what: what to pickle.
        known: the configuration, where it does not go along: whoever unpickles has it.
    """
    import io
    import types
    from collections import ChainMap

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = ChainMap({types.CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)

        def persistent_id(self, thing: object) -> str | None:
            return "config" if known is not None and thing is known else None

    file = io.BytesIO()
    Pickler(file).dump(what)
    return file.getvalue()


def _reduce_code(code: Any) -> tuple[Any, ...]:
    import types

    make, arguments = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    return _make_code, (make, arguments, code.co_filename)


def _make_code(make: Any, arguments: tuple[Any, ...], filename: str) -> Any:
    return make(*arguments).replace(co_filename=filename)


def pickle_user(user: UserSide, part: object = None) -> bytes:
    """Pickle the user's side with cloudpickle: what is defined in the script goes by value, modules by name.

    Args:
        user: the user's side.
        part: the part of it to be pickled, without the configuration; None: all of it.

    Raises:
        ConfigError: naming the object that cannot be pickled.
    """
    try:
        return dumps(user) if part is None else dumps(part, known=user.config)
    except Exception as error:
        fault, reason = "something the runs need", error
        for label, suspect in user.parts():
            try:
                dumps(suspect)
            except Exception as own:
                fault, reason = label, own
                break
        raise ConfigError(
            f"The runs cannot be sent to other processes, because {fault} cannot be pickled "
            f"({type(reason).__name__}: {reason}). Make such objects inside the main function instead."
        ) from None
