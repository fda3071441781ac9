"""What a launch tells an agent: plain data that submitit pickles into the job. Imports nothing, so that it is cheap to
send."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AgentSettings:
    """Everything an agent needs to know.

    Attributes:
        sweep_root: ``<sweep dir>/.clusterduck/<sweep id>``.
        batch: the batch's id.
        launch: the launch's number, which names the payload.
        first_run: the batch's home range begins here,
        stop_run: and ends before here.
        plan_first: the whole launch's runs begin here,
        plan_stop: and end before here.
        jobs: how many jobs were planned to execute them.
        nodes: how many nodes, and so agents, the job has.
        cluster: "local" or "slurm".
        parallel_runs_per_node: how many slots.
        resources: the launcher's ``resources_config``.
        share_runs: whether to go on with other batches' runs once the home range is done.
        ordered: whether the launch's journal may tell how long runs are expected to take: the longest are claimed
            first.
        prefetch: what of a run is prepared while its slot is still busy: "config", "imports", or nothing ("off").
        preload: modules that are imported once, before all runs.
        verbose: whether to say what is scheduled where and why.
        publish_interval_s: how often to have the ledger published, in seconds.
        ledger: the ledger's path.
        cwd: where the launch happened; the code's git checkout, if it is one.
        timeout_min: the job's time limit, in minutes.
        attempts: the home of a batch that was submitted for requeued attempts, each ``<run>.<attempt>``; its ranges
            are empty.
        signal_delay_s: how long before its end Slurm warns the job, in seconds.
        max_num_timeout: how often the job is put back into Slurm's queue after its time limit ended it.
        max_retries: how often an attempt that was lost to its node, or ended in one of ``retry_on``, is put back.
        retry_on: states.
        max_failures: after so many failed runs of the sweep, nothing more is claimed.
        run_timeout_min: one run's own time limit, in minutes.
        expected_run_min: how long a run takes, in minutes; one that cannot end in the job's time is not claimed.
        grace_s: from asking a run to end to killing it, in seconds.
        cuda_visible_devices: for a local job, what the launching process had (submitit's local executor blanks it).
    """

    sweep_root: str
    batch: str
    launch: int
    first_run: int
    stop_run: int
    plan_first: int
    plan_stop: int
    nodes: int
    cluster: str
    parallel_runs_per_node: int
    ledger: str
    cwd: str = "."
    resources: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    share_runs: bool = False
    jobs: int = 1
    ordered: bool = False
    prefetch: str = "config"
    preload: tuple[str, ...] = ()
    verbose: bool = False
    publish_interval_s: float = 30.0
    timeout_min: int = 60
    attempts: tuple[str, ...] = ()
    signal_delay_s: int = 120
    max_num_timeout: int = 0
    max_retries: int = 0
    retry_on: tuple[str, ...] = ()
    max_failures: int | None = None
    run_timeout_min: float | None = None
    expected_run_min: float | None = None
    grace_s: float = 10.0
    cuda_visible_devices: str | None = None
