"""Whole sweeps while the shared file system fails: runs go on, and nothing that was to be written is lost."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest
from faulty_fs import Rule
from faulty_sweep import FaultySweep

from clusterduck.events import AgentEnded
from clusterduck.inbox import Request, post
from clusterduck.model import AgentId
from clusterduck.result import read_job_return

#: Where things lie below the folder of the test.
ROOT = "out/.clusterduck/app-abcde"
JOURNAL = f"{ROOT}/batches/*/journal-*.jsonl"

CHANGES = "create,write,fsync,rename,link,symlink,mkdir"
LOOKS = "open,opendir,stat,readlink"


@dataclass(frozen=True)
class Fault:
    """What fails from the moment that two runs are in the slots and two more held ready, until those two have begun.

    Attributes:
        hits: calls that have to have failed before the fault ends.
        says: what the job's log has to say.
    """

    rules: tuple[Rule, ...]
    hits: tuple[str, ...]
    says: tuple[str, ...] = ()


def each(calls: str, error: int, how: str) -> list[Rule]:
    """Each of these calls fails once in each process."""
    return [Rule(call, f"{ROOT}/*", error, how, often=1) for call in calls.split(",")]


KEPT = ("runs go on, reports are kept", "the journal can be written again; nothing was lost")

FAULTS = {
    "the file system is full": Fault(
        (Rule(CHANGES, f"{ROOT}/*", errno.ENOSPC, who="agent"), Rule("write", "job.log", errno.ENOSPC, who="agent")),
        ("write", "symlink"),
        KEPT,
    ),
    "the quota is used up": Fault(
        (Rule("create,write", f"{ROOT}/*", errno.EDQUOT), Rule("write", "job.log", errno.EDQUOT)), ("write",)
    ),
    "a ticket has expired": Fault(
        (Rule(f"{CHANGES},{LOOKS}", f"{ROOT}/*", errno.EACCES, who="agent"),), ("write",), KEPT
    ),
    "writing fails": Fault((Rule("write", JOURNAL, errno.EIO),), ("write",), KEPT),
    "fsync fails": Fault((Rule("fsync", JOURNAL, errno.EIO),), ("fsync",), KEPT),
    "the journal's handle is stale for good": Fault(
        (Rule("write,fsync", JOURNAL, errno.ESTALE, how="stale"),), ("write",), KEPT
    ),
    "every handle is stale": Fault((Rule(f"{CHANGES},{LOOKS}", f"{ROOT}/*", errno.ESTALE),), ("write",)),
    "signals interrupt": Fault(
        tuple(each(f"{CHANGES},{LOOKS}", errno.EINTR, "fail")), ("symlink", "write", "fsync", "rename")
    ),
    "writes are cut short": Fault((Rule("write", f"{ROOT}/*", how="short"),), ("write",)),
    "writing stalls": Fault(
        (Rule("write,fsync", JOURNAL, how="stall"), Rule("write", "job.log", how="stall", who="agent")), ("write",)
    ),
    "everything stalls": Fault(
        (
            Rule(f"{CHANGES},{LOOKS},unlink,close", f"{ROOT}/*", how="stall", who="agent"),
            Rule("write", "job.log", how="stall", who="agent"),
        ),
        ("write",),
    ),
    "answers are lost": Fault(tuple(each(CHANGES, errno.EIO, "lost")), ("symlink", "write", "rename")),
    "renaming fails": Fault((Rule("rename,link", f"{ROOT}/*", errno.EIO, often=2),), ("rename",)),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_runs_go_on_and_all_is_written_in_the_end(sweep: FaultySweep, fault: Fault) -> None:
    sweep.plan("waits", "waits", "returns", "returns", "fails_once", "returns")
    sweep.start(max_retries=1, retry_on=["FAILED"])
    sweep.until_begun(0, 1)
    sweep.until_held_ready(4)
    sweep.faults.fail(*fault.rules)
    sweep.go()
    sweep.until_begun(2, 3)  # the next ones in both slots, whatever the file system does
    sweep.until_hit(*fault.hits)
    sweep.faults.mend()
    assert sweep.until_over() == 1  # since an attempt failed, as it would have
    sweep.check_runs(4)
    for words in fault.says:
        assert words in sweep.job_log.read_text()
    sweep.check_loop()
    sweep.check_ledger()
    assert [sweep.row(run) for run in range(6)] == [("COMPLETED", None, str(run)) for run in range(6)]


def test_reports_that_never_could_be_written_are_in_the_jobs_log(sweep: FaultySweep) -> None:
    sweep.plan("waits", "waits", "returns", "returns")
    sweep.start()
    sweep.until_begun(0, 1)
    sweep.until_held_ready(4)
    sweep.faults.fail(Rule("create,write", JOURNAL, errno.EDQUOT))
    sweep.go()
    assert sweep.until_over() == 1
    log = sweep.job_log.read_text()
    assert "reports on runs 0, 1, 2, 3 could not be written" in log
    for run in range(4):
        assert f'"run":{run},"attempt":1,"state":"COMPLETED"' in log
        assert read_job_return(sweep.sweep.results / f"{run}.1.pkl").return_value == run
    assert sweep.states() == {}
    sweep.check_loop()
    sweep.faults.mend()
    sweep.check_ledger()


def test_results_that_never_could_be_written_are_named(sweep: FaultySweep) -> None:
    sweep.plan("returns", "returns", "returns")
    sweep.faults.fail(Rule("create", f"{ROOT}/results/*", errno.ENOSPC))
    sweep.start()
    assert sweep.until_over() == 1
    log = sweep.job_log.read_text()
    for run in range(3):
        assert f"run {run}.1: its result could not be written" in log
        sweep.until(lambda run=run: sweep.row(run)[0] == "COMPLETED", "the end is folded")  # type: ignore[misc]
        assert "its result could not be written" in sweep.row(run)[1]
    (end,) = sweep.events(AgentEnded)
    assert end.exit_code == 1
    sweep.check_runs()
    sweep.check_loop()
    sweep.check_ledger()


def test_a_refused_claim_holds_up_neither_reports_nor_requests_nor_the_jobs_end(sweep: FaultySweep) -> None:
    sweep.plan("waits", "waits", "returns", "returns", "returns", "returns")
    sweep.start()
    sweep.until_begun(0, 1)
    sweep.until_held_ready(4)
    sweep.faults.fail(
        Rule("symlink", f"{ROOT}/claims/*", errno.EIO),
        Rule("opendir", f"{ROOT}/batches/0-0", errno.EIO),  # what is done after requests were taken
    )
    sweep.go()
    sweep.until(lambda: len(sweep.states()) == 4, "the runs that were held ready are reported")
    post(sweep.sweep.agent(AgentId("0-0", 0, 0)) / "inbox", Request(kind="drain", by="me@host"))
    sweep.until(lambda: "me@host asks to drain" in sweep.job_log.read_text(), "the request is taken")
    assert sweep.agent is not None
    sweep.agent.terminate()
    assert sweep.until_over() == 0
    assert sorted(path.name for path in sweep.sweep.claims.iterdir()) == ["0.1", "1.1", "2.1", "3.1"]
    assert len(sweep.events(AgentEnded)) == 1
    sweep.check_loop()
    sweep.check_ledger()
