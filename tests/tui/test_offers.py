"""What is offered before runs are sent again: more time after TIMEOUT, more memory after OUT_OF_MEMORY."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from journals_builder import SweepBuilder

from clusterduck import standing
from clusterduck.launch.again import Launched
from clusterduck.launch.options import Options
from clusterduck.ledger import queries
from clusterduck.ledger.replica import Replica
from clusterduck.model import Attempt
from clusterduck.requeue_plan import Chosen, RequeuePlan, SweepPlan, Wish
from clusterduck_tui.offers import offers


def offered(project: Path, state: str, **given: Any) -> list[str]:
    """What is offered after a run ended in ``state``, each with what it was."""
    built = SweepBuilder(project)
    at = built.start + 100
    built.write(built.launch_journal(), built.launch(4))
    ended = built.ended(at + 9, 1, state=state, started_at=at + 1)
    built.write(built.agent_journal(), [built.agent_started(at, "node1"), built.started(at + 1, 1), ended])
    options = Options(cluster=given.pop("cluster", "slurm"), timeout_min=90, **given)
    with Replica.open(built.ledger) as replica:
        replica.catch_up()
        run = queries.run(replica.connection, built.sweep, 1)
        part = SweepPlan(
            standing.of_sweep(replica.connection, built.sweep, {}),
            (Chosen(run, Attempt(1, 2)),),
            (),
            {0: Launched(0, options, "python", ".")},
        )
        return [f"{one.change}, {one.was}" for one in offers(replica.connection, RequeuePlan(Wish(), (part,)))]


@pytest.mark.parametrize(
    ("state", "given", "expected"),
    [
        ("FAILED", {}, []),
        ("TIMEOUT", {}, ["timeout_min=180, was 90"]),
        ("OUT_OF_MEMORY", {"submitit": {"mem_gb": 30}}, ["mem_gb=45, was 30"]),
        ("OUT_OF_MEMORY", {"submitit": {"mem_gb": 0.5, "mem_per_gpu": None}}, ["mem_gb=1, was 0.5"]),
        ("OUT_OF_MEMORY", {"submitit": {"mem_per_cpu": "3G"}}, ["mem_per_cpu=5G, was 3G"]),
        (
            "OUT_OF_MEMORY",
            {"parallel_runs_per_node": 4},
            ["parallel_runs_per_node=2, was 4, a run took 95.4 MiB"],
        ),
        ("OUT_OF_MEMORY", {}, ["mem_gb=1, was not set, a run took 95.4 MiB"]),
        ("OUT_OF_MEMORY", {"cluster": "local"}, []),
    ],
)
def test_what_is_offered(project: Path, state: str, given: dict[str, Any], expected: list[str]) -> None:
    assert offered(project, state, **given) == expected
