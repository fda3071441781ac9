"""Does a sweeper need its runs' return values? Then it cannot be served without waiting for them."""

from __future__ import annotations

import logging

from clusterduck.errors import ConfigError

log = logging.getLogger(__name__)

#: Sweepers that propose the next runs from the values of the last, by package and by class.
_NEED_VALUES = (
    "hydra_plugins.hydra_optuna_sweeper.",
    "hydra_plugins.hydra_ax_sweeper.",
    "hydra_plugins.hydra_nevergrad_sweeper.",
)
_NEED_VALUES_CLASSES = frozenset({"OptunaSweeper", "AxSweeper", "NevergradSweeper"})

_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def check(target: str, wait_for_completion: bool) -> None:
    """Refuse a sweeper that needs values nobody waits for; warn about one that nobody knows.

    Args:
        target: the class path of the sweeper, ``hydra.sweeper._target_``.
        wait_for_completion: the launcher's option.

    Raises:
        ConfigError: if it needs values.
    """
    if wait_for_completion:
        return
    family = _with_bases(target)
    if any(name.startswith(_NEED_VALUES) or name.rpartition(".")[2] in _NEED_VALUES_CLASSES for name in family):
        raise ConfigError(
            f"The sweeper {target.rpartition('.')[2]} needs the values that its runs return, but the launcher is told "
            f"not to wait for them: set hydra.launcher.wait_for_completion=true."
        )
    if _BASIC not in family:
        log.warning(
            "clusterduck does not know whether the sweeper %s needs the values that its runs return. It gets None for "
            "each of them; if it needs them, set hydra.launcher.wait_for_completion=true.",
            target,
        )


def _with_bases(target: str) -> set[str]:
    """The class paths of the sweeper and its bases; by name, since Hydra 1.3 executes a plugin's module repeatedly."""
    from hydra.core.plugins import Plugins

    found = Plugins.instance().class_name_to_class.get(target)
    bases = found.__mro__ if found is not None else ()
    return {target, *(f"{base.__module__}.{base.__qualname__}" for base in bases)}
