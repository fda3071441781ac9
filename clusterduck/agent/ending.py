"""How a run's process ends: as any Python program does, as far as the program can tell.

An interpreter that ends takes its modules apart, then itself. Here most of that would be what the fork server has
loaded, and the pages of it that all runs share would be copied only for this: a sixth of what a run that does nothing
costs. So those modules are left to the kernel, and so is the interpreter once nothing of the user's is left in it:
threads have been waited for, atexit handlers called, the user's modules taken apart, files written.
"""

from __future__ import annotations

import atexit
import builtins
import ctypes
import gc
import sys
from types import ModuleType
from typing import NoReturn

#: What the fork server has loaded. This module is in it, and it in this module: that they hold each other, and that the
#: garbage collector does not look at what the fork server froze, is what keeps all of it.
_loaded: dict[str, ModuleType] = {}


def begin() -> None:
    """In the fork server, before anything else registers an atexit handler, so that ours is called last."""
    atexit.register(_leave_out_loaded)


def keep_loaded() -> None:
    """In the fork server, before it imports anything that may be the user's, and before ``gc.freeze``: what is loaded
    now is not to be taken apart."""
    _loaded.update((name, module) for name, module in sys.modules.items() if module not in (sys, builtins))


def end(code: int) -> NoReturn:
    """End this run's process with this exit code."""
    sys._clusterduck_end = _End(code)  # type: ignore[attr-defined]
    sys.exit(code)


def _leave_out_loaded() -> None:
    gc.collect()  # what the user's finalizers may want to import is still there
    known = [name for name, module in _loaded.items() if sys.modules.get(name) is module]
    _loaded.update(sys.modules)  # the interpreter empties the modules that it finds there and that somebody still holds
    for name in known:
        del sys.modules[name]


class _End:
    """Ends the process when it is deleted, as one of the last things that the interpreter deletes, when the modules are
    gone but for ``sys`` and ``builtins``."""

    def __init__(self, code: int) -> None:
        from hydra.core.singleton import Singleton
        from omegaconf.basecontainer import BaseContainer

        self._code = code
        self._users = (Singleton._instances, BaseContainer._resolvers)  # where Hydra keeps what is the user's
        self._flushes = [stream.flush for stream in (sys.__stdout__, sys.__stderr__) if stream is not None]

    def __del__(self) -> None:
        for objects in self._users:
            objects.clear()
        gc.collect()
        try:
            for flush in self._flushes:
                flush()
        except Exception:
            return  # the interpreter has an exit code for this
        ctypes.CDLL(None).exit(self._code)  # unlike os._exit, it calls what C libraries have registered
