"""The launcher's options: which there are, which go to submitit as they are, and what is known to be wrong at once."""

from __future__ import annotations

import grp
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clusterduck.errors import ConfigError
from clusterduck.model import FAILED_STATES

#: Options of hydra-submitit-launcher that both executors of submitit know, under the same names.
SHARED = (
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "mem_gb",
    "nodes",
    "name",
    "stderr_to_stdout",
)

#: Those that only its Slurm executor knows.
SLURM_ONLY = (
    "partition",
    "qos",
    "comment",
    "constraint",
    "exclude",
    "gres",
    "cpus_per_gpu",
    "gpus_per_task",
    "mem_per_gpu",
    "mem_per_cpu",
    "account",
    "signal_delay_s",
    "additional_parameters",
    "array_parallelism",
    "setup",
    "srun_args",
)

#: What srun gets unless the user says otherwise: one agent's failure must not take the others down, and an agent must
#: not be bound to the one CPU that srun gives a task by default on clusters with task affinity.
SRUN_DEFAULTS = ("--kill-on-bad-exit=0", "--cpu-bind=none")

#: How users may spell the options of srun that :data:`SRUN_DEFAULTS` sets.
_SRUN_SPELLINGS = {
    "--kill-on-bad-exit=0": ("--kill-on-bad-exit", "-K"),
    "--cpu-bind=none": ("--cpu-bind", "--cpu_bind"),
}

#: What of a run may be prepared while its slot is still another run's.
PREFETCH = ("config", "imports", "off")

#: Options that say how a launch behaves, which is over when runs are sent again.
_FIXED = ("do_submit", "wait_for_completion", "ledger", "submitit_folder")

#: sbatch's options in ``additional_parameters`` that would contradict what clusterduck plans, and what to set instead.
_NOT_ADDITIONAL = {
    "nodes": "hydra.launcher.nodes",
    "ntasks": "hydra.launcher.parallel_runs_per_node",
    "ntasks-per-node": "hydra.launcher.parallel_runs_per_node",
    "array": "hydra.launcher.total_runs_per_node",
}


