"""What a function that is pickled by value takes along: the globals that it uses, and the variables it closes over.

A function of the script that Hydra was started with travels so. If it cannot be pickled or unpickled, one of these is
to blame, and people need its name.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

import cloudpickle

_GLOBAL_OPERATIONS = frozenset(("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"))
_WRAPPERS = (functools.partial, MethodType, classmethod, staticmethod)


def along_with(function: Any) -> Iterator[tuple[str, Any]]:
    """The objects, each with a name for people; what another one of them uses comes before that one."""
    yield from _of(function, set())


def _of(thing: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """What a function, a class, or an object that is called takes along; nothing if it goes by name."""
    while isinstance(thing, _WRAPPERS):
        thing = thing.func if isinstance(thing, functools.partial) else thing.__func__
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, FunctionType):
        if goes_by_value(thing):
            yield from _of_function(thing, seen)
    elif isinstance(thing, type):
        if goes_by_value(thing):
            for member in list(vars(thing).values()):
                yield from _of(member.fget if isinstance(member, property) else member, seen)
    elif goes_by_value(type(thing)):
        yield from _of(type(thing), seen)


def _of_function(function: FunctionType, seen: set[int]) -> Iterator[tuple[str, Any]]:
    user = f"{function.__module__}.{function.__qualname__}"
    for name in dict.fromkeys(_global_names(function.__code__)):
        if name in function.__globals__:
            value = function.__globals__[name]
            yield from _of(value, seen)
            yield f"the global {name}, which {user} uses,", value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:
            continue  # not assigned yet
        yield from _of(value, seen)
        yield f"the variable {name}, which {user} closes over,", value


def _global_names(code: CodeType) -> Iterator[str]:
    """The globals that the code names, and all code inside it: nested functions, comprehensions, classes."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in _GLOBAL_OPERATIONS:
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def goes_by_value(thing: Any) -> bool:
    """Whether cloudpickle takes a function or class along, rather than its name: it is not found under that."""
    module = thing.__module__
    if module in (None, "__main__") or module in cloudpickle.list_registry_pickle_by_value():
        return True
    found: Any = sys.modules.get(module)
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is not thing
