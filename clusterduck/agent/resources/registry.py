"""From ``resources_config`` to kinds: our own by name, those of other packages by entry point."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from clusterduck.agent.resources.cpu import Cpu
from clusterduck.agent.resources.cuda import Cuda
from clusterduck.agent.resources.kind import Kind
from clusterduck.agent.resources.options import show
from clusterduck.agent.resources.rendering import Rendering
from clusterduck.agent.resources.stagger import Stagger
from clusterduck.agent.resources.tmpdir import Tmpdir
from clusterduck.errors import ConfigError

#: Where other packages register kinds of their own. A name of ours stays ours.
ENTRY_POINTS = "clusterduck.resources"

BUILT_IN: dict[str, type[Kind]] = {
    "cpu": Cpu,
    "cuda": Cuda,
    "rendering": Rendering,
    "stagger": Stagger,
    "tmpdir": Tmpdir,
}


def read_resources(resources: object) -> list[tuple[str, Kind]]:
    """The kinds asked for, with their options read, in the order in which they divide a node.

    Raises:
        ConfigError: for an unknown kind or option, a value that cannot be meant, or a registered class of no use.
    """
    if resources is None:
        return []
    if not isinstance(resources, Mapping):
        raise ConfigError(f"resources_config must be a mapping such as {{cpu: null}}, not {show(resources)}.")
    kinds = [(name, _make(name, options)) for name, options in resources.items()]
    return sorted(kinds, key=lambda named: (named[1].order, named[0]))


def _make(name: object, options: object) -> Kind:
    if not isinstance(name, str):
        raise ConfigError(f"resources_config must map names to options; {show(name)} is no name.")
    kind = BUILT_IN.get(name) or _load(name)
    where = f"resources_config.{name}"
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where} must be a mapping of options, or null for the defaults, not {show(options)}.")
    for option in options:
        if option not in kind.option_names:
            known = ", ".join(kind.option_names) or "none at all"
            raise ConfigError(
                f"{where} has no option {show(option)}; it has {known}.{_hint(option, kind.option_names)}"
            )
    try:
        return kind(options)
    except ConfigError:
        raise
    except Exception as error:  # of another package's class
        raise ConfigError(f"{where} failed with its options: {type(error).__name__}: {show(str(error))}.") from error


def _load(name: str) -> type[Kind]:
    found = {point.value: point for point in entry_points(group=ENTRY_POINTS) if point.name == name}
    if not found:
        known = sorted({*BUILT_IN, *entry_points(group=ENTRY_POINTS).names})
        raise ConfigError(
            f"resources_config has no kind {show(name)}; there are {', '.join(known)}.{_hint(name, tuple(known))}"
        )
    if len(found) > 1:
        packages = " and ".join(sorted(_package(point) for point in found.values()))
        raise ConfigError(f"resources_config.{name} is registered by {packages}; uninstall one.")
    (point,) = found.values()
    try:
        kind = point.load()
    except Exception as error:  # whatever another package's import raises
        raise ConfigError(
            f"resources_config.{name} of {_package(point)} cannot be imported: "
            f"{type(error).__name__}: {show(str(error))}."
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Kind)):
        raise ConfigError(f"resources_config.{name} of {_package(point)} is not a clusterduck.agent.resources.Kind.")
    return kind


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _hint(given: object, known: tuple[str, ...]) -> str:
    if given in ("gpu", "gpus") and "cuda" in known:
        return " Did you mean cuda?"
    close = difflib.get_close_matches(given, known, n=1) if isinstance(given, str) else []
    return f" Did you mean {close[0]}?" if close else ""
