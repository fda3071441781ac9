"""The doctor: what is sound is said to be, what is broken is found, a hang is survived, and nothing stays behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from journals_builder import SweepBuilder

from clusterduck.cli.main import main
from clusterduck.doctor import between, cluster, files, host, ledgers, mounts, pair
from clusterduck.doctor.finding import Check, Finding, Level, carry_out
from clusterduck.doctor.mounts import Mount
from clusterduck.errors import SlurmError
from clusterduck.slurm import probe

CHECKS = {
    *("mount", "exclusive", "append", "listing", "rename", "fsync", "clock", "space", "inodes", "quota", "temporary"),
    *("packages", "nvml", "slurm", "ledger"),
}


def wait_until(fact: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def listing(folder: Path) -> list[str]:
    found = [Path(parent) / name for parent, folders, files in os.walk(folder) for name in folders + files]
    return sorted(str(path.relative_to(folder)) for path in found)  # os.walk minds no folder that vanishes


def by_level(findings: list[Finding]) -> dict[str, list[str]]:
    return {
        level.value: [f"{one.found} {one.advice}" for one in findings if one.level is level]
        for level in Level
        if any(one.level is level for one in findings)
    }


@pytest.fixture
def no_slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of the PATH, and holds none of Slurm's commands yet."""
    folder = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", f"{folder}")
    return folder


# --- the whole


