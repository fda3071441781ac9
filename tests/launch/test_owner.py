"""A sweep folder belongs to one live sweep at a time, whatever happens at once and whoever died before."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterduck import events
from clusterduck.errors import ConfigError, UnsafePathError
from clusterduck.journal import encode
from clusterduck.launch import owner
from clusterduck.launch.processes import began
from clusterduck.model import AgentId
from clusterduck.paths import SweepPaths

HERE = socket.gethostname()


def link(folder: Path, number: int, sweep: str, host: str, pid: int, at: float) -> None:
    (folder / ".clusterduck").mkdir(mode=0o700, exist_ok=True)
    os.symlink(f"{sweep}/{host}/{pid}/{at}/00", folder / ".clusterduck" / f"owner.{number}")


def gone() -> int:
    """The id of a process that is over."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def other() -> Any:
    """A process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate(b"\n")


def began_sweep(folder: Path, *launch: events.Event, agent: tuple[events.Event, ...] = ()) -> SweepPaths:
    """A sweep ``dead-aaaaa`` whose launcher is gone, with what its launch and its agent (if any) have written."""
    link(folder, 0, "dead-aaaaa", HERE, gone(), 1.0)
    paths = SweepPaths.of(folder, "dead-aaaaa")
    paths.create()
    planned = events.BatchPlanned(batch="0-0", launch=0, first=0, stop=1, nodes=1, slots_per_node=1, share_runs=False)
    for place, written in ((paths.launch(0), (planned, *launch)), (paths.agent(AgentId("0-0", 0, 0)), agent)):
        if written:
            place.mkdir(parents=True)
            (place / "journal-0.jsonl").write_bytes(b"".join(map(encode, written)))
    return paths


def submitted(cluster: str, job: int, host: str = HERE, **more: Any) -> events.BatchSubmitted:
    return events.BatchSubmitted(batch="0-0", cluster=cluster, job_id=str(job), host=host, log_dir="", **more)


STARTED = events.AgentStarted(host="elsewhere", pid=1, cluster="local", job_id="1", slots=[])
ENDED = events.AgentEnded(reason="", exit_code=0)


def test_the_first_takes_the_folder_and_the_next_is_refused(tmp_path: Path, other: Any) -> None:
    assert began(other.pid) is not None
    link(tmp_path, 3, "first-aaaaa", HERE, other.pid, began(other.pid) or 0)
    with pytest.raises(
        ConfigError, match=r"first-aaaaa uses the folder .*process \d+, is running.*Set hydra.sweep.dir"
    ):
        owner.take(tmp_path, "second-bbbbb")
    assert owner.current(tmp_path) is not None and owner.current(tmp_path).sweep == "first-aaaaa"  # type: ignore[union-attr]


def test_another_process_with_the_same_id_is_another(tmp_path: Path, other: Any) -> None:
    link(tmp_path, 0, "first-aaaaa", HERE, other.pid, 12345.0)
    owner.take(tmp_path, "second-bbbbb")
    found = owner.current(tmp_path)
    assert found is not None and (found.number, found.sweep, found.pid) == (1, "second-bbbbb", os.getpid())


def test_of_many_at_once_one_goes_on(tmp_path: Path) -> None:
    """All of them find the last owner gone."""
    link(tmp_path, 0, "gone-aaaaa", HERE, gone(), 1.0)
    code = (
        "import sys\nfrom pathlib import Path\nfrom clusterduck.errors import ConfigError\n"
        "from clusterduck.launch import owner\n"
        "print('ready', flush=True); input()\n"
        "try:\n    owner.take(Path(sys.argv[1]), sys.argv[2]); print('mine', flush=True)\n"
        "except ConfigError as error:\n    print(error, flush=True)\n"
        "input()\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), f"racer-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = [racer.stdout.readline() for racer in racers if racer.stdout is not None]
    for racer in racers:
        racer.communicate("\n")
    winners = [number for number, line in enumerate(said) if line == "mine\n"]
    assert len(winners) == 1
    assert all(f"racer-{winners[0]} uses the folder {tmp_path}" in line for line in said if line != "mine\n")


def test_a_sweep_that_never_began_is_over_with_its_launcher(tmp_path: Path) -> None:
    link(tmp_path, 0, "dead-aaaaa", HERE, gone(), 1.0)
    owner.take(tmp_path, "next-bbbbb")


def test_a_sweep_that_is_being_launched_elsewhere_is_live(tmp_path: Path) -> None:
    link(tmp_path, 0, "far-aaaaa", "elsewhere", 1, 1.0)
    with pytest.raises(ConfigError, match=r"far-aaaaa .* being launched on elsewhere, as process 1"):
        owner.take(tmp_path, "next-bbbbb")
    os.utime(tmp_path / ".clusterduck" / "owner.0", (1, 1), follow_symlinks=False)
    owner.take(tmp_path, "next-bbbbb")


def test_the_folder_of_a_finished_sweep_may_be_used_again(tmp_path: Path) -> None:
    began_sweep(tmp_path, submitted("local", gone()), agent=(STARTED, ENDED))
    owner.take(tmp_path, "next-bbbbb")


def test_a_refused_batch_is_over(tmp_path: Path) -> None:
    began_sweep(tmp_path, events.BatchClosed(batch="0-0", state="FAILED", reason="refused"))
    owner.take(tmp_path, "next-bbbbb")


def test_a_local_job_is_live_as_long_as_its_process(tmp_path: Path, other: Any) -> None:
    began_sweep(tmp_path, submitted("local", other.pid), agent=(STARTED,))
    with pytest.raises(ConfigError, match=f"batch 0-0 is running here, as process {other.pid}"):
        owner.take(tmp_path, "next-bbbbb")


def test_a_local_job_whose_process_is_gone_is_over(tmp_path: Path) -> None:
    began_sweep(tmp_path, submitted("local", gone()), agent=(STARTED,))
    owner.take(tmp_path, "next-bbbbb")


@pytest.mark.parametrize("heard", ["from its agent", "from its launch", "long ago"])
def test_a_local_job_of_another_host_is_judged_by_its_last_sign_of_life(tmp_path: Path, heard: str) -> None:
    now, then = time.time() - 10, time.time() - 1000
    began_sweep(
        tmp_path,
        submitted("local", 1, "elsewhere", time=now if heard == "from its launch" else then),
        agent=(events.Heartbeat(busy=1, time=now if heard == "from its agent" else then),),
    )
    if heard == "long ago":
        owner.take(tmp_path, "next-bbbbb")
    else:
        with pytest.raises(ConfigError, match="was alive on elsewhere a moment ago"):
            owner.take(tmp_path, "next-bbbbb")


@pytest.mark.parametrize(
    ("squeue", "sacct", "message"),
    [
        ("echo '7|PENDING|100|N/A|1:00|1|Priority'\n", "exit 1\n", "is PENDING in Slurm, as job 7"),
        ("exit 1\n", "exit 1\n", "may still run as job 7, and Slurm cannot be asked now"),
        ("echo '7|COMPLETED|100|1|1:00|1|None'\n", "exit 1\n", None),
        ("exit 0\n", "exit 1\n", None),
    ],
)
def test_a_slurm_job_is_live_if_slurm_says_so(
    tmp_path: Path, fake_slurm: Callable[..., Path], squeue: str, sacct: str, message: str | None
) -> None:
    fake_slurm(squeue=squeue, sacct=sacct)
    began_sweep(tmp_path, submitted("slurm", 7, time=100.0))
    if message is None:
        owner.take(tmp_path, "next-bbbbb")
    else:
        with pytest.raises(ConfigError, match=message):
            owner.take(tmp_path, "next-bbbbb")


def test_a_second_sweep_of_the_same_process_may_follow(tmp_path: Path) -> None:
    owner.take(tmp_path, "one-aaaaa")
    owner.take(tmp_path, "two-bbbbb")
    found = owner.current(tmp_path)
    assert found is not None and (found.number, found.sweep) == (1, "two-bbbbb")


def test_a_folder_that_was_never_used_is_given_back(tmp_path: Path) -> None:
    owner.take(tmp_path / "out", "one-aaaaa").give_back()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_link_that_nobody_can_read_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / ".clusterduck").mkdir(mode=0o700)
    os.symlink("whatever", tmp_path / ".clusterduck" / "owner.0")
    owner.take(tmp_path, "one-aaaaa")


def test_a_folder_that_others_could_write_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / ".clusterduck").mkdir()
    (tmp_path / ".clusterduck").chmod(0o777)
    with pytest.raises(UnsafePathError, match="written by other users"):
        owner.take(tmp_path, "one-aaaaa")
