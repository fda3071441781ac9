"""Whole sweeps on a sick node: its clock jumps, its locks do not work, its own disk cannot be written, and a run hangs
over its last write."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_fs import FaultyFileSystem, Rule
from faulty_sweep import FaultySweep

from clusterduck.events import AgentStarted, AttemptEnded, Heartbeat
from clusterduck.ledger import heard, queries
from clusterduck.ledger.times import to_seconds
from clusterduck.result import read_job_return, read_report

ROOT = "out/.clusterduck/app-abcde"
RESULTS = f"{ROOT}/results/*"

#: What Python and we would make in the places for temporary files; the last of them is the working directory.
TEMPORARY = [
    f"{place}{name}" for place in ("/tmp/", "/var/tmp/", "/usr/tmp/", "") for name in ("????????", "clusterduck-*")
]


@pytest.mark.parametrize("hours", [25, -25])
def test_the_clock_jumps(sweep: FaultySweep, hours: int) -> None:
    sweep.plan("waits", "waits", "returns", "returns", "fails_once", "returns")
    sweep.start(max_retries=1, retry_on=["FAILED"], timeout_min=60)
    sweep.until_begun(0, 1)
    sweep.until_held_ready(4)
    sweep.faults.fail(Rule("clock", "/clock", 3600 * hours, how="jump"))
    sweep.go()
    assert sweep.until_over() == 1  # since an attempt failed, as it would have
    assert ("clock", "/clock") in sweep.faults.hits()
    sweep.check_runs(4)
    sweep.check_loop()
    sweep.check_ledger()
    assert sweep.replica is not None
    query = "SELECT duration_s, started_at, ended_at FROM attempt"
    for duration_s, started_at, ended_at in sweep.replica.connection.execute(query).fetchall():
        assert 0 <= duration_s < 300
        assert to_seconds(started_at) <= to_seconds(ended_at)
    (begun,) = sweep.events(AgentStarted)
    beats = [beat.time for beat in sweep.events(Heartbeat)]
    assert beats == sorted(beats) and all(0 <= beat - begun.time < 300 for beat in beats)


@pytest.mark.parametrize("hours", [25, -25])
def test_the_clock_is_not_that_of_who_looks(sweep: FaultySweep, hours: int) -> None:
    """Nobody takes the agent for dead, and its runs end as they would have."""
    sweep.plan("waits", "waits", "fails_once")
    sweep.faults.fail(Rule("clock", "/clock", 3600 * hours, how="jump"))
    sweep.start(max_retries=1, retry_on=["FAILED"], timeout_min=60)
    sweep.until_begun(0, 1)
    sweep.until(lambda: {sweep.row(run)[0] for run in (0, 1)} == {"RUNNING"}, "both begins are folded")
    assert sweep.faults.hits()
    assert sweep.replica is not None
    connection = sweep.replica.connection
    (agent,) = heard.corrected(connection, queries.agents(connection, sweep.sweep.sweep))
    assert agent.seen_at is not None and abs(time.time() - to_seconds(agent.seen_at)) < 60
    assert abs(time.time() + 3600 * hours - to_seconds(agent.started_at)) < 300
    looked = status(sweep, is_well=True)
    assert looked.returncode == 0 and "RUNNING" in looked.stdout.upper(), looked.stdout + looked.stderr
    sweep.go()
    assert sweep.until_over() == 1  # since an attempt failed, as it would have
    sweep.check_runs(2)
    sweep.check_loop()
    sweep.check_ledger()
    query = "SELECT duration_s, started_at, ended_at FROM attempt"
    for duration_s, started_at, ended_at in connection.execute(query).fetchall():
        assert 0 <= duration_s < 300
        assert to_seconds(started_at) <= to_seconds(ended_at)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS])
def test_locks_are_refused(sweep: FaultySweep, error: int) -> None:
    """Runs need none; who folds does, on the host's own disk only, and says what to do."""
    sweep.plan("returns", "returns", "fails_once")
    sweep.faults.fail(Rule("flock,fcntl", "/*", error))
    sweep.start(publish_interval_s=0.5, max_retries=1, retry_on=["FAILED"])
    assert sweep.until_over() == 1
    sweep.check_runs(2)
    looked = status(sweep)
    assert looked.returncode == 1
    assert "let TMPDIR name a folder on a local disk" in looked.stderr and "Traceback" not in looked.stderr
    assert sweep.faults.hits()
    assert [path for _, path in sweep.faults.hits() if path.startswith(str(sweep.folder))] == []
    sweep.faults.mend()
    assert status(sweep).returncode == 0
    sweep.check_ledger()


def test_locks_mean_nothing(sweep: FaultySweep) -> None:
    sweep.plan("returns", "returns", "fails_once", "returns")
    sweep.faults.fail(Rule("flock,fcntl", "/*", how="lie"))
    sweep.start(publish_interval_s=0.2, max_retries=1, retry_on=["FAILED"])
    assert sweep.until_over() == 1
    assert sweep.faults.hits()
    sweep.check_runs(2)
    assert status(sweep).returncode == 0
    sweep.check_ledger()


