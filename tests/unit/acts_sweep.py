"""A sweep made of journals that can be requeued and cancelled: with a payload, options, claims, and jobs made up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from journals_builder import SweepBuilder

from clusterduck import events
from clusterduck.agent.settings import AgentSettings
from clusterduck.launch.options import Options
from clusterduck.launch.payload import Payload
from clusterduck.ledger.replica import Replica
from clusterduck.model import Attempt
from clusterduck.queue import Claims


class ActsSweep:
    """Twelve runs in two jobs of two slots: 0 to 5 were executed by an agent that has ended, 6 to 11 wait.

    Runs 1 and 4 failed, run 5 was cancelled.
    """

    def __init__(self, base: Path, cluster: str = "slurm", **options: Any) -> None:
        self.builder = SweepBuilder(base, start=time.time() - 600)
        self.paths = self.builder.paths
        self.ledger = self.builder.ledger
        self.id = self.builder.sweep
        new = self.builder.launch(12, batches=2, slots=2)
        settings = asdict(Options.of(cluster, {"parallel_runs_per_node": 2, "total_runs_per_node": 2, **options}))
        new[0] = replace(new[0], settings=settings, launcher=cluster)  # type: ignore[type-var]
        self.builder.write(self.builder.launch_journal(), new)
        payload = Payload(0, [["a=1"]] * 12, [], str(base), {}, str(base / "train.py"), None, "main", b"")
        self.paths.payload(0).write_bytes(payload.dump())
        self.paths.payload(0).chmod(0o600)
        at = self.builder.start + 100
        told: list[events.Event] = [self.builder.agent_started(at, "node0", slots=2)]
        for run, state in enumerate(["COMPLETED", "FAILED", "COMPLETED", "COMPLETED", "FAILED", "CANCELLED"]):
            told += [
                self.builder.started(at + run, run, slot=run % 2),
                self.builder.located(at + run, run),
                self.builder.ended(at + run + 0.5, run, state=state),
            ]
        told.append(events.AgentEnded(time=at + 20, reason="3 runs completed, 3 did not", exit_code=1))
        self.builder.write(self.builder.agent_journal("0-0"), told)
        self.claim("0-0/0.0", *range(6))

    def claim(self, owner: str, *runs: int) -> None:
        claims = Claims(self.paths.claims, owner)
        assert all(claims.claim(Attempt(run, 1)) for run in runs)

    def live_agent(self, *runs: int, slots: int = 2) -> None:
        """Bring the second job's agent up, with these runs in its slots."""
        at = self.builder.start + 200
        told: list[events.Event] = [self.builder.agent_started(at, "node1", slots=slots, job_id="9001")]
        told += [self.builder.started(at + 1, run, slot=slot) for slot, run in enumerate(runs)]
        self.builder.write(self.builder.agent_journal("0-1"), told, close=False)
        self.claim("0-1/0.0", *runs)

    def close(self, batch: str) -> None:
        """Put it on record that a job is over."""
        closed = events.BatchClosed(batch=batch, state="NODE_FAIL", reason="Slurm says so")
        self.builder.write(self.builder.act_journal(f"close-{batch}"), [closed])

    def states(self, replica: Replica) -> dict[int, tuple[str, int]]:
        """Each run's state and latest attempt."""
        replica.catch_up(look_at=[self.id])
        rows = replica.connection.execute("SELECT number, state, attempt FROM run ORDER BY number").fetchall()
        return {number: (state, attempt) for number, state, attempt in rows}


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """A replica of the test's own below ``folder``; and in its ``bin`` Slurm's commands that do what these scripts say,
    a fake of those that are not what the test is about."""
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    (folder / "bin").mkdir()
    for name, script in commands.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")


class Cluster:
    """Takes jobs and numbers them; may be told to fail."""

    def __init__(self) -> None:
        self.agents: list[AgentSettings] = []
        self.options: list[Options] = []
        self.failure: BaseException | None = None

    def submit(self, options: Options, agents: Sequence[AgentSettings], python: str) -> Iterator[list[tuple[str, str]]]:
        for agent in agents:
            if self.failure is not None:
                raise self.failure
            self.agents.append(agent)
            self.options.append(options)
            yield [(str(100 + len(self.agents)), "/folder")]
