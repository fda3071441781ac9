"""Puts a job that its time limit ended back among the waiting ones, so that it goes on with what is unfinished."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from clusterduck import journal
from clusterduck.agent.settings import AgentSettings
from clusterduck.errors import ClusterduckError
from clusterduck.events import AgentEnded
from clusterduck.model import AgentId
from clusterduck.paths import SweepPaths
from clusterduck.slurm import acts

#: What submitit's local executor takes for "start me again" (``submitit.local.local.LOCAL_REQUEUE_RETURN_CODE``).
START_AGAIN = 144

#: For how long the agent of the first node waits for those of the others to close their journals, in seconds.
OTHERS_PATIENCE_S = 20.0


def send_back(settings: AgentSettings, agent: AgentId, job_id: str, say: Callable[[str], None]) -> int | None:
    """After a time-out, have the job start again if the launch allows another one; once for the whole job.

    Returns the exit code to end with, if it has to be a certain one.
    """
    if agent.node != 0:
        return None
    sweep = SweepPaths(Path(settings.sweep_root))
    until = time.monotonic() + OTHERS_PATIENCE_S
    while len(_ended(sweep, settings.batch, agent.restart)) < settings.nodes and time.monotonic() < until:
        time.sleep(0.2)  # other hosts' files: nothing tells of them but another look
    so_far = sum(
        any(end.timed_out for end in _ended(sweep, settings.batch, restart)) for restart in range(agent.restart + 1)
    )
    if so_far > settings.max_num_timeout:
        if settings.max_num_timeout:
            most = f"max_num_timeout={settings.max_num_timeout}"
            say(f"the job is not started again: it has timed out {so_far} times, {most}")
        return None
    say(f"the job is started again, time-out {so_far} of at most max_num_timeout={settings.max_num_timeout}")
    if settings.cluster == "local":
        return START_AGAIN
    try:
        acts.requeue(job_id)
    except ClusterduckError as error:
        say(f"the job could not be put back into Slurm's queue: {error}")
    return None


def _ended(sweep: SweepPaths, batch: str, restart: int) -> list[AgentEnded]:
    found: list[AgentEnded] = []
    for agent, files in sweep.agent_journals(batch).items():
        if agent.restart == restart:
            for path in files:
                found += [event for event in journal.read_all(path) if isinstance(event, AgentEnded)]
    return found
