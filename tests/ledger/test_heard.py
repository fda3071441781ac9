"""Agents whose host's clock is not the reader's: none is called silent that reports, and none alive that does not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from journals_builder import SweepBuilder

from clusterduck.cli.main import main
from clusterduck.ledger import heard, queries, times
from clusterduck.ledger.replica import Replica


def living(project: Path, off_s: float, silent_s: float) -> SweepBuilder:
    """A sweep whose agent's clock is off by so much, and of which nothing was heard for so long."""
    now = time.time()
    sweep = SweepBuilder(project, start=now - 1000)
    sweep.write(sweep.launch_journal(), sweep.launch(4))
    at = now - silent_s + off_s
    path = sweep.write(
        sweep.agent_journal(),
        [sweep.agent_started(at - 100, "node1"), sweep.started(at - 90, 0), sweep.beat(at, 1)],
        close=False,
    )
    os.utime(path, (now - silent_s, now - silent_s))  # as the file server has it
    return sweep


@pytest.mark.parametrize("off_s", [-7200.0, -300.0, 0.0, 300.0, 7200.0])
@pytest.mark.parametrize("silent_s", [3.0, 600.0])
def test_how_long_an_agent_was_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], off_s: float, silent_s: float
) -> None:
    monkeypatch.setattr("clusterduck.cli.looking.look_at_jobs", lambda *_: pytest.fail("nobody has to ask Slurm"))
    monkeypatch.setattr("clusterduck.cli.looking.is_anything_open", lambda _: False)
    sweep = living(tmp_path / "project", off_s, silent_s)
    with Replica.open(sweep.ledger) as replica:
        replica.catch_up()
        (agent,) = heard.corrected(replica.connection, queries.agents(replica.connection, alive=True))
        assert agent.heartbeat_at is not None
        assert time.time() - times.to_seconds(agent.heartbeat_at) == pytest.approx(silent_s, abs=20.0)
    main(["nodes", "--ledger", str(sweep.ledger)])
    said = capsys.readouterr().out
    assert ("not heard of" in said) == (silent_s > 90), said