def test_a_sound_folder_is_said_to_be(
    tmp_path: Path, no_slurm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "data").mkdir()
    before = listing(tmp_path)
    code = main(["doctor", str(tmp_path / "data"), "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row for row in rows if row["level"] == "bad"] == [] and code == 0
    assert {row["check"] for row in rows} == CHECKS
    assert all(set(row) == {"check", "tested", "found", "level", "advice"} for row in rows)
    assert "160 races, one winner each" in next(row["found"] for row in rows if row["check"] == "exclusive")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_behind_an_interrupt(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "mine").write_text("stays")
    command = [sys.executable, "-m", "clusterduck.cli.main", "doctor", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: list(tmp_path.glob(".clusterduck-doctor-*/here/race-*")), "the races to begin")
        process.send_signal(how)
        _, errors = process.communicate(timeout=180)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    assert "Traceback" not in errors
    wait_until(lambda: listing(tmp_path) == ["mine"], "the folder to be clean again")


def test_a_folder_that_cannot_be_written_is_said_and_the_rest_is_tested(
    no_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "/proc", "--json"]) == 1
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["write"]["level"] == "bad" and "packages" in rows and "exclusive" not in rows
    assert main(["doctor", "/nowhere/at/all"]) == 3


def test_a_check_that_hangs_is_left_behind() -> None:
    over, ended = threading.Event(), threading.Event()

    def hangs() -> list[Finding]:
        over.wait()
        ended.set()
        return []

    (finding,) = carry_out(Check("fsync", "appending", hangs), 0.2)
    assert not ended.is_set()
    assert (finding.check, finding.level, finding.found) == ("fsync", Level.BAD, "no answer within 0 s")
    over.set()


def test_a_check_that_fails_is_told_with_what_it_had_found() -> None:
    def fails() -> Any:
        yield Finding("one", "one", "well")
        raise PermissionError(13, "Permission denied", "/a/file")

    good, bad = carry_out(Check("one", "one", fails), 5.0)
    assert (good.found, bad.found, bad.level) == ("well", "/a/file: Permission denied", Level.BAD)


# --- mount options

NFS = "36 35 0:40 / /mnt/my\\040home rw,noatime shared:1 - nfs4 server:/export rw,vers=4.2,hard,{},addr=10.0.0.1"


@pytest.mark.parametrize(
    ("option", "level", "advice"),
    [
        ("proto=tcp", "good", ""),
        ("nocto", "bad", "other hosts append"),
        ("soft", "note", "prefer hard"),
        ("nolock", "note", "Locks hold within one host"),
        ("local_lock=flock", "note", "Locks hold within one host"),
        ("ro", "bad", "read-only"),
    ],
)
def test_mount_options(option: str, level: str, advice: str) -> None:
    table = f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n{NFS.format(option)}\n"
    mount = mounts.mount_of(Path("/mnt/my home/me"), table)
    assert mount is not None and (mount.point, mount.type, mount.is_shared) == ("/mnt/my home", "nfs4", True)
    findings = by_level(list(mounts.judge(mount, "it")))
    assert list(findings) == [level] and advice in findings[level][0]


def test_the_last_of_several_mounts_counts() -> None:
    table = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:2 / /x rw - nfs b rw\nrubbish\n3 2 0:3 / /x rw - tmpfs c rw\n"
    found = {path: mounts.mount_of(Path(path), table) for path in ("/x/y", "/xy", "/x")}
    assert {path: mount and mount.type for path, mount in found.items()} == {
        "/x/y": "tmpfs",
        "/xy": "ext4",
        "/x": "tmpfs",
    }
    (in_memory,) = mounts.judge(found["/x"] or pytest.fail(), "it")
    (local,) = mounts.judge(found["/xy"] or pytest.fail(), "it")
    assert "in this host's memory" in in_memory.advice and "--slurm" in local.advice
    assert mounts.find(Path("/proc")) is not None


# --- between two processes


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that are quickly done."""
    for name, value in {"RACES": 6, "SHOWN": 2, "RENAMING_S": 0.1, "MEETING_S": 1.0, "STEP_S": 2.0}.items():
        monkeypatch.setattr(pair, name, value)
    monkeypatch.setattr(between, "SHOWN", 2)


def both(folder: Path) -> list[Finding]:
    """What two in one process, a thread each, find out about a folder."""
    told: dict[int, dict[str, Any]] = {}
    threads = [
        threading.Thread(target=lambda rank=rank: told.update({rank: pair.Pair(folder, rank).run()})) for rank in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    answers = between.answers(json.dumps(told[rank]) for rank in (1, 0))
    return [*between.judge(answers, "here"), *between.judge_clocks(answers)]


def test_two_find_a_sound_file_system_sound(tmp_path: Path, short: None) -> None:
    findings = both(tmp_path)
    assert list(by_level(findings)) == ["good"]
    assert [one.check for one in findings] == ["exclusive", "append", "listing", "rename", "clock"]


def test_two_find_creation_that_is_not_exclusive(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "_create", lambda path: path.write_bytes(b""))
    (bad,) = [one for one in both(tmp_path) if one.level is Level.BAD]
    assert bad.found == "of 6 names, 6 had two winners and 0 had none" and "same run" in bad.advice


def test_two_find_a_missing_operation(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("os.symlink", refuse)
    found = by_level(both(tmp_path))
    assert [len(found[level]) for level in ("note", "bad")] == [1, 1] and "claims need it" in found["bad"][0]


def test_two_find_renames_that_tear(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(source: Path, target: Path) -> None:
        data = Path(source).read_bytes()
        Path(target).write_bytes(data[:-100])

    monkeypatch.setattr("os.rename", copy)
    (bad,) = [one for one in both(tmp_path) if one.level is Level.BAD]
    assert bad.check == "rename" and "published ledger" in bad.advice


def test_two_find_a_full_disk(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And blame nothing else for what could not be written."""

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", refuse)
    found = by_level(both(tmp_path))
    assert len(found["bad"]) == 1 and "No space left on device" in found["bad"][0] and "mount" not in found["bad"][0]


def test_one_alone_says_so(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "MEETING_S", 0.1)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    told = [pair.Pair(tmp_path / "a", 0).run(), pair.Pair(tmp_path / "b", 1).run()]
    (bad,) = between.judge(told, "here")
    assert "did not show up" in bad.found and bad.level is Level.BAD
    (bad,) = between.judge(told[:1], "here")
    assert "1 of 2 processes answered" in bad.found


@pytest.mark.parametrize(
    ("ages", "seen", "ahead", "level"),
    [
        ([0.1, 0.2], 2, 0.0, "good"),
        ([0.1, 3.0], 2, 0.0, "note"),
        ([5.1, 5.2], 2, 5.0, "good"),  # the second one's clock is five seconds ahead
        ([0.1], 1, 0.0, "bad"),
    ],
)
def test_how_soon_is_judged_by_one_clock(ages: list[float], seen: int, ahead: float, level: str, short: None) -> None:
    told = [{"clock": {"ahead_s": ahead, "give_or_take_s": 0.0}}, {"append": {"seen": seen, "ages_s": ages}}]
    (finding,) = between.judge(told, "here")
    assert finding.level.value == level


@pytest.mark.parametrize(
    ("skew", "error", "level"), [(1.0, 0, "good"), (-5.0, 0.1, "note"), (70, 0, "bad"), (5, 4, "good")]
)
def test_clocks(skew: float, error: float, level: str) -> None:
    told = [{"host": "a", "clock": {"ahead_s": skew, "give_or_take_s": error}}, {"host": "b"}]
    (finding,) = between.judge_clocks(told)
    assert finding.level.value == level and ("ahead of a" in finding.found) == (skew >= 0)


# --- room, packages, ledgers


def test_room_that_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)

    def left(room: int, inodes: int) -> list[str]:
        changed = list(real)[:10]
        changed[4], changed[7] = room // real.f_frsize, inodes
        monkeypatch.setattr("os.statvfs", lambda _: os.statvfs_result(changed))
        return [one.level.value for one in files.check_room(tmp_path)]

    assert left(1 << 40, 1 << 30) == ["good", "good"]
    assert left(1 << 30, 50_000) == ["note", "note"]
    assert left(1 << 20, 10) == ["bad", "bad"]


