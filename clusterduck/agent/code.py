"""The user's function as it is today: requeued runs get it by default, because people requeue after fixing a bug."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
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
