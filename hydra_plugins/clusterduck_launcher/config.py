"""The options with their defaults: ``hydra/launcher=clusterduck_local`` and ``clusterduck_slurm``, and the sweeper's.

Hydra imports this module in every process, so it imports nothing but Hydra's ConfigStore, and turns the dataclasses
into configs only when one is chosen. Annotations must not be postponed here: Hydra 1.3 executes plugins' modules before
they are in ``sys.modules``, where dataclasses would look postponed ones up.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf


@dataclass(init=False, repr=False, eq=False)  # only the fields are used, and generated methods cost time
class ClusterduckConf:
    """What both launchers take: the options of hydra-submitit-launcher, and clusterduck's own."""

    # where submitit keeps its files, the job's own stdout and stderr among them
    submitit_folder: str = "${hydra.sweep.dir}/.submitit/%j"
    # time limit of a job, in minutes
    timeout_min: int = 60
    # CPUs of a job's one task per node, in Slurm's sense; the agent uses all CPUs of its allocation
    cpus_per_task: int | None = None
    # GPUs of each node
    gpus_per_node: int | None = None
    # always 1: one agent on each node, which runs parallel_runs_per_node runs at a time
    tasks_per_node: int = 1
    # memory of each node, in GB
    mem_gb: float | None = None
    # nodes of a job; an agent on each, and the job's runs divided among them
    nodes: int = 1
    # name of the job
    name: str = "${hydra.job.name}"
    # the job's own stderr goes into its stdout
    stderr_to_stdout: bool = False

    # how many runs a node executes at a time
    parallel_runs_per_node: int = 1
    # how many runs a node executes in all, which sets the number of jobs; null: all runs in one job
    total_runs_per_node: int | None = None
    # wait for the runs and hand their return values to the sweeper
    wait_for_completion: bool = False
    # what each of a node's runs gets of it, by kind: cpu, cuda, rendering, stagger, tmpdir; null means defaults
    resources_config: dict[str, Any] | None = field(default_factory=dict)
    # say what is scheduled where and why
    verbose: bool = False
    # a job whose own runs are done goes on with those of other jobs
    share_runs: bool = False
    # what of the next run is prepared while its slot is busy: config, imports (the user's modules too), or off
    prefetch: str = "config"
    # modules that are imported once before all runs, e.g. [torch]; not those that start threads or use the GPU
    preload: list[str] = field(default_factory=list)
    # how often a run that was lost with its node or agent is put back into the queue by itself
    max_retries: int = 0
    # further ends after which that is done: FAILED, OUT_OF_MEMORY, TIMEOUT
    retry_on: list[str] = field(default_factory=list)
    # after so many failed runs no further one is started; null: however many fail
    max_failures: int | None = None
    # one run's own time limit, in minutes; null: only the job's
    run_timeout_min: float | None = None
    # how long a run takes, in minutes: none is started that cannot end in the job's time; null: as the longest so far
    expected_run_min: float | None = None
    # how long a run that is to end has for that before it is killed, in seconds
    grace_s: float = 10.0
    # how often the ledger is published while runs execute, in seconds
    publish_interval_s: float = 30.0
    # the ledger file; null: the project's, found upwards from the working directory, else ./.clusterduck/ledger.db
    ledger: str | None = None
    # a group that may read the sweep's records and logs, and the ledger; null: only you may
    readable_by: str | None = None
    # false: show what would be submitted, and submit nothing
    do_submit: bool = True


@dataclass(init=False, repr=False, eq=False)
class ClusterduckLocalConf(ClusterduckConf):
    """Runs on this machine, through submitit's local executor."""

    _target_: str = "hydra_plugins.clusterduck_launcher.launcher.ClusterduckLocalLauncher"


@dataclass(init=False, repr=False, eq=False)
class ClusterduckSlurmConf(ClusterduckConf):
    """Runs in Slurm jobs."""

    _target_: str = "hydra_plugins.clusterduck_launcher.launcher.ClusterduckSlurmLauncher"

    # options of sbatch, see https://slurm.schedmd.com/sbatch.html
    partition: str | None = None
    qos: str | None = None
    comment: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    cpus_per_gpu: int | None = None
    gpus_per_task: int | None = None
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    account: str | None = None

    # how long before its time limit a job is warned, in seconds
    signal_delay_s: int = 120
    # how often submitit may send a job again that ran into its time limit
    max_num_timeout: int = 0
    # the command that starts Python on a node, e.g. inside a container; null: this interpreter
    python: str | None = None
    # further options of sbatch, e.g. {mail-type: BEGIN}
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    # how many jobs of an array may run at a time
    array_parallelism: int = 256
    # commands that the job runs first
    setup: list[str] | None = None
    # options of srun; --kill-on-bad-exit=0 and --cpu-bind=none are added unless these say otherwise
    srun_args: list[str] | None = None


@dataclass(init=False, repr=False, eq=False)
class ClusterduckSweeperConf:
    """The options of Hydra's own sweeper."""

    _target_: str = "hydra_plugins.clusterduck_launcher.sweeper.ClusterduckSweeper"

    # launch no more runs than this at a time; null: all
    max_batch_size: int | None = None
    # overrides that are swept by default, as on the command line
    params: dict[str, str] | None = None


#: Mappings that start empty and may get any key, on the command line without a ``+`` too.
OPEN = ("resources_config", "additional_parameters")


class _WhenChosen:
    """Stands for a dataclass in the ConfigStore, which hands out deep copies only: a copy of this is the config.

    Building a typed config takes some milliseconds, which every Hydra application would pay otherwise.
    """

    def __init__(self, schema: type) -> None:
        self._schema = schema

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        config = OmegaConf.structured(self._schema)
        for name in OPEN:
            if name in config:
                OmegaConf.set_struct(config[name], False)
        return config


def _store(kind: str, name: str, schema: type) -> None:
    store = ConfigStore.instance()
    store.store(group=f"hydra/{kind}", name=name, node={}, provider="clusterduck_launcher")
    store.repo["hydra"][kind][f"{name}.yaml"].node = _WhenChosen(schema)


_store("launcher", "clusterduck_local", ClusterduckLocalConf)
_store("launcher", "clusterduck_slurm", ClusterduckSlurmConf)
_store("sweeper", "clusterduck", ClusterduckSweeperConf)