@dataclass(frozen=True)
class Options:
    """A launcher's options, checked. Those that are not listed here are in ``submitit``.

    Attributes:
        cluster: "local" or "slurm".
        submitit_folder: where submitit keeps its files.
        submitit: what goes to submitit as it is, by the names of hydra-submitit-launcher.
        python: the command that starts Python on a node; None: this interpreter.
        max_num_timeout: how often submitit may send a timed-out job again.
        The rest: see ``hydra_plugins.clusterduck_launcher.config``.
    """

    cluster: str
    submitit_folder: str = ".submitit/%j"
    submitit: Mapping[str, Any] = field(default_factory=dict)
    python: str | None = None
    max_num_timeout: int = 0
    timeout_min: int = 60
    nodes: int = 1
    gpus_per_node: int | None = None
    parallel_runs_per_node: int = 1
    total_runs_per_node: int | None = None
    wait_for_completion: bool = False
    resources_config: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    verbose: bool = False
    share_runs: bool = False
    prefetch: str = "config"
    preload: Sequence[str] = ()
    max_retries: int = 0
    retry_on: Sequence[str] = ()
    max_failures: int | None = None
    run_timeout_min: float | None = None
    expected_run_min: float | None = None
    grace_s: float = 10.0
    publish_interval_s: float = 30.0
    ledger: str | None = None
    readable_by: str | None = None
    do_submit: bool = True

    @property
    def runs_per_batch(self) -> int | None:
        """How many runs a job executes: ``total_runs_per_node`` on each of its nodes; None: all."""
        return None if self.total_runs_per_node is None else self.total_runs_per_node * self.nodes

    @property
    def reading_group(self) -> int | None:
        """The group that may read what is recorded; None: nobody but the user.

        Raises:
            ConfigError: if there is none of that name, or the user is not in it.
        """
        if self.readable_by is None:
            return None
        try:
            group = grp.getgrnam(str(self.readable_by)).gr_gid
        except KeyError:
            raise ConfigError(
                f"hydra.launcher.readable_by={self.readable_by}, but this host knows no group of that name: `id -Gn` "
                f"shows those that you are in."
            ) from None
        if os.geteuid() != 0 and group not in {os.getegid(), *os.getgroups()}:
            raise ConfigError(
                f"hydra.launcher.readable_by={self.readable_by}, but you are not in that group: `id -Gn` shows those "
                f"that you are in."
            )
        return group

    @classmethod
    def of(cls, cluster: str, params: Mapping[str, Any]) -> Options:
        """Check the options that Hydra hands to the launcher, as plain data.

        Raises:
            ConfigError: for the first that cannot be carried out.
        """
        given = dict(params)
        if given.get("tasks_per_node", 1) != 1:
            raise ConfigError(_about_tasks(given["tasks_per_node"]))
        to_submitit = {name: given[name] for name in (*SHARED, *_of(cluster)) if name in given}
        own = set(cls.__dataclass_fields__) - {"cluster", "submitit"}
        unknown = sorted(set(given) - own - set(to_submitit))
        if unknown:
            raise ConfigError(
                f"hydra.launcher.{unknown[0]} is no option of clusterduck_{cluster}. "
                f"`python <your script> --cfg hydra -p hydra.launcher` shows those there are."
            )
        if given.get("resources_config") is None:
            given["resources_config"] = {}
        given["prefetch"] = _prefetch(given.get("prefetch", cls.prefetch))
        given["preload"] = _modules(given.get("preload"))
        given["retry_on"] = _states(given.get("retry_on"))
        values = {name: value for name, value in given.items() if name in own}
        options = cls(cluster=cluster, submitit=_complete(cluster, to_submitit), **values)
        options._check()
        return options

    @classmethod
    def again(cls, settings: Mapping[str, Any], changes: Mapping[str, Any]) -> Options:
        """The options of an earlier launch, some of them changed.

        Args:
            settings: the options as that launch recorded them.
            changes: by name; ``a.b`` is the entry ``b`` of option ``a``.

        Raises:
            ConfigError: if an option does not exist, or cannot be carried out like that.
        """
        cluster = str(settings["cluster"])
        params = {**settings, **settings.get("submitit", {})}
        known = {*cls.__dataclass_fields__, *SHARED, *_of(cluster)} - {"cluster", "submitit"}
        params = {name: value for name, value in params.items() if name in known}
        for name, value in changes.items():
            option, *inner = name.split(".")
            if option in _FIXED:
                raise ConfigError(f"{option} cannot be changed for runs that are sent again.")
            if inner:
                params[option] = _with_entry(option, params.get(option), inner, value)
            else:
                params[option] = _like(option, params.get(option), value)
        return cls.of(cluster, params)

    def _check(self) -> None:
        from clusterduck.agent.slots import validate

        validate(self.resources_config, self.parallel_runs_per_node)
        for name, least in (("nodes", 1), ("timeout_min", 1), ("max_num_timeout", 0)):
            _require_number(name, getattr(self, name), least)
        for name, least in (
            ("cpus_per_task", 1),
            ("gpus_per_node", 0),
            ("signal_delay_s", 0),
            ("array_parallelism", 1),
        ):
            if self.submitit.get(name) is not None:
                _require_number(name, self.submitit[name], least)
        _require_number("max_retries", self.max_retries, 0)
        if self.max_failures is not None:
            _require_number("max_failures", self.max_failures, 1)
        for name in ("run_timeout_min", "expected_run_min", "grace_s"):
            _require_positive(name, getattr(self, name), or_zero=name == "grace_s")
        memory = self.submitit.get("mem_gb")
        if memory is not None and not memory > 0:
            raise ConfigError(f"hydra.launcher.mem_gb must be more than 0, not {memory}.")
        if not self.publish_interval_s > 0:
            raise ConfigError(f"hydra.launcher.publish_interval_s must be more than 0, not {self.publish_interval_s}.")
        _ = self.reading_group  # raises
        total, parallel = self.total_runs_per_node, self.parallel_runs_per_node
        if total is not None:
            _require_number("total_runs_per_node", total, 1)
            if total < parallel:
                raise ConfigError(
                    f"hydra.launcher.total_runs_per_node={total} is less than parallel_runs_per_node={parallel}, so "
                    f"{parallel - total} of a node's {parallel} slots would always be empty. Set it to "
                    f"{parallel} or more."
                )
        if self.cluster == "local" and self.nodes > 1:
            raise ConfigError(
                f"hydra.launcher.nodes={self.nodes}, but clusterduck_local has only this machine: leave nodes at 1 "
                f"and set parallel_runs_per_node to the number of runs at a time."
            )
        for name in self.submitit.get("additional_parameters") or {}:
            instead = _NOT_ADDITIONAL.get(str(name).replace("_", "-"))
            if instead is not None:
                raise ConfigError(
                    f"hydra.launcher.additional_parameters cannot set {name}, since clusterduck plans with it: "
                    f"use {instead} instead."
                )


