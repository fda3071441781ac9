"""The user's function as it is today: requeued runs get it by default, because people requeue after fixing a bug."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from clusterduck.errors import ConfigError
from clusterduck.launch.payload import Payload

#: The name a script is imported under: not ``__main__``, or it would launch a sweep of its own.
SCRIPT_NAME = "__clusterduck_script__"


def todays_function(payload: Payload) -> Callable[[Any], Any]:
    """Import the script or module that the function came from anew, and find the function under its decorators.

    Raises:
        ConfigError: if that is not possible, with the reason.
    """
    try:
        found: Any = _module(payload)
    except BaseException as error:  # a script may raise anything, and a script without a guard calls sys.exit
        raise ConfigError(
            f"{payload.script or payload.module} cannot be imported as it is today ({type(error).__name__}: {error})."
        ) from None
    for name in payload.function.split("."):
        found = getattr(found, name, None)
        if found is None:
            raise ConfigError(f"{payload.script or payload.module} has no {payload.function} today.")
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    if not callable(found):
        raise ConfigError(f"{payload.function} in {payload.script or payload.module} is no function today.")
    function: Callable[[Any], Any] = found
    return function


def _module(payload: Payload) -> ModuleType:
    if payload.module is not None:
        return importlib.import_module(payload.module)
    if payload.script is None:
        raise ImportError("it is not known which file it came from")
    spec = importlib.util.spec_from_file_location(SCRIPT_NAME, payload.script)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT_NAME] = module  # so that what it defines can be pickled and found
    spec.loader.exec_module(module)
    return module


def why_not_today(payload: Payload) -> str | None:
    """Why :func:`todays_function` would fail, in a sentence, as far as that can be seen without running the user's
    code; None if nothing speaks against it."""
    try:
        names = _names_today(payload)
    except ConfigError as error:
        return str(error)
    if names is None or "*" in names or payload.function.partition(".")[0] in names:
        return None
    return f"{payload.script or payload.module} has no {payload.function} today."


def _names_today(payload: Payload) -> set[str] | None:
    """The names that the script or module binds; None if its text does not tell.

    Raises:
        ConfigError: if it cannot be imported.
    """
    if "<locals>" in payload.function:
        raise ConfigError(f"{payload.function} was made inside another function, and cannot be found anew.")
    file = payload.script
    if payload.module is not None:
        spec = _spec(payload.module, payload.sys_path)
        if spec is None:
            raise ConfigError(f"There is no module {payload.module} today.")
        file = spec.origin
    elif file is None:
        raise ConfigError("It is not known which file the function came from.")
    if file is None or not file.endswith(".py"):
        return None
    try:
        return set(_names(ast.parse(Path(file).read_bytes(), file)))
    except FileNotFoundError:
        raise ConfigError(f"{file} is not there today.") from None
    except OSError:
        return None
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{file} is no Python today ({error}).") from None


def _spec(module: str, sys_path: list[str]) -> ModuleSpec | None:
    """What an import of the module would find, without importing the packages that it lies in."""
    where: list[str] | None = sys_path
    spec = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = PathFinder.find_spec(name, where)
        if spec is None and name == part:
            spec = importlib.util.find_spec(name)  # other ways of being installed
        if spec is None:
            return None
        where = list(spec.submodule_search_locations or ())
    return spec


def _names(tree: ast.AST) -> Iterator[str]:
    """The names that a module's text binds outside functions and classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        else:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            yield from _names(node)
