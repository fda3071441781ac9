"""Keeps the YAML files of a launch as they were, so that editing them while jobs wait in the queue changes nothing.

:func:`freeze` reads the user's config sources where the launch happens; :func:`install` makes Hydra read them from
memory where the runs happen. Frozen are ``file://`` and ``pkg://`` sources of the search path, ``hydra.searchpath``
included; not Hydra's own and not those of Hydra plugins, which belong to the installation.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pickle
import posixpath
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

import hydra_plugins

#: How many files and folders of one source are looked at, and how many bytes of YAML are kept; beyond that it is no
#: folder of configs, and its files are left where they are.
MAX_ENTRIES = 20_000
MAX_BYTES = 32 * 1024 * 1024

#: A folder of which so many entries hold no YAML is one of data; nothing below it is looked at.
MAX_ENTRIES_WITHOUT_YAML = 2_000

#: How deep groups may be nested.
MAX_DEPTH = 24

#: How long :func:`install` parses ahead, in seconds; what is left is parsed by the runs that need it.
PARSE_BUDGET_S = 2.0

#: What lies in a folder where runs have put their outputs, or in an environment of installed packages.
_MARKS_OF_OTHERS = frozenset({"multirun.yaml", ".hydra", ".clusterduck", "pyvenv.cfg", "conda-meta"})
_NAMES_OF_OTHERS = frozenset({"__pycache__", "node_modules"})

_NOT_THE_USERS = ("hydra.", "hydra_plugins.")


@dataclass
class Frozen:
    """What :func:`freeze` found.

    Attributes:
        sources: path of the source as Hydra names it -> file name relative to it (with ``/``) -> text.
        warnings: sentences about sources that are not frozen although they are the user's.
    """

    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class _TooMuch(Exception):
    """A source is larger than any folder of configs."""


def freeze(config: DictConfig, cwd: str) -> Frozen:
    """Read all YAML files of the user's config sources.

    Args:
        config: the sweep's configuration, which lists its sources (``hydra.runtime.config_sources``).
        cwd: the launching process's working directory, which relative paths refer to.
    """
    found = Frozen()
    outputs = output_folders(config, cwd)
    for source in config.hydra.runtime.config_sources:
        path = f"{source.schema}://{source.path}"
        if path in found.sources or not _is_users(source.schema, source.path):
            continue
        root = Path(cwd, source.path) if source.schema == "file" else _package_folder(source.path)
        if root is None or not root.is_dir():
            continue  # Hydra has warned that it is not there
        try:
            found.sources[path] = _read(root, outputs)
        except _TooMuch:
            found.warnings.append(
                f"The config source {path} holds more than {MAX_ENTRIES} files and folders (or {MAX_BYTES >> 20} MB of "
                f"YAML), so it is not frozen: runs read its files when they start, and see it if you edit them before. "
                f"Keep configs in a folder of their own."
            )
    return found


def _is_users(scheme: str, path: str) -> bool:
    if scheme == "pkg":
        return path != "hydra" and not path.startswith(_NOT_THE_USERS)
    return scheme == "file"


def _package_folder(package: str) -> Any:
    """The package's folder: a Path, or something alike in a zip file; None if there is no such package."""
    try:
        return resources.files(package)
    except (ImportError, ValueError, TypeError):
        return None


def output_folders(config: DictConfig, cwd: str) -> set[str]:
    """Real paths of folders that hold outputs of this application: what ``hydra.run.dir`` and ``hydra.sweep.dir`` begin
    with before their first interpolation, and this sweep's own folder."""
    raw = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(raw, dict)
    found = set()
    for text in (raw["run"]["dir"], raw["sweep"]["dir"]):
        constant, interpolation, _ = str(text).partition("${")
        if interpolation:
            constant = constant.rpartition("/")[0]
        if constant:
            found.add(os.path.realpath(os.path.join(cwd, constant)))
    found.add(os.path.realpath(os.path.join(cwd, str(config.hydra.sweep.dir))))
    return found


