"""Hydra at the point where it calls a launcher, for benchmarks: without composing every run on the login node first."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def sleep(cfg: Any) -> None:
    """A run that takes as long as it is told."""
    time.sleep(cfg.took)


def app(folder: Path) -> None:
    """An application whose runs take so long."""
    (folder / "conf").mkdir(parents=True)
    (folder / "conf" / "config.yaml").write_text("took: 0\n")
    (folder / "app.py").touch()


def made(folder: Path, *overrides: str) -> tuple[Any, Any]:
    """What Hydra hands to a sweeper and a launcher of the application in a folder: context and configuration."""
    from hydra import version
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import HydraContext, RunMode

    version.setbase("1.3")
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra_file_or_module(str(folder / "app.py"), None, "conf", "app")
    config = hydra.compose_config("config", list(overrides), RunMode.MULTIRUN)
    return HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config)), config


def launcher(folder: Path, cluster: str, function: Callable[..., Any], *overrides: str) -> Any:
    """One of clusterduck's launchers, set up."""
    from hydra.core.plugins import Plugins

    context, config = made(folder, f"hydra/launcher=clusterduck_{cluster}", *overrides)
    return Plugins.instance().instantiate_launcher(context, function, config)


def cpu_s() -> float:
    """Processor time of this process and of those of its children that have ended, in seconds."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, the first one to the left."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        others = [each.rjust(width) for each, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *others]))
