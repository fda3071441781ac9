from __future__ import annotations

from pathlib import Path

import pytest

from clusterduck.agent.memory import OomCounter


def lay_out(root: Path, membership: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


V2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"


@pytest.mark.parametrize(
    ("membership", "files", "count"),
    [
        ("0::/system/job_7/step_0\n", {"system/job_7/step_0/memory.events": V2}, 2),
        ("0::/\n", {"memory.events": V2}, 2),  # in a container: the mount is our cgroup
        ("0::/docker/abc\n", {"memory.events": V2}, 2),
        ("9:memory:/slurm/job_7\n0::/\n", {"memory/slurm/job_7/memory.oom_control": V1}, 5),
        ("9:cpu,memory:/x\n", {"memory/x/memory.oom_control": V1}, 5),
        ("9:memory:/docker/abc\n", {"memory/memory.oom_control": V1}, 5),
        ("9:memory:/x\n", {"memory/x/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, None),  # an old kernel
        ("0::/job\n", {}, None),
        ("0::/../../outside\n", {"../../outside/memory.events": V2}, None),
        ("0::/job\n", {"job/memory.events": "oom_kill many\n"}, None),
        ("nonsense\n\0\n", {}, None),
        ("", {}, None),
    ],
)
def test_where_the_kernel_counts(tmp_path: Path, membership: str, files: dict[str, str], count: int | None) -> None:
    assert OomCounter(lay_out(tmp_path, membership, files)).kills() == count


def test_the_count_is_read_anew_each_time(tmp_path: Path) -> None:
    counter = OomCounter(lay_out(tmp_path, "0::/job\n", {"job/memory.events": "oom_kill 0\n"}))
    assert counter.kills() == 0
    file = tmp_path / "sys/fs/cgroup/job/memory.events"
    file.write_text("oom_kill 1\n")
    assert counter.kills() == 1
    file.unlink()
    assert counter.kills() is None


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert OomCounter(tmp_path).kills() is None


def test_this_machine_answers_or_says_it_cannot() -> None:
    kills = OomCounter().kills()
    assert kills is None or kills >= 0
