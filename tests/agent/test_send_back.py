"""Which of a job's agents has it started again after a time-out, and when nobody does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clusterduck.agent import send_back
from clusterduck.agent.settings import AgentSettings
from clusterduck.events import AgentEnded
from clusterduck.journal import JournalWriter
from clusterduck.model import AgentId
from clusterduck.paths import SweepPaths


class Job:
    """A job of two nodes, and how often it was sent back."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = SweepPaths.of(base / "out", "s")
        self.paths.create()
        self.paths.batch("0-0").mkdir()
        self.sent: list[str] = []
        monkeypatch.setattr(send_back.acts, "requeue", self.sent.append)
        monkeypatch.setattr(send_back, "OTHERS_PATIENCE_S", 0.3)
        self.settings = AgentSettings(
            sweep_root=str(self.paths.root),
            batch="0-0",
            launch=0,
            first_run=0,
            stop_run=4,
            plan_first=0,
            plan_stop=4,
            nodes=2,
            cluster="slurm",
            parallel_runs_per_node=1,
            ledger=str(base / "ledger.db"),
            max_num_timeout=1,
        )

    def ends(self, node: int, restart: int = 0, hurried: bool = False, **how: Any) -> int:
        """An agent closes its journal, and sees what there is to do; returns how often the job was sent back by now."""
        agent = AgentId("0-0", restart, node)
        folder = self.paths.agent(agent)
        folder.mkdir(parents=True, exist_ok=True)
        journal = JournalWriter(folder, "s", f"agent {agent}")
        journal.append([AgentEnded(reason="", exit_code=1, **how)])
        journal.close()
        self.again(agent, hurried)
        return len(self.sent)

    def again(self, agent: AgentId, hurried: bool = False) -> None:
        send_back.send_back(self.settings, agent, "7", lambda _: None, hurried=hurried)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("out_of_time", [0, 1])
def test_the_last_agent_to_end_does_it_once_whichever_ran_out_of_time(job: Job, first: int, out_of_time: int) -> None:
    assert job.ends(first, timed_out=first == out_of_time) == 0, "the other one still works"
    assert job.ends(1 - first, timed_out=first != out_of_time) == 1
    job.again(AgentId("0-0", 0, first))
    assert job.sent == ["7"], "two that end at the same moment both see that all have ended"
    job.ends(0, restart=1, timed_out=True)
    assert job.ends(1, restart=1, timed_out=True) == 1, "max_num_timeout=1"


def test_one_whose_job_has_to_end_does_not_wait_for_a_dead_one(job: Job) -> None:
    assert job.ends(0, hurried=True, timed_out=True) == 1


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"timed_out": True, "state": "CANCELLED"},
        {"timed_out": True, "state": "PREEMPTED"},
        {"timed_out": True, "drained": True},
    ],
)
def test_a_job_that_is_done_or_not_wanted_or_left_to_slurm_is_not_sent_back(job: Job, how: dict[str, Any]) -> None:
    job.ends(0, timed_out=bool(how))
    assert job.ends(1, hurried=True, **how) == 0
