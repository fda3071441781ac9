"""What the shared file system sees of a sweep: system calls on paths in the sweep's folder, counted with strace(1).

    python tests/benchmarks/trace_file_system.py [--slots 4]

Prints, as a table: an agent per minute while its runs execute, what each run adds to that (its agent's calls and its
own, Hydra's among them), and one publication of the ledger. Reads of Python's own modules are not counted.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

APP = """
import time
import hydra

@hydra.main(version_base=None)
def main(cfg):
    time.sleep(cfg.s)

if __name__ == "__main__":
    main()
"""

#: From an agent's start to when nothing but its heartbeats is expected, and how long that is watched, in seconds.
SETTLED_S, WATCHED_S = 15.0, 60.0

#: How many runs a slot has more in one of two sweeps, whose difference tells what a run adds.
ADDED = 10

LINE = re.compile(r"^(?P<at>\d+\.\d+) (?P<call>\w+)\((?P<rest>.*)$")
CHILD = re.compile(r"^\d+\.\d+ (?:<\.\.\. )?(?:clone3?|v?fork)\b.* = (?P<child>\d+)")
WRITES = {"write", "pwrite64", "writev"}


@dataclass
class Seen:
    """What processes of one kind asked of the file system."""

    calls: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    written: float = 0.0

    def add(self, call: str, rest: str) -> None:
        self.calls[call] += 1
        if call in WRITES:
            answer = rest.rpartition(" = ")[2].split()[0]
            self.written += max(0, int(answer)) if answer.lstrip("-").isdecimal() else 0

    @property
    def syncs(self) -> float:
        return self.calls["fsync"] + self.calls["fdatasync"]


@dataclass
class Trace:
    """The traces of all processes of a sweep, one file each."""

    folder: Path
    sweep: str
    agent_s: float = 0.0  # from the agent's first call to its last, once it was looked at what was seen

    def kinds(self) -> dict[str, str]:
        """Process or thread id -> what it belongs to."""
        parents: dict[str, str] = {}
        own: dict[str, str] = {}
        for file in self.folder.iterdir():
            pid = file.suffix[1:]
            for line in file.read_text(errors="replace").splitlines():
                if found := CHILD.match(line):
                    parents[found["child"]] = pid
                elif " execve(" in line and " = 0" in line:
                    own[pid] = _kind(line)

        def kind(pid: str) -> str:
            if pid in own:
                return own[pid]
            above = kind(parents[pid]) if pid in parents else "?"
            return "run" if above == "fork server" else above

        return {file.suffix[1:]: kind(file.suffix[1:]) for file in self.folder.iterdir()}

    def seen(self, window: tuple[float, float] | None = None) -> dict[str, Seen]:
        """By kind; with ``window``, only that long after the agent's first call."""
        kinds = self.kinds()
        lines: list[tuple[float, str, str, str]] = []
        for file in self.folder.iterdir():
            for line in file.read_text(errors="replace").splitlines():
                found = LINE.match(line)
                if found:
                    lines.append((float(found["at"]), kinds[file.suffix[1:]], found["call"], found["rest"]))
        began, self.agent_s = 0.0, 0.0
        if ats := [at for at, kind, _, _ in lines if kind == "agent"]:
            began, self.agent_s = min(ats), max(ats) - min(ats)
        result: dict[str, Seen] = {}
        for at, kind, call, rest in lines:
            if self.sweep in rest and (window is None or window[0] <= at - began < window[1]):
                result.setdefault(kind, Seen()).add(call, rest)
        return result


def _kind(line: str) -> str:
    for mark, kind in (
        ("clusterduck.agent.forkserver", "fork server"),
        ("clusterduck.ledger.publish", "publisher"),
        ("submitit.core._submit", "agent"),
        ("app.py", "launcher"),
    ):
        if mark in line:
            return kind
    return "other"


def trace(folder: Path, runs: int, seconds: float, slots: int) -> Trace:
    """Launch a sweep under strace, and wait for its end."""
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    traces = folder / "traces"
    traces.mkdir()
    sweep = folder / "sweep"
    command = ["strace", "-ff", "-y", "-ttt", "-s", "300", "-e", "trace=file,desc,process", "-o", str(traces / "t")]
    command += [sys.executable, "app.py", "--multirun", f"+s={seconds}", f"+i=range({runs})"]
    command += ["hydra/launcher=clusterduck_local", f"hydra.launcher.parallel_runs_per_node={slots}"]
    command += [f"hydra.sweep.dir={sweep}", "hydra.launcher.publish_interval_s=1000"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return Trace(traces, f"{sweep}/")


def row(what: str, seen: Seen, per: float = 1.0) -> str:
    """One line of the table."""
    looks = sum(seen.calls[call] for call in ("stat", "lstat", "newfstatat", "statx", "fstat", "access", "readlink"))
    lists = seen.calls["getdents64"]
    opens = sum(seen.calls[call] for call in ("open", "openat"))
    total = sum(seen.calls.values())
    values = [f"{number / per:.1f}".rstrip("0").rstrip(".") for number in (total, opens, looks, lists)]
    cells = [what, *values, f"{seen.written / per:.0f}", f"{seen.syncs / per:.1f}".removesuffix(".0")]
    return f"| {' | '.join(cells)} |"


def difference(more: Seen, less: Seen, times: float = 1.0) -> Seen:
    """What there is more of than so many times as much."""
    calls = {call: more.calls[call] - times * less.calls[call] for call in {*more.calls, *less.calls}}
    return Seen(defaultdict(float, calls), more.written - times * less.written)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=4)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="duck-trace-"))
    try:
        long = trace(base / "long", options.slots, SETTLED_S + WATCHED_S + 15, options.slots)
        few = trace(base / "few", options.slots, 0, options.slots)
        many = trace(base / "many", (1 + ADDED) * options.slots, 0, options.slots)
        quiet = long.seen((SETTLED_S, SETTLED_S + WATCHED_S))
        runs = difference(many.seen()["run"], few.seen()["run"])
        agent = difference(many.seen()["agent"], few.seen()["agent"])
        agent = difference(agent, quiet["agent"], (many.agent_s - few.agent_s) / WATCHED_S)
        published = base / "published"
        published.mkdir()
        ledger = base / "many" / ".clusterduck" / "ledger.db"
        ledger.unlink()
        command = ["strace", "-ff", "-y", "-ttt", "-s", "300", "-e", "trace=file,desc", "-o", str(published / "t")]
        command += [sys.executable, "-m", "clusterduck.ledger.publish", str(ledger)]
        subprocess.run(command, check=True)
        size = ledger.stat().st_size
        publication = Trace(published, str(base / "many") + "/").seen()
    finally:
        shutil.rmtree(base)
    added = ADDED * options.slots
    print("| what | calls | opens | looks at names | listings | bytes written | fsyncs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(row(f"an agent with {options.slots} busy slots, per minute", quiet["agent"]))
    print(row("their runs in that minute", quiet.get("run", Seen())))
    print(row("each run: by its agent", agent, added))
    print(row("each run: by itself, Hydra's own files included", runs, added))
    print(row(f"one publication of a ledger of {size // 1000} kB", publication["publisher"]))


if __name__ == "__main__":
    main()
