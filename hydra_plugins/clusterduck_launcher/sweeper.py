"""Hydra's own sweeper, but for what it does before anything is launched: it does not compose every single run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

# Hydra 1.3 imports every module of a plugin, and 1.4 only the sweeper's own: the options must be known either way.
from hydra_plugins.clusterduck_launcher import config as config  # noqa: PLC0414


class ClusterduckSweeper(BasicSweeper):
    """``hydra/sweeper=clusterduck``: sweeps as ``basic`` does, and composes only the runs that bring something new.

    ``basic`` composes every run once before it calls the launcher, so that what cannot be composed is found out early,
    which takes minutes where there are thousands of runs. Here a run is composed if one of its overrides has a value
    that none before it had; of numbers, only the first of each kind (whole or not) for each key.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Find out whether the runs can be composed.

        Raises:
            HydraException: as Hydra does, of the first that cannot.
        """
        super().validate_batch_is_legal(list(_bringing_news(batch)))


def _bringing_news(batch: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    seen: set[tuple[str, str]] = set()
    for run in batch:
        values = {(key, _kind(value)) for key, _, value in (override.partition("=") for override in run)}
        if not values or not values <= seen:
            seen |= values
            yield run


def _kind(value: str) -> str:
    """What a value is to a configuration: a number is like any other, everything else stands for itself."""
    for kind in (int, float):
        try:
            kind(value)
        except ValueError:
            continue
        return kind.__name__
    return f"={value}"
