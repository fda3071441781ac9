"""An agent that stood still while its job was started again elsewhere: it notices as soon as it goes on, and ends."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from pathlib import Path

import psutil
from agent_bench import Bench, until

from clusterduck.agent.fence import Pulse
from clusterduck.cli.main import main
from clusterduck.events import AgentEnded, AttemptEnded, AttemptStarted


def _send(number: signal.Signals, root: psutil.Process) -> None:
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # an agent that goes on ends what is below it
            process.send_signal(number)


def _told(ledger: Path) -> list[list[tuple[object, ...]]]:
    with sqlite3.connect(ledger) as connection:
        tables = [
            connection.execute("SELECT number, state, attempt, reason FROM run ORDER BY 1").fetchall(),
            connection.execute("SELECT run, number, state, restart, reason FROM attempt ORDER BY 1, 2").fetchall(),
            connection.execute("SELECT restart, state, reason FROM agent ORDER BY 1").fetchall(),
            connection.execute("SELECT id, state, reason FROM batch ORDER BY 1").fetchall(),
        ]
    connection.close()
    return tables


def test_an_agent_that_wakes_after_its_job_was_started_again_disturbs_nothing(bench: Bench) -> None:
    bench.plan("stubborn", "returns", "returns")
    old = bench.start(slots=1)
    bench.running(0)
    until((bench.folder / "deaf-0").exists, "run 0 is deaf to SIGTERM")
    until((bench.sweep.claims / "1.1").is_symlink, "run 1 is claimed ahead of time")
    process = psutil.Process(old.pid)
    _send(signal.SIGSTOP, process)
    asleep = Pulse()
    new = bench.start(slots=1)
    until(lambda: "begun 2" in (bench.folder / "done-0").read_text(), "run 0 is executed again")
    ledger = bench.folder / "ledger.db"
    assert main(["rebuild", "--ledger", str(ledger), str(bench.folder)]) == 0  # folded while it counts as lost
    until(asleep.lapsed, "the old agent has been asleep for long")
    family = process.children(recursive=True)
    _send(signal.SIGCONT, process)
    assert bench.wait(old) == 1
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family)
    ends = {(end.run, end.attempt): end.state for end in bench.events(AttemptEnded)}
    assert ends[0, 1] == "PREEMPTED"
    assert (0, 2) not in ends, "the new one's goes on"
    bench.go()
    assert bench.wait(new) == 0

    assert (bench.folder / "done-0").read_text() == "begun 1\nbegun 2\n"
    assert (bench.folder / "done-1").read_text() == "begun 2\n"
    assert (bench.folder / "done-2").read_text() == "begun 1\n"
    assert len(bench.events(AttemptStarted)) == 4
    completed = {(end.run, end.attempt) for end in bench.events(AttemptEnded) if end.state == "COMPLETED"}
    assert completed == {(0, 2), (1, 2), (2, 1)}
    assert sorted(end.exit_code for end in bench.events(AgentEnded)) == [0, 1]
    assert not bench.log().count("Traceback")

    assert main(["status", "--ledger", str(ledger)]) == 0
    told = _told(ledger)
    assert [row[1] for row in told[0]] == ["COMPLETED"] * 3
    assert told[3] == [("0-0", "COMPLETED", None)]
    assert main(["rebuild", "--ledger", str(ledger), str(bench.folder)]) == 0
    assert _told(ledger) == told
