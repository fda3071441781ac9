"""What the fork server does once, so that no run has to: it composes one run's configuration.

That fills caches (of Hydra's and OmegaConf's parsers, of the frozen sources) and imports what Hydra imports late; every
forked run starts with all of it.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from omegaconf import OmegaConf

from clusterduck.launch import freeze, plain
from clusterduck.launch.payload import Payload


def plain_of(payload: Payload) -> plain.PlainSide | None:
    """The plain side of a payload; None if it has none, or another Hydra or plugin is here: the user's side tells."""
    try:
        return None if payload.plain is None else plain.load(payload.plain)
    except Exception:
        return None


def warm_up(payload: Payload) -> None:
    """Compose the configuration of the payload's first run, if it has a plain side, and forget it.

    This is left out where it would read files: the fork server must not wait for a file system.
    """
    with contextlib.suppress(ImportError):  # Hydra imports it late, in every run
        importlib.import_module("hydra._internal.logging_config")
    side = plain_of(payload)
    if side is None or not payload.overrides:
        return
    with contextlib.suppress(Exception):  # what is wrong with the run's configuration, the run will tell
        side.activate()
        loader: Any = side.hydra_context.config_loader
        if all(freeze.is_in_memory(source) for source in loader.get_sources()):
            OmegaConf.to_yaml(loader.load_sweep_config(side.config, payload.overrides[0]))  # as run_job does
