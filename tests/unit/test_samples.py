from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fake_nvml import FakeNvml, fake_nvml, no_nvml  # noqa: F401 - fixtures

from clusterduck import events
from clusterduck.agent import samples
from clusterduck.agent.load import LoadWatch
from clusterduck.agent.samples import NODE, Row, Sampler
from clusterduck.model import Slot

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class FakeProc:
    """A made-up /proc, and a clock in seconds since boot that stands still until it is moved."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.now_s = 1000.0
        monkeypatch.setattr(samples.time, "clock_gettime", lambda _clock: self.now_s)
        (root / "self").mkdir()
        (root / "uptime").write_text("1 1\n")

    def put(
        self,
        pid: int,
        parent: int,
        session: int,
        cpu_s: float = 0.0,
        *,
        group: int | None = None,
        ended_s: float = 0.0,
        mib: int = 1,
        started_s: float = 990.0,
        name: str = "python",
    ) -> None:
        before = ["S", parent, group or session, session, 0, -1, 0, 0, 0, 0, 0]
        times = [int(cpu_s * TICKS), 0, int(ended_s * TICKS), 0, 20, 0, 1, 0, int(started_s * TICKS)]
        fields = [*before, *times, 12345678, (mib << 20) // PAGE, 18446744073709551615, 0]
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        (folder / "stat").write_bytes(f"{pid} ({name}) {' '.join(map(str, fields))}\n".encode())

    def end(self, pid: int) -> None:
        (self.root / str(pid) / "stat").unlink()


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProc:
    return FakeProc(tmp_path, monkeypatch)


def by_slot(rows: list[Row]) -> dict[int, Row]:
    assert len({row[0] for row in rows}) == len(rows)
    assert all(len(row) == 5 for row in rows)
    return {int(row[0] or 0): row for row in rows}


def test_processes_are_added_up_by_session_group_and_descent(proc: FakeProc) -> None:
    proc.put(1, 0, 1)
    proc.put(50, 1, 50, 9.0, mib=500)  # the agent
    proc.put(100, 50, 100, 1.0, mib=10)  # slot 0's run,
    proc.put(101, 100, 100, 2.0, mib=20)  # its child,
    proc.put(102, 101, 102, 3.0, mib=30)  # one with a session of its own,
    proc.put(103, 102, 102, 4.0, mib=40)  # and that one's child;
    proc.put(104, 50, 100, 1.0, mib=50)  # and an orphan that came to the agent
    proc.put(200, 50, 200, 5.0, mib=7)
    rows = by_slot(Sampler([Slot(0), Slot(1)], proc.root).sample({0: 100, 1: 200}))
    assert rows[0][:3] == [0, 110.0, 150 << 20]  # 11 s of CPU time in the 10 s since the run's start
    assert rows[1][:3] == [1, 50.0, 7 << 20]
    assert set(rows) == {0, 1, NODE}


def test_a_group_within_another_session_counts(proc: FakeProc) -> None:
    proc.put(100, 50, 50, 1.0, group=100)
    assert by_slot(Sampler([Slot(0)], proc.root).sample({0: 100}))[0][1] == 10.0


def test_percent_is_of_the_time_between_samples(proc: FakeProc) -> None:
    sampler = Sampler([Slot(3)], proc.root)
    proc.put(100, 50, 100, 2.0)
    sampler.sample({3: 100})
    proc.put(100, 50, 100, 12.0)
    proc.now_s += 5
    assert by_slot(sampler.sample({3: 100}))[3][1] == 200.0
    proc.now_s += 5
    assert by_slot(sampler.sample({3: 100}))[3][1] == 0.0


def test_time_of_children_that_ended_is_counted_once(proc: FakeProc) -> None:
    sampler = Sampler([Slot(0)], proc.root)
    proc.put(100, 50, 100, 1.0)
    proc.put(101, 100, 100, 4.0)
    sampler.sample({0: 100})
    proc.end(101)
    proc.put(100, 50, 100, 1.5, ended_s=4.5)  # its parent has waited for it
    proc.now_s += 10
    assert by_slot(sampler.sample({0: 100}))[0][1] == 10.0


def test_time_never_goes_backwards(proc: FakeProc) -> None:
    sampler = Sampler([Slot(0)], proc.root)
    proc.put(100, 50, 100, 1.0)
    proc.put(101, 50, 100, 4.0)
    sampler.sample({0: 100})
    proc.end(101)  # its parent was not of the run
    proc.now_s += 10
    assert by_slot(sampler.sample({0: 100}))[0][1] == 0.0


def test_the_next_run_of_a_slot_begins_anew(proc: FakeProc) -> None:
    sampler = Sampler([Slot(0)], proc.root)
    proc.put(100, 50, 100, 5.0)
    sampler.sample({0: 100})
    proc.end(100)
    proc.now_s += 10
    proc.put(300, 50, 300, 1.0, started_s=proc.now_s - 2)
    assert by_slot(sampler.sample({0: 300}))[0][1] == 50.0
    proc.now_s += 10
    assert by_slot(sampler.sample({}))[NODE][0] == NODE  # the slot is empty, and has no row
    proc.put(400, 50, 400, 3.0, started_s=proc.now_s - 3)
    assert by_slot(sampler.sample({0: 400}))[0][1] == 100.0


def test_what_a_process_did_before_its_run_began_is_not_the_runs(proc: FakeProc) -> None:
    sampler = Sampler([Slot(0)], proc.root)
    proc.put(100, 50, 100, 0.5, started_s=proc.now_s - 90)  # prepared, and has waited since
    sampler.begins(0, 100)
    proc.put(100, 50, 100, 4.5, started_s=proc.now_s - 90)
    proc.now_s += 5
    assert by_slot(sampler.sample({0: 100}))[0][1] == 80.0
    proc.now_s += 5
    assert by_slot(sampler.sample({0: 100}))[0][1] == 0.0
    sampler.begins(0, 4242)  # gone already
    proc.put(300, 50, 300, 1.0, started_s=proc.now_s - 2)
    assert by_slot(sampler.sample({0: 300}))[0][1] == 50.0


def test_what_was_read_of_a_slots_earlier_run_is_not_told_of_the_next(proc: FakeProc) -> None:
    proc.put(100, 50, 100)
    proc.put(200, 50, 200)
    groups = {0: 100, 1: 200}
    sampler = Sampler([Slot(0), Slot(1)], proc.root)
    read = threading.Semaphore(0)
    go_on = threading.Event()
    kept: list[list[Row]] = []

    class Once(Sampler):
        def sample(self, groups: Mapping[int, int]) -> list[Row]:
            if kept:
                go_on.wait(20)
            kept.append(sampler.sample(groups))
            return kept[-1]

    def now() -> dict[int, int]:
        read.release()
        return groups

    watch = LoadWatch(Once([], proc.root), now, 0.0)
    for _ in range(2):  # the second is asked for when the first is kept
        assert read.acquire(timeout=60)
    groups = {0: 100, 1: 300}
    assert set(by_slot(watch.take())) == {0, NODE}
    assert watch.take() == []
    go_on.set()
    watch.close()


def test_a_run_whose_leader_has_ended_lives_on_in_its_children(proc: FakeProc) -> None:
    sampler = Sampler([Slot(0)], proc.root)
    proc.put(101, 50, 100, 4.0, mib=3)
    assert by_slot(sampler.sample({0: 100}))[0][:3] == [0, None, 3 << 20]
    proc.put(101, 50, 100, 9.0, mib=3)
    proc.now_s += 10
    assert by_slot(sampler.sample({0: 100}))[0][1] == 50.0


def test_a_run_that_is_gone_is_not_known(proc: FakeProc) -> None:
    assert by_slot(Sampler([Slot(0)], proc.root).sample({0: 4242}))[0] == [0, None, None, None, None]


def test_hostile_process_names_and_torn_files(proc: FakeProc) -> None:
    proc.put(100, 50, 100, 1.0, name="a) R 1 100 100 (b")
    proc.put(101, 100, 100, 1.0, name=") ) )\n)")
    (proc.root / "102").mkdir()
    (proc.root / "102/stat").write_bytes(b"102 (torn) S 100 100")
    (proc.root / "103").mkdir()
    (proc.root / "103/stat").write_bytes(b"")
    (proc.root / "104").mkdir()  # ended between listing and reading
    assert by_slot(Sampler([Slot(0)], proc.root).sample({0: 100}))[0][1] == 20.0


def test_parents_in_a_circle_end_the_search(proc: FakeProc) -> None:
    proc.put(100, 50, 100, 1.0)
    proc.put(201, 202, 7)
    proc.put(202, 201, 7)
    assert by_slot(Sampler([Slot(0)], proc.root).sample({0: 100}))[0][1] == 10.0


def test_other_users_processes_are_not_even_read(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    proc.put(100, 50, 100, 1.0)
    proc.put(101, 100, 100, 1.0)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)  # now all are another's
    opened: list[str] = []
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append(str(path)) or real_open(path, flags))
    assert by_slot(Sampler([Slot(0)], proc.root).sample({0: 100}))[0][1] == 10.0
    assert opened == [f"{proc.root}/100/stat"]  # a run's leader is read whoever it belongs to


def test_one_small_file_per_process_however_many_slots(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {slot: 1000 + slot for slot in range(128)}
    for leader in groups.values():
        proc.put(leader, 50, leader, 1.0)
        proc.put(leader + 1000, leader, leader, 1.0)
    opened: list[str] = []
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append(str(path)) or real_open(path, flags))
    rows = Sampler([Slot(slot) for slot in groups], proc.root).sample(groups)
    assert len(rows) == 129
    assert len(opened) == 256


BUSY = "import os, sys; print(os.getpid(), flush=True)\nwhile True: pass"


@contextmanager
def session(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, 9)


def test_real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        busy = stack.enter_context(session(sys.executable, "-c", BUSY))
        idle = stack.enter_context(session("sh", "-c", "sleep 60 & sleep 60 & echo up; wait"))
        for process in (busy, idle):
            assert process.stdout is not None
            process.stdout.readline()  # it is up
        sampler = Sampler([Slot(0), Slot(1)])
        groups = {0: busy.pid, 1: idle.pid}
        sampler.sample(groups)
        deadline = time.monotonic() + 60
        while True:  # until the busy one has had a tick of the CPU
            rows = by_slot(sampler.sample(groups))
            if rows[0][1] or time.monotonic() > deadline:
                break
        assert rows[0][1] is not None
        assert rows[0][1] > 1
        assert rows[1][1] is not None
        assert rows[1][1] < 1
        for slot in groups:
            memory = rows[slot][2]
            assert memory is not None
            assert 100_000 < memory < 2**30
        assert rows[NODE][1] is not None
        assert rows[NODE][1] >= 0
        assert rows[NODE][2] is not None
        assert rows[NODE][2] > 2**20
        beat = events.Heartbeat(busy=2, samples=sampler.sample(groups))
        assert events.from_json(events.to_json(beat)) == beat
        sampler.close()


# --- GPUs, with the real binding on a fake library

SAMPLE = """
import json
from clusterduck.agent.samples import Sampler
from clusterduck.model import Slot
slots = [Slot(index, gpus=tuple(gpus)) for index, gpus in enumerate({gpus!r})]
sampler = Sampler(slots)
groups = {{slot.index: 999999999 for slot in slots}}
for _ in range(3):
    rows = sampler.sample(groups)
