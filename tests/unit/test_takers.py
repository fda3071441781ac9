"""Which job takes each run that waits, and what is said of those that no job will take."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from journals_builder import SweepBuilder

from clusterduck import standing
from clusterduck.events import AttemptsRequeued, BatchClosed, BatchPlanned, Event, RunsPlanned
from clusterduck.ledger import queries
from clusterduck.ledger.replica import Replica
from clusterduck.model import AgentId, Attempt
from clusterduck.queue import Claims
from clusterduck.slurm.jobs import JobStatus


def put_back(at: float, attempts: list[tuple[int, int]], batch: str | None = None) -> Event:
    """Attempts are put into the queue, by an agent if a batch is named."""
    return AttemptsRequeued(time=at, attempts=attempts, kind="retry", reason="", user="u", host="h", batch=batch)


@pytest.mark.parametrize("shares", [False, True])
def test_who_takes_each_run_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    sweep = SweepBuilder(tmp_path, start=time.time() - 60)
    at = sweep.start
    plan = [replace(e, share_runs=shares) if isinstance(e, BatchPlanned) else e for e in sweep.launch(12, batches=3)]
    sweep.write(sweep.launch_journal(), plan)
    # one more run and a list for a fourth job, which lives: 10 and 11 were put back, one of them before it ever began
    again = BatchPlanned(
        time=at, batch="r1-0", launch=0, first=0, stop=0, nodes=1, slots_per_node=1, share_runs=False,
        attempts=[(10, 1), (11, 2)],
    )  # fmt: skip
    beyond = RunsPlanned(time=at, launch=0, runs=[(12, [])])
    told = [again, beyond, put_back(at, [(10, 1), (11, 2), (7, 2)]), put_back(at, [(6, 2)], batch="0-1")]
    over = [BatchClosed(time=at, batch=batch, state="TIMEOUT", reason="So.") for batch in ("0-0", "0-2")]
    sweep.write(sweep.act_journal("act"), [*told, *over])
    for owner, run in (("0-0/0.0", 1), ("cancel/u", 2), ("0-1/0.0", 3), ("0-1/0.0", 4), ("0-0/0.0", 5)):
        assert Claims(sweep.paths.claims, owner).claim(Attempt(run, 1))
    Claims(sweep.paths.claims, "0-2/0.0").claim(Attempt(6, 1))  # of an attempt that is over
    monkeypatch.setattr(standing, "still_listed", lambda jobs: set())
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        connection = replica.connection
        now = standing.of_sweep(connection, sweep.sweep, {})
        shared = "0-1" if shares else None
        assert list(now.waiting.items()) == [
            (0, shared), (1, None), (2, None), (3, "0-1"), (4, "0-1"), (5, None), (6, "0-1"), (7, None), (8, shared),
            (9, shared), (10, "r1-0"), (11, "r1-0"), (12, None),
        ]  # fmt: skip
        live, dead = AgentId("0-1", 0, 0), AgentId("0-0", 0, 0)
        assert now.holders == {1: dead, 2: None, 3: live, 4: live, 5: dead}
        assert [now.attempt(run) for run in (5, 6, 10, 11)] == [(5, 1), (6, 2), (10, 1), (11, 2)]

        neglected = standing.neglected(connection, [sweep.sweep], {})[sweep.sweep]
        vain = [1, 2, 5, 7, 12] if shares else [0, 1, 2, 5, 7, 8, 9, 12]
        why = {run.number: str(neglected.why(run)) for run in queries.runs(connection, sweep.sweep)}
        assert (now.unattended, neglected.count) == (vain, len(vain))
        assert [run for run, sentence in why.items() if sentence != "None"] == vain
        assert "its batch 0-0 ended TIMEOUT (So)" in why[1] and "its batch 0-0 ended" in why[5], "whose claim it is"
        assert why[12].startswith("No job will take it. Send it with") and why[3] == "None"

        over_too = {(sweep.sweep, "0-1"): JobStatus("9001", "FAILED")}
        assert set(standing.of_sweep(connection, sweep.sweep, over_too).waiting.values()) == {None, "r1-0"}