def _with_entry(option: str, before: object, names: list[str], value: object) -> dict[str, Any]:
    """A copy of a mapping with one entry changed, which may be within a mapping in it."""
    if before is not None and not isinstance(before, Mapping):
        raise ConfigError(f"hydra.launcher.{option} has no entries.")
    copy: dict[str, Any] = dict(before or {})
    first, *rest = names
    copy[first] = _with_entry(f"{option}.{first}", copy.get(first), rest, value) if rest else value
    return copy


def _like(option: str, before: object, value: object) -> object:
    """The value, if it is of the kind that the option has; numbers are checked with the others."""
    for kind, name in ((bool, "true or false"), (Mapping, "a mapping"), (list, "a list")):
        if isinstance(before, kind) and value is not None and not isinstance(value, kind):
            raise ConfigError(f"hydra.launcher.{option} must be {name}, not {value!r}.")
    return str(value) if isinstance(before, str) and isinstance(value, (int, float)) else value


def require_slots_here(options: Options) -> None:
    """For jobs on this machine: make sure that it has what the runs' resources need, as the agent would.

    Raises:
        ConfigError: if the agent would refuse.
    """
    from clusterduck.agent.node import discover
    from clusterduck.agent.slots import build_slots
    from clusterduck.launch.agents import visible_gpus

    environ = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    gpus = visible_gpus(options)
    if gpus is not None:
        environ["CUDA_VISIBLE_DEVICES"] = gpus
    build_slots(discover(environ, "local"), options.parallel_runs_per_node, options.resources_config)


def require_slurm() -> None:
    """Make sure that jobs can be submitted from this host.

    Raises:
        ConfigError: naming the command that is not there.
    """
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise ConfigError(
                f"{command} is not on the PATH of this host, so clusterduck_slurm cannot submit jobs from it. Log in "
                f"to a login node of the cluster, load its Slurm module, or use hydra/launcher=clusterduck_local."
            )


def _of(cluster: str) -> tuple[str, ...]:
    return SLURM_ONLY if cluster == "slurm" else ()


def _complete(cluster: str, to_submitit: dict[str, Any]) -> dict[str, Any]:
    """Add what clusterduck wants of srun."""
    if cluster == "slurm":
        given = list(to_submitit.get("srun_args") or ())
        missing = [
            default
            for default in SRUN_DEFAULTS
            if not any(str(arg).startswith(spelling) for arg in given for spelling in _SRUN_SPELLINGS[default])
        ]
        to_submitit["srun_args"] = [*missing, *given]
    return to_submitit


def _require_number(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"hydra.launcher.{name} must be a whole number from {least} up, not {value!r}.")


def _require_positive(name: str, value: object, or_zero: bool) -> None:
    if value is None and not or_zero:
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (value > 0 or (or_zero and value == 0)):  # type: ignore[operator]
        least = "0 or more" if or_zero else "more than 0, or null"
        raise ConfigError(f"hydra.launcher.{name} must be a number, {least}, not {value!r}.")


def _prefetch(given: object) -> str:
    """What is prepared ahead of time; YAML takes ``off`` for false."""
    wanted = "off" if str(given).lower() == "false" else str(given)
    if wanted not in PREFETCH:
        raise ConfigError(f"hydra.launcher.prefetch must be one of {', '.join(PREFETCH)}, not {given!r}.")
    return wanted


def _modules(given: object) -> list[str]:
    """The modules in ``preload``."""
    if given is not None and not isinstance(given, (list, tuple)):
        raise ConfigError(f"hydra.launcher.preload must be a list of modules, e.g. [torch, my.package], not {given!r}.")
    modules = [str(module) for module in given or ()]
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ConfigError(f"hydra.launcher.preload names modules to be imported; {module!r} cannot be one.")
    return modules


def _states(given: object) -> list[str]:
    """The states in ``retry_on``, in Slurm's own spelling."""
    if given is not None and not isinstance(given, (list, tuple)):
        raise ConfigError(f"hydra.launcher.retry_on must be a list of states, e.g. [FAILED, TIMEOUT], not {given!r}.")
    states = [str(state).upper() for state in given or ()]
    for state in states:
        if state not in FAILED_STATES:
            allowed = ", ".join(FAILED_STATES)
            raise ConfigError(f"hydra.launcher.retry_on cannot hold {state!r}: it may name {allowed}.")
    return states


def _about_tasks(tasks: object) -> str:
    return (
        f"hydra.launcher.tasks_per_node={tasks}, but clusterduck starts one task per node, which runs many runs: set "
        f"parallel_runs_per_node={tasks} instead, and cpus_per_task to the CPUs of all of them together."
    )
