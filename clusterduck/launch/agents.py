"""What the agents of a batch are told, from the launcher's options: at launch, and when runs are sent again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from clusterduck.agent.settings import AgentSettings
from clusterduck.launch.options import Options
from clusterduck.model import Attempt

#: How long before its time limit submitit's local executor warns a job, in seconds.
LOCAL_SIGNAL_DELAY_S = 30


def settings_for(
    options: Options,
    *,
    root: Path,
    batch: str,
    launch: int,
    ledger: Path,
    code: str,
    runs: tuple[int, int] = (0, 0),
    plan: tuple[int, int] = (0, 0),
    ordered: bool = False,
    attempts: Sequence[Attempt] = (),
) -> AgentSettings:
    """The settings of a batch's agents.

    Args:
        options: the launcher's.
        root: the sweep's root folder.
        batch: the batch's id.
        launch: the launch's number.
        ledger: the ledger's path.
        code: where the user's code is.
        runs: the batch's home range,
        plan: and the whole launch's: first, stop; nothing if the batch is to execute only what it was sent for.
        ordered: whether the launch's journal may tell how long runs are expected to take.
        attempts: the home of a batch for attempts that were put into the queue.
    """
    return AgentSettings(
        sweep_root=str(root),
        batch=batch,
        launch=launch,
        first_run=runs[0],
        stop_run=runs[1],
        plan_first=plan[0],
        plan_stop=plan[1],
        jobs=_jobs(options, plan[1] - plan[0]),
        attempts=tuple(map(str, attempts)),
        nodes=options.nodes,
        cluster=options.cluster,
        parallel_runs_per_node=options.parallel_runs_per_node,
        ledger=str(ledger),
        cwd=code,
        resources={kind: None if given is None else dict(given) for kind, given in options.resources_config.items()},
        share_runs=options.share_runs,
        ordered=ordered,
        prefetch=options.prefetch,
        preload=tuple(options.preload),
        verbose=options.verbose,
        publish_interval_s=options.publish_interval_s,
        timeout_min=options.timeout_min,
        signal_delay_s=options.submitit.get("signal_delay_s", LOCAL_SIGNAL_DELAY_S),
        max_num_timeout=options.max_num_timeout,
        max_retries=options.max_retries,
        retry_on=tuple(options.retry_on),
        max_failures=options.max_failures,
        run_timeout_min=options.run_timeout_min,
        expected_run_min=options.expected_run_min,
        grace_s=options.grace_s,
        cuda_visible_devices=visible_gpus(options) if options.cluster == "local" else None,
    )


def _jobs(options: Options, runs: int) -> int:
    """How many jobs execute a launch of so many runs."""
    return -(-runs // (options.runs_per_batch or max(runs, 1)))


def visible_gpus(options: Options) -> str | None:
    """The GPUs a local job may use: those this process sees, the first ``gpus_per_node`` of them if that is set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if options.gpus_per_node is None:
        return visible
    gpus = [gpu for gpu in visible.split(",") if gpu] if visible is not None else None
    wanted = [str(index) for index in range(options.gpus_per_node)] if gpus is None else gpus[: options.gpus_per_node]
    return ",".join(wanted)
