"""Imports the modules of the launcher's option ``preload`` in the fork server, once for all runs, and refuses those
that a forked process could not go on with.

Threads and CUDA contexts do not survive a fork. A BLAS pool may: OpenBLAS ends its threads before a fork and starts
them anew on both sides. So what is asked is not which library it is, but what is left after a fork has been tried.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from clusterduck.errors import ConfigError
from clusterduck.launch.payload import Payload

#: For how long threads that end before a fork may take to be gone, in seconds.
THREADS_PATIENCE_S = 1.0

#: Devices of GPU drivers, which are opened when a context is made: NVIDIA's, AMD's, Intel's.
_GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/render")


def preload(modules: Sequence[str], payload: Payload) -> None:
    """Import the modules as the runs would: with the launch's ``sys.path``, in its working directory.

    Raises:
        ConfigError: naming the module that cannot be imported, or must not be before a fork.
    """
    if not modules:
        return
    before = os.getcwd()
    path = list(sys.path)
    sys.path[:] = payload.sys_path
    try:
        os.chdir(payload.cwd)
        for module in modules:
            _import(module)
    except OSError as error:
        raise ConfigError(f"hydra.launcher.preload needs the folder of the launch: {error}.") from None
    finally:
        sys.path[:] = path
        os.chdir(before)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except BaseException as error:  # a module may raise anything, and call sys.exit
        raise ConfigError(
            f"hydra.launcher.preload: {module} cannot be imported ({type(error).__name__}: {error}). Take it out of "
            f"preload, or make it importable where the sweep is launched."
        ) from None
    fault = _what_a_fork_would_lose()
    if fault is not None:
        raise ConfigError(
            f"hydra.launcher.preload: importing {module} {fault}, which no forked run could go on with. Take {module} "
            f"out of preload; prefetch=imports hides the time it takes to import just as well."
        )


def _what_a_fork_would_lose() -> str | None:
    devices = sorted(filter(_is_gpu, _open_files()))
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if devices or (cuda is not None and cuda.is_initialized()):
        return f"uses a GPU already ({devices[0] if devices else 'torch.cuda.is_initialized()'} says so)"
    if len(_threads()) > 1:
        _try_a_fork()
        names = _threads()[1:]
        if names:
            return (
                f"leaves {len(names)} thread{'s' if len(names) > 1 else ''} running ({', '.join(sorted(set(names)))})"
            )
    return None


def _try_a_fork() -> None:
    """Fork and end at once, then give threads that were told to end by it a moment for that."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    until = time.monotonic() + THREADS_PATIENCE_S
    while len(_threads()) > 1 and time.monotonic() < until:
        time.sleep(0.01)


def _threads() -> list[str]:
    """Names of this process's threads, as the kernel has them; its first one comes first."""
    names = []
    for task in sorted(os.listdir("/proc/self/task"), key=int):
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/self/task/{task}/comm").read_text(encoding="utf-8", errors="replace").strip())
    return names


def _open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def _is_gpu(file: str) -> bool:
    return file.startswith(_GPU_DEVICES)
