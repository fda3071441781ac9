"""Is an agent, like ``tests/agent/run_agent.py``, whose wait loop is watched: how late it comes to its timers.

Usage: watched_agent.py SETTINGS_AS_JSON FILE. At its end the file has, as JSON, the latest that a timer came, in
seconds, not counting what any of the process's threads waited for a CPU meanwhile (``/proc/<pid>/schedstat``, proc(5)),
nor what a hypervisor took of the CPUs (``steal`` in ``/proc/stat``): on a busy machine everything is late, and that is
not what is asked.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from clusterduck.agent import main, timers
from clusterduck.agent.main import AgentJob
from clusterduck.agent.settings import AgentSettings

EVERY_S = 0.01


class Watched(timers.Timers):
    """Timers with one more, which looks at how late it is."""

    latest = 0.0
    ticks = 0
    begun = False  # it counts from the first claim on: before it, modules are imported and processes started

    def __init__(self) -> None:
        super().__init__()
        self._due = time.monotonic() + EVERY_S
        self._waited = waited_for_cpu_s()
        self.add(EVERY_S, self._look)

    def _look(self) -> None:
        late = time.monotonic() - self._due
        waited = waited_for_cpu_s()
        if Watched.begun:
            Watched.ticks += 1
            Watched.latest = max(Watched.latest, late - (waited - self._waited))
        self._waited = waited
        self._due = time.monotonic() + EVERY_S
        self.add(EVERY_S, self._look)


def waited_for_cpu_s() -> float:
    """How long all threads of this process have been ready to run, without a CPU, in seconds; and all CPUs stolen."""
    total = 0
    for task in os.listdir("/proc/self/task"):
        try:
            total += int(Path("/proc/self/task", task, "schedstat").read_text().split()[1])
        except OSError:
            continue
    stolen = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
    return total / 1e9 + stolen / os.sysconf("SC_CLK_TCK")


def run(settings: AgentSettings, told: Path) -> None:
    from clusterduck.agent import supervisor
    from clusterduck.agent.attendance import Attendance

    started = Attendance._on_started

    def note(self, running, pid) -> None:  # type: ignore[no-untyped-def]
        started(self, running, pid)
        Watched.begun = True

    Attendance._on_started = note  # type: ignore[method-assign]
    supervisor.Timers = Watched  # type: ignore[misc]
    supervisor.CODE_LOOK_S = 1e6  # starting git waits for a CPU that is not counted
    main.CLOSING_PATIENCE_S = main.HURRIED_PATIENCE_S = 1.0
    try:
        AgentJob(settings)()
    finally:
        told.write_text(json.dumps({"latest": Watched.latest, "ticks": Watched.ticks}))


if __name__ == "__main__":
    data = json.loads(sys.argv[1])
    data |= {name: tuple(data[name]) for name in ("attempts", "retry_on") if name in data}
    run(AgentSettings(**data), Path(sys.argv[2]))