def test_quota(tmp_path: Path, no_slurm: Path) -> None:
    mount = Mount("/home", "nfs4", "server:/home", ())
    assert [one.level for one in files.check_quota(tmp_path, mount)] == [Level.GOOD]
    quota = no_slurm / "quota"
    quota.write_text(
        "#!/bin/sh\n"
        "echo 'Disk quotas for user me (uid 1000): '\n"
        "echo '     Filesystem blocks quota limit grace files quota limit grace'\n"
        "echo 'server:/home 9900000* 10000000 12000000 0 5000 0 0 0'\n"
        "echo 'server:/other 1 2 3 0 4 5 6 0'\n"
        "exit 1\n"
    )
    quota.chmod(0o755)
    (finding,) = files.check_quota(tmp_path, mount)
    assert (finding.level, finding.found) == (Level.BAD, "9.4 GiB of 9.5 GiB are used")
    assert list(files.parse_quota("Filesystem a b c\n/lustre 1 2 3 - 4 5 6 -\n")) == [("/lustre", 1, 2, 4, 5)]


def test_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.level for one in host.check_packages()] == [Level.GOOD]
    real = host._version
    monkeypatch.setattr(host, "_version", lambda name: {"submitit": None, "rich": "1.0"}.get(name, real(name)))
    (finding,) = host.check_packages()
    assert (
        finding.level is Level.BAD and "submitit is missing" in finding.found and "rich should be >=" in finding.found
    )


def test_ledgers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    project = tmp_path / "project"
    project.mkdir()
    assert [one.level for one in ledgers.check(project, None)] == [Level.GOOD]
    sweep = SweepBuilder(project)
    before = listing(tmp_path)
    assert [one.level for one in ledgers.check(project, None)] == [Level.NOTE, Level.GOOD]
    assert listing(tmp_path) == before
    sweep.ledger.write_bytes(b"x" * 1000)
    sweep.ledger.parent.chmod(0o770)
    found = by_level(list(ledgers.check(project, None)))
    assert (
        len(found["bad"]) == 2
        and "can be written by other users" in found["bad"][0]
        and "clusterduck rebuild" in found["bad"][1]
    )


# --- Slurm


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_slurm_that_is_not_there(no_slurm: Path, tmp_path: Path) -> None:
    (finding,) = cluster.check_commands()
    assert "only clusterduck_local" in finding.found and finding.level is Level.GOOD
    (finding,) = cluster.check_two_nodes(tmp_path)
    assert "no srun" in finding.found and finding.level is Level.BAD


def test_what_slurm_lacks(no_slurm: Path) -> None:
    for name in ("srun", "scontrol", "scancel"):
        script(no_slurm, name, "exit 0")
    script(no_slurm, "squeue", "echo '\033[31mslurm_load_jobs error: Unable to contact' >&2; exit 1")
    script(no_slurm, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    found = by_level(list(cluster.check_commands()))
    assert "without sbatch nothing can be submitted" in found["bad"][0]
    assert "Unable to contact" in found["bad"][1] and "\033" not in found["bad"][1]
    assert "accounting storage is disabled" in found["note"][0]


def test_two_nodes(no_slurm: Path, tmp_path: Path) -> None:
    """An srun that starts the two on this host; one of them has another Python and another rich."""
    other = 's/"python": "[0-9.]*"/"python": "2.7"/; s/"rich": "/"rich": "0/'
    script(
        no_slurm,
        "srun",
        'while [ "${1#--}" != "$1" ]; do shift; done\n'
        f"SLURM_PROCID=1 \"$@\" | /bin/sed '{other}' &\n"
        'SLURM_PROCID=0 "$@"; wait; echo "a banner"',
    )
    findings = list(cluster.check_two_nodes(tmp_path))
    assert {"exclusive", "append", "listing", "rename", "clock", "packages", "nvml"} == {one.check for one in findings}
    (bad,) = [one for one in findings if one.level is Level.BAD]
    assert "Python 2.7 there" in bad.found and "rich 0" in bad.found and "hydra.launcher.python" in bad.advice


def test_no_two_nodes_are_free(no_slurm: Path, tmp_path: Path) -> None:
    script(no_slurm, "srun", "echo 'srun: error: Unable to allocate resources: Requested nodes are busy' >&2; exit 1")
    (finding,) = cluster.check_two_nodes(tmp_path)
    assert "Requested nodes are busy" in finding.found and "SLURM_PARTITION" in finding.advice


def test_a_job_that_takes_too_long_is_ended(no_slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PATIENCE_S", 0.1)
    monkeypatch.setattr(probe, "RUNNING_S", 0.2)
    script(no_slurm, "srun", f'echo "$@" > {tmp_path}/srun; exec /bin/sleep 60')
    script(no_slurm, "scancel", f'echo "$@" > {tmp_path}/scancel')
    with pytest.raises(SlurmError, match="did not answer"):
        probe.run_on_two_nodes(["true"])
    name = (tmp_path / "scancel").read_text().strip().removeprefix("--name=")
    assert name.startswith("clusterduck-doctor-") and f"--job-name={name} " in (tmp_path / "srun").read_text()