def test_there_is_no_temporary_folder_but_memory(sweep: FaultySweep) -> None:
    missing = sweep.folder / "missing"
    sweep.environ = {"TMPDIR": str(missing)}
    sweep.plan("returns", "fails_once")
    places = [str(missing), *TEMPORARY]
    sweep.faults.fail(*(Rule("create,mkdir", place, errno.ENOSPC, who="agent") for place in places))
    sweep.start(max_retries=1, retry_on=["FAILED"])
    assert sweep.until_over() == 1
    assert "/dev/shm/clusterduck-" in (log := sweep.job_log.read_text()), log
    assert list(Path("/dev/shm").glob("clusterduck-*")) == []
    sweep.check_runs(1)
    sweep.faults.mend()
    sweep.check_ledger()


def test_there_is_no_temporary_folder_at_all(sweep: FaultySweep) -> None:
    sweep.environ = {"TMPDIR": str(sweep.folder / "missing")}
    sweep.plan("returns")
    sweep.faults.fail(*(Rule("create,mkdir", place, errno.EROFS, who="agent") for place in (*TEMPORARY, "/dev/shm/*")))
    sweep.start()
    assert sweep.until_over() == 1
    log = sweep.job_log.read_text()
    assert "temporary folder cannot be written" in log and "nothing was started" in log
    assert "Traceback" not in log
    assert not sweep.has_begun(0)


def test_the_node_s_own_disk_fills_up_and_the_shared_one_too(sweep: FaultySweep, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    sweep.environ = {"TMPDIR": str(own)}
    sweep.plan("waits", "waits", "returns", "returns")
    sweep.start()
    sweep.until_begun(0, 1)
    sweep.until_held_ready(4)
    sweep.faults.fail(
        Rule("create,write", f"{own}/*", errno.ENOSPC),
        Rule("create,write,fsync", f"{ROOT}/batches/*", errno.ENOSPC),
    )
    sweep.go()
    sweep.until_begun(2, 3)
    sweep.until(lambda: "for the node's own disk cannot be written either" in sweep.job_log.read_text(), "it says so")
    sweep.faults.mend()
    assert sweep.until_over() == 0
    sweep.check_runs()
    sweep.check_loop()
    sweep.check_ledger()


def test_a_run_that_hangs_over_its_result_lets_its_slot_go(sweep: FaultySweep) -> None:
    sweep.plan("waits", "waits", "returns", "returns")
    sweep.start()
    sweep.until_begun(0, 1)
    sweep.until_held_ready(4)
    sweep.faults.fail(Rule("create,write,fsync,rename", RESULTS, how="stall", who="run"))
    sweep.go()
    sweep.until_begun(2, 3)  # in the same slots, while the file system still hangs
    for run in (0, 1):
        words = f"the result of run {run}.1 is kept on the node's own disk for now: the file system took nothing of it"
        sweep.until(lambda words=words: words in sweep.job_log.read_text(), "it says so")  # type: ignore[misc]
    sweep.until(lambda: {(0, 1), (1, 1)} <= set(sweep.states()), "what the runs returned is put in place")
    sweep.faults.mend()
    assert sweep.until_over() == 0
    sweep.check_runs()
    sweep.check_loop()
    sweep.check_ledger()
    for run in range(4):
        assert read_job_return(sweep.sweep.results / f"{run}.1.pkl").return_value == run
    (ends, left) = (sweep.events(AttemptEnded), os.listdir(sweep.sweep.results))
    assert [end.reason for end in ends] == [""] * 4
    assert sorted(name for name in left if not name.startswith(".")) == [f"{run}.1.pkl" for run in range(4)]


WRITES = """
import pickle, sys, time
from pathlib import Path
from clusterduck.result import write_or_keep

def dump(file):
    time.sleep(float(sys.argv[3]))
    pickle.dump("x" * 1_000_000, file)

folder = Path(sys.argv[1])
why = write_or_keep(folder / "0.1.pkl", folder / "kept", dump, {}, refused_s=0.0, stalled_s=float(sys.argv[2]))
print(why)
"""


@pytest.mark.parametrize("call", ["create", "write", "fsync", "rename"])
def test_a_result_that_hangs_is_kept(tmp_path: Path, faulty_library: Path, call: str) -> None:
    faults = FaultyFileSystem(faulty_library, tmp_path, tmp_path / "faults")
    faults.fail(Rule(call, "*0.1.pkl*", how="stall"))
    said = result_written(tmp_path, faults, stalled_s=0.3, pickling_s=0.0)
    assert said == "the file system took nothing of it for 0 s"
    assert read_report(tmp_path / "kept") == {}


def test_a_result_that_takes_long_to_pickle_is_waited_for(tmp_path: Path, faulty_library: Path) -> None:
    faults = FaultyFileSystem(faulty_library, tmp_path, tmp_path / "faults")
    assert result_written(tmp_path, faults, stalled_s=2.0, pickling_s=3.0) == "None"
    assert not (tmp_path / "kept").exists()
    assert len(pickle.loads((tmp_path / "0.1.pkl").read_bytes())) == 1_000_000


def result_written(folder: Path, faults: FaultyFileSystem, stalled_s: float, pickling_s: float) -> str:
    """What a process says that writes a result."""
    done = subprocess.run(
        [sys.executable, "-c", WRITES, str(folder), str(stalled_s), str(pickling_s)],
        env={**os.environ, **faults.environ},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return done.stdout.strip()


def status(sweep: FaultySweep, *, is_well: bool = False) -> subprocess.CompletedProcess[str]:
    """What somebody sees who looks from this node, or from one that is well."""
    return subprocess.run(
        [sys.executable, "-m", "clusterduck.cli.main", "status", "--ledger", str(sweep.ledger)],
        env={**os.environ, **({} if is_well else sweep.faults.environ)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
