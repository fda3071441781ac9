"""An override's two halves, so that tables can have a column per key. Hydra has checked the text; we only cut it."""

from __future__ import annotations

from collections.abc import Iterable


def split(override: str) -> tuple[str, str]:
    """Key and value of one override: ``+a.b=3`` gives ``("a.b", "3")``, a deletion ``~a`` gives ``("a", "~")``."""
    left, _, value = override.partition("=")
    if left.startswith("~"):
        return left[1:], f"~{value}"
    return left.lstrip("+"), value


def as_dict(overrides: Iterable[str]) -> dict[str, str]:
    """A run's overrides by key, in their order; of two for one key the later counts, as it does for Hydra."""
    return dict(split(override) for override in overrides)
