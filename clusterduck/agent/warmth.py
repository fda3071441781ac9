"""What the fork server does once, so that no run has to: it composes the configurations of some runs.

That fills caches (of Hydra's and OmegaConf's parsers, of the frozen sources), imports what Hydra imports late, and
yields what composing the runs has in common; every forked run starts with all of it.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from omegaconf import OmegaConf

from clusterduck.agent.composing import Composing, worth_learning
from clusterduck.agent.copying import quicken
from clusterduck.launch import freeze, plain
from clusterduck.launch.payload import Payload


def plain_of(payload: Payload) -> plain.PlainSide | None:
    """The plain side of a payload; None if it has none, or another Hydra or plugin is here: the user's side tells."""
    try:
        return None if payload.plain is None else plain.load(payload.plain)
    except Exception:
        return None


def warm_up(payload: Payload) -> Composing:
    """Compose the configurations of some of the payload's runs, if it has a plain side; returns what they have in
    common.

    This is left out where it would read files: the fork server must not wait for a file system.
    """
    composing = Composing()
    quicken()
    with contextlib.suppress(ImportError):  # Hydra imports it late, in every run
        importlib.import_module("hydra._internal.logging_config")
    side = plain_of(payload)
    if side is None or not payload.overrides:
        return composing
    with contextlib.suppress(Exception):  # what is wrong with a run's configuration, the run will tell
        side.activate()
        loader: Any = side.hydra_context.config_loader
        if all(freeze.is_in_memory(source) for source in loader.get_sources()):
            for overrides in worth_learning(payload.overrides, freeze.groups()):
                config = composing.learn(loader, side.config, overrides)
            OmegaConf.to_yaml(config)  # as run_job does
    return composing