def _read(root: Any, outputs: set[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    size = 0
    for name, file in _walk(root, outputs):
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # Hydra could not have read it either
        size += len(text)
        if size > MAX_BYTES:
            raise _TooMuch
        texts[name] = text
    return texts


def _walk(root: Any, outputs: set[str]) -> Iterator[tuple[str, Any]]:
    """Every YAML file below ``root``, breadth first, with its name relative to it; folders of outputs left out.

    A folder that outputs are known to go to is a group of configs all the same if YAML files lie directly in it.
    """
    seen = 0
    waiting: deque[tuple[str, Any, tuple[str, ...]]] = deque([("", root, ())])
    while waiting:
        prefix, folder, above = waiting.popleft()
        here = os.path.realpath(folder) if isinstance(folder, os.PathLike) else f"{folder}"
        if here in above or len(above) > MAX_DEPTH:
            continue
        entries = _entries(folder, is_root=not prefix)
        if prefix and any(entry.name in _MARKS_OF_OTHERS for entry in entries):
            continue
        has_yaml = any(_is_yaml(entry) for entry in entries)
        if prefix and not has_yaml and (here in outputs or len(entries) > MAX_ENTRIES_WITHOUT_YAML):
            continue
        seen += len(entries)
        if seen > MAX_ENTRIES:
            raise _TooMuch
        for entry in entries:
            name = prefix + entry.name
            if _is_yaml(entry):
                yield name, entry
            elif not entry.name.startswith(".") and entry.name not in _NAMES_OF_OTHERS and entry.is_dir():
                waiting.append((name + "/", entry, (*above, here)))


def _is_yaml(entry: Any) -> bool:
    return entry.name.endswith((".yaml", ".yml")) and bool(entry.is_file())


def _entries(folder: Any, is_root: bool) -> list[Any]:
    """What lies in a folder; of a huge one below the root that begins without YAML, the first few thousand."""
    entries: list[Any] = []
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(folder, os.PathLike):
                found: Any = map(_Entry, stack.enter_context(os.scandir(os.fspath(folder))))
            else:
                found = folder.iterdir()
            entries.extend(itertools.islice(found, MAX_ENTRIES_WITHOUT_YAML + 1))
            if is_root or any(_is_yaml(entry) for entry in entries):
                entries.extend(itertools.islice(found, MAX_ENTRIES))
    except OSError:
        return entries
    return entries


class _Entry:
    """An ``os.DirEntry`` that is read like a Path, without another ``stat`` for its kind."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self._entry = entry
        self.name = entry.name

    def is_file(self) -> bool:
        return self._entry.is_file()

    def is_dir(self) -> bool:
        return self._entry.is_dir()

    def read_text(self, encoding: str) -> str:
        return Path(self._entry.path).read_text(encoding=encoding)

    def __fspath__(self) -> str:
        return self._entry.path


# --- where the runs happen


@dataclass
class _Source:
    """A frozen source in memory: its files, its groups, and what parsing them yielded, pickled (the quickest copy)."""

    texts: dict[str, str]
    groups: set[str]
    parsed: dict[str, tuple[bytes, dict[str, str | None]]] = field(default_factory=dict)


_sources: dict[str, _Source] = {}
_plugin_folders: list[str] | None = None


def install(sources: dict[str, dict[str, str]]) -> None:
    """Make Hydra in this process, and in those forked from it, read these sources from memory.

    Hydra creates a source by its path whenever it looks at a search path, so what is replaced is the class that Hydra's
    registry has for the scheme; sources that are not frozen behave as ever. Hydra's own configs are taken from the
    installation and cached alike. What can be parsed within ``PARSE_BUDGET_S`` is parsed here, once.
    """
    global _plugin_folders  # noqa: PLW0603 -- one registry of sources per process, as Hydra has it
    Plugins.instance()
    _plugin_folders = _hydra_plugin_folders()
    _sources.clear()
    own = _package_folder("hydra.conf")
    for path, texts in {"pkg://hydra.conf": _read(own, set()), **sources}.items():
        _sources[path] = _Source(texts, _groups_of(texts))
    _register()
    deadline = time.monotonic() + PARSE_BUDGET_S
    for path, source in _sources.items():
        for name in source.texts:
            if time.monotonic() > deadline:
                return
            _parse(path, name)


def is_in_memory(source: ConfigSource) -> bool:
    """Whether a config source in this process reads no file."""
    return source.scheme() == "structured" or source.full_path() in _sources


def groups() -> set[str]:
    """The names of all config groups that lie in memory as files."""
    return {group for source in _sources.values() for group in source.groups if group}


def plugins_are_current() -> bool:
    """Whether Hydra's scan for plugins in this process, made by :func:`install`, would find the same folders now."""
    return _plugin_folders is not None and _plugin_folders == _hydra_plugin_folders()


def _hydra_plugin_folders() -> list[str]:
    return list(hydra_plugins.__path__)


def _groups_of(names: Iterable[str]) -> set[str]:
    groups = {""}
    for name in names:
        parts = name.split("/")
        groups.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    return groups


def _register() -> None:
    types = SourcesRegistry.instance().types
    for scheme in ("file", "pkg"):
        base = types[scheme]
        if not getattr(base, "_clusterduck_frozen", False):
            # Hydra's registry insists that the classes of a scheme share one name.
            types[scheme] = type(base.__name__, (base,), {**_methods(base), "__module__": __name__})


def _parse(path: str, name: str) -> tuple[bytes, dict[str, str | None]] | None:
    """The file's config (pickled) and header, from the cache or parsed; None if it is not valid."""
    source = _sources[path]
    if name not in source.parsed:
        text = source.texts[name]
        try:
            config = OmegaConf.load(io.StringIO(text))
            source.parsed[name] = (pickle.dumps(config), ConfigSource._get_header_dict(text[:512]))
        except Exception:
            return None  # who loads it shall see the error
    return source.parsed[name]


def _methods(base: Any) -> dict[str, Any]:
    """The methods of a config source that answers for frozen files from memory, and asks ``base`` for the rest.

    A name that leaves the source (``../x``) or is absolute is asked of ``base`` too.
    """

    def lookup(self: Any, config_path: str) -> tuple[_Source | None, str]:
        name = posixpath.normpath(config_path) if config_path else ""
        name = "" if name == "." else name
        if name.startswith(("..", "/")):
            return None, name
        return _sources.get(self.full_path()), name

    def load_config(self: Any, config_path: str) -> Any:
        source, name = lookup(self, self._normalize_file_name(config_path))
        if source is None:
            return base.load_config(self, config_path)
        if name not in source.texts:
            raise ConfigLoadError(
                f"Config not found : {self.full_path()}/{name} (as it was when the sweep was launched)"
            )
        parsed = _parse(self.full_path(), name)
        if parsed is None:
            config = OmegaConf.load(io.StringIO(source.texts[name]))  # raises what is wrong with it
            parsed = (pickle.dumps(config), self._get_header_dict(source.texts[name][:512]))
        return ConfigResult(
            config=pickle.loads(parsed[0]), path=self.full_path(), provider=self.provider, header=dict(parsed[1])
        )

    def is_config(self: Any, config_path: str) -> bool:
        source, name = lookup(self, self._normalize_file_name(config_path))
        return name in source.texts if source is not None else bool(base.is_config(self, config_path))

    def is_group(self: Any, config_path: str) -> bool:
        source, name = lookup(self, config_path)
        return name in source.groups if source is not None else bool(base.is_group(self, config_path))

    def available(self: Any) -> bool:
        return self.full_path() in _sources or bool(base.available(self))

    def names(self: Any, config_path: str, results_filter: Any) -> list[str]:
        source, name = lookup(self, config_path)
        if source is None:
            return list(base.list(self, config_path, results_filter))
        prefix = f"{name}/" if name else ""
        inside = {text[len(prefix) :].partition("/")[0] for text in source.texts if text.startswith(prefix)}
        found: list[str] = []
        for entry in inside:
            self._list_add_result(files=found, file_path=prefix + entry, file_name=entry, results_filter=results_filter)
        return sorted(set(found))

    return {
        "_clusterduck_frozen": True,
        "load_config": load_config,
        "is_config": is_config,
        "is_group": is_group,
        "available": available,
        "list": names,
    }
