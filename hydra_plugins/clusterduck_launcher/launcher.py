"""The launchers as Hydra finds them. All they do is in ``clusterduck.launch``, imported when a sweep really begins."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

    from clusterduck.launch.collect import Progress
    from clusterduck.launch.sweep import Sweep

# Hydra 1.3 imports every module of a plugin, and 1.4 only the launchers' own: the options must be known either way.
from hydra_plugins.clusterduck_launcher import config as config  # noqa: PLC0414


class ClusterduckLauncher(Launcher):
    """What both launchers share: packs a sweep's runs into few jobs.

    Args:
        params: the options, see ``hydra_plugins.clusterduck_launcher.config``.
    """

    def __init__(self, **params: Any) -> None:
        self._params = params
        self._sweep: Sweep | None = None

    @property
    @abstractmethod
    def cluster(self) -> str:
        """Where the jobs go: "local" or "slurm"."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check all that can be checked, and take the sweep folder, before the sweeper writes anything into it.

        Raises:
            ClusterduckError: (which Hydra shows without a traceback) for what cannot be carried out.
        """
        with _shown_by_hydra():
            from clusterduck.errors import ConfigError
            from clusterduck.launch.sweep import Sweep

            missing = sorted(OmegaConf.missing_keys(config.hydra.launcher))
            if missing:
                raise ConfigError(
                    f"hydra.launcher.{missing[0]} has no value yet (its config says ???): set it, e.g. with "
                    f"hydra.launcher.{missing[0]}=VALUE."
                )
            params = {
                name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
                for name, value in self._params.items()
            }
            self._sweep = Sweep(
                cluster=self.cluster,
                params=params,
                hydra_context=hydra_context,
                task_function=task_function,
                config=config,
                progress=_progress(),
            )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the runs, and wait for them if ``wait_for_completion`` says so.

        Returns:
            One answer per run, in the order of ``job_overrides``.
        """
        assert self._sweep is not None, "Hydra calls setup() first"
        with _shown_by_hydra():
            return self._sweep.launch(job_overrides, initial_job_idx)


class ClusterduckLocalLauncher(ClusterduckLauncher):
    """``hydra/launcher=clusterduck_local``: on this machine."""

    @property
    def cluster(self) -> str:
        """This machine."""
        return "local"


class ClusterduckSlurmLauncher(ClusterduckLauncher):
    """``hydra/launcher=clusterduck_slurm``: in Slurm jobs."""

    @property
    def cluster(self) -> str:
        """Slurm."""
        return "slurm"


def _progress() -> Callable[[str], Progress]:
    from clusterduck.cli.progress import Progress

    return Progress


@contextmanager
def _shown_by_hydra() -> Iterator[None]:
    """Have Hydra show our errors as the sentences they are: it prints a traceback of all but its own kind."""
    from hydra.errors import CompactHydraException

    from clusterduck.errors import ClusterduckError

    try:
        yield
    except ClusterduckError as error:
        kind = type(error)
        compact = type(kind.__name__, (kind, CompactHydraException), {"__module__": kind.__module__})
        raise compact(str(error)) from None
