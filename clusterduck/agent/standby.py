"""A run's process that is prepared while its slot is still another run's, and begins when it is told to.

Until then it leaves no trace: what it prints is kept in memory, it dies with its fork server, and whatever has to be as
it is at the run's beginning (the time, the user's own resolvers, the run's folder) waits for that.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra.core.utils
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

from clusterduck.agent import prctl
from clusterduck.agent.composing import is_same
from clusterduck.launch.plain import is_hydras


class Gate:
    """What a run waits at until it may begin.

    Args:
        fd: where the fork server's word comes from, one byte; None: the run may begin at once.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._streams: list[int] = []
        self.printed = b""  # what was printed while it waited
        if fd is not None:
            prctl.die_with_parent(True)
            self._streams = [os.dup(1), os.dup(2)]
            memory = os.memfd_create("standby", 0)  # appended to by both, since they share its position
            os.dup2(memory, 1)
            os.dup2(memory, 2)
            os.close(memory)

    @property
    def closed(self) -> bool:
        """Whether there is something to wait for."""
        return self._fd is not None

    def wait(self) -> None:
        """Wait for the word; does not return if it will never come."""
        if self._fd is None:
            return
        word = os.read(self._fd, 1)
        if not word:
            os._exit(0)  # the fork server is gone, and nobody else knows of this process
        prctl.die_with_parent(False)
        os.close(self._fd)
        self._fd = None
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.printed = os.pread(1, os.fstat(1).st_size, 0)
        for stream, original in enumerate(self._streams, start=1):
            os.dup2(original, stream)
            os.close(original)


@contextlib.contextmanager
def before_folder(act: Callable[[], None]) -> Iterator[None]:
    """Within this, Hydra's ``run_job`` calls ``act`` before it makes the run's folder, its first trace.

    All it does before are copies of the configuration, which is most of its time. If this Hydra makes the folder in
    another way, ``act`` is called at once.
    """
    functions = (getattr(hydra.core.utils, name, None) for name in ("run_job", "_run_job"))
    if not any("Path" in function.__code__.co_names for function in functions if function is not None):
        act()
        yield
        return
    module: Any = hydra.core.utils

    def path(*parts: str) -> Path:
        module.Path = Path
        act()
        return Path(*parts)

    module.Path = path
    try:
        yield
    finally:
        module.Path = Path


class WrittenAhead:
    """Hydra's own configuration of the run as the text that ``run_job`` saves, which takes some ten milliseconds to
    make: made while there is time, and taken if it is still that of what is to be saved."""

    def __init__(self) -> None:
        self._config: Any = None
        self._text = ""

    def write(self) -> None:
        """Make the text; to be called when ``run_job`` has copied the configuration, and before it saves it."""
        self._config = HydraConfig.instance().cfg
        self._text = "" if self._config is None else OmegaConf.to_yaml(self._config)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Within this, ``run_job`` saves the text; nothing changes if this Hydra saves in another way."""
        module: Any = hydra.core.utils
        before = getattr(module, "_save_config", None)
        if before is None:
            yield
            return

        def save(config: Any, filename: str, folder: Path) -> None:
            if self._config is None or not is_same(self._config, config):
                before(config, filename, folder)
                return
            folder.mkdir(parents=True, exist_ok=True)
            Path(folder, filename).write_text(self._text, encoding="utf-8")

        module._save_config = save
        try:
            yield
        finally:
            module._save_config = before


class Held:
    """OmegaConf resolvers whose value may depend on when they are asked: ``act`` is called before.

    Those of the user's own are held from the start, ``now`` after composing: what it says before that is forgotten
    again, for Hydra gives each run the values that the sweep itself has seen.

    Args:
        missing: the user's resolvers that are not there yet; ``act`` registers them.
        act: called before one is asked whose value is not known yet.
    """

    def __init__(self, missing: tuple[str, ...], act: Callable[[], None]) -> None:
        self._missing = missing
        self._act = act
        self._before: dict[str, Any] = {}
        self._held: dict[str, Any] = {}
        users = [name for name, resolver in BaseContainer._resolvers.items() if not is_hydras(name, resolver)]
        self._hold(*missing, *users)

    def hold_time(self) -> None:
        """Hold ``now`` too."""
        self._hold("now")

    def release(self) -> None:
        """Hold nothing any more."""
        for name, resolver in self._before.items():
            if BaseContainer._resolvers.get(name) is self._held[name]:
                BaseContainer._resolvers[name] = resolver
        self._before = {}

    def _hold(self, *names: str) -> None:
        for name in names:
            known = None if name in self._missing else BaseContainer._resolvers.get(name)
            if known is not None:
                self._before[name] = known
            self._held[name] = BaseContainer._resolvers[name] = _held(name, known, self._act)


def _held(name: str, known: Any, act: Callable[[], None]) -> Any:
    def resolve(config: Any, parent: Any, node: Any, args: Any, args_str: Any) -> Any:
        if known is not None and args_str in OmegaConf.get_cache(config)[name]:
            return known(config, parent, node, args, args_str)
        act()
        return BaseContainer._resolvers[name](config, parent, node, args, args_str)

    return resolve