sampler.close()
assert [row[3:] for row in sampler.sample(groups)] == [[None, None]] * (len(slots) + 1)
print(json.dumps([row[3:] for row in rows]))
"""

GIB = 1 << 30


def sample_with(fake: FakeNvml, gpus: list[list[str]], **settings: object) -> object:
    return fake.run(SAMPLE.format(gpus=gpus), **settings)


def test_gpus_by_number_and_uuid(fake_nvml: FakeNvml) -> None:  # noqa: F811
    got = sample_with(fake_nvml, [["0"], ["GPU-fake1-0000", "2"], ["GPU-fake3"], ["0", "GPU-fake0-0000"]], GPUS=4)
    assert got == [[10.0, GIB], [25.0, 5 * GIB], [40.0, 4 * GIB], [10.0, GIB], [25.0, 10 * GIB]]


def test_a_mig_device_has_memory_but_no_load(fake_nvml: FakeNvml) -> None:  # noqa: F811
    got = sample_with(fake_nvml, [["MIG-fake1-part0"], ["0"]], GPUS=2, MIG=1)
    assert got == [[None, 2 * GIB], [10.0, GIB], [10.0, 3 * GIB]]


def test_a_lost_gpu_is_not_asked_again_and_spoils_no_other(fake_nvml: FakeNvml, tmp_path: Path) -> None:  # noqa: F811
    calls = tmp_path / "calls"
    got = sample_with(fake_nvml, [["0"], ["1"]], GPUS=2, LOST=1, CALLS=calls)
    assert got == [[10.0, GIB], [None, None], [10.0, GIB]]
    asked = calls.read_text().splitlines()
    assert [asked.count(line) for line in ("load 0", "memory 0", "load 1", "memory 1")] == [3, 3, 1, 1]


def test_shared_gpus_are_asked_once_per_sample(fake_nvml: FakeNvml, tmp_path: Path) -> None:  # noqa: F811
    calls = tmp_path / "calls"
    sample_with(fake_nvml, [["0"]] * 8, GPUS=1, CALLS=calls)
    assert calls.read_text().splitlines().count("load 0") == 3


@pytest.mark.parametrize("settings", [{"INIT": 9, "GPUS": 1}, {"GPUS": 0}])
def test_nvml_that_fails_is_no_error(fake_nvml: FakeNvml, settings: dict[str, int]) -> None:  # noqa: F811
    assert sample_with(fake_nvml, [["0"], ["GPU-x"]], **settings) == [[None, None]] * 3


def test_without_gpus_nvml_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples.Nvml, "open", lambda *_: pytest.fail("NVML was started"))
    Sampler([Slot(0)]).close()


def test_without_nvml_it_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(samples.Nvml, "open", lambda *_: asked.append(1))
    sampler = Sampler([Slot(0, gpus=("0",))])
    for _ in range(3):
        assert sampler.sample({0: 1})[0][3:] == [None, None]
    assert asked == [1]
