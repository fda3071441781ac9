"""Puts a job that its time limit ended back among the waiting ones, so that it goes on with what is unfinished."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from clusterduck import journal
from clusterduck.agent.settings import AgentSettings
from clusterduck.errors import ClusterduckError
from clusterduck.events import AgentEnded
from clusterduck.model import AgentId, State
from clusterduck.paths import SweepPaths
from clusterduck.slurm import acts

#: What submitit's local executor takes for "start me again" (``submitit.local.local.LOCAL_REQUEUE_RETURN_CODE``).
START_AGAIN = 144

#: How a job ended that Slurm itself starts again, or that nobody wants any more.
_NOT_BY_TIME = (State.CANCELLED.value, State.PREEMPTED.value)

#: For how long an agent waits for those of the other nodes to close their journals, in seconds: they may end at the
#: same time, and what one host writes reaches another a little later.
OTHERS_PATIENCE_S = 20.0


def send_back(
    settings: AgentSettings, agent: AgentId, job_id: str, say: Callable[[str], None], *, hurried: bool
) -> int | None:
    """After a time-out, have the job start again if the launch allows another one; once for the whole job, by the last
    of its agents to end, because it ends all others.

    Args:
        settings: the batch's.
        agent: which agent this is; its journal is closed.
        job_id: the job's.
        say: prints a line into the job's log.
        hurried: whether the whole job had to end, so that what is not heard of an agent in time never will be.

    Returns the exit code to end with, if it has to be a certain one.
    """
    sweep = SweepPaths(Path(settings.sweep_root))
    until = time.monotonic() + OTHERS_PATIENCE_S
    while len(ends := _ended(sweep, settings.batch, agent.restart)) < settings.nodes and time.monotonic() < until:
        time.sleep(0.2)  # other hosts' files: nothing tells of them but another look
    if len(ends) < settings.nodes and not hurried:
        return None  # the others still work, and the last of them decides
    if not any(end.timed_out for end in ends) or any(end.state in _NOT_BY_TIME for end in ends):
        return None
    so_far = sum(
        any(end.timed_out for end in _ended(sweep, settings.batch, restart)) for restart in range(agent.restart + 1)
    )
    drained = any(end.drained for end in ends)
    if drained or so_far > settings.max_num_timeout:
        if settings.max_num_timeout:
            often = f"it has timed out {so_far} times, max_num_timeout={settings.max_num_timeout}"
            say(f"the job is not started again: {'it was drained' if drained else often}")
        return None
    if not _is_first(sweep.batch(settings.batch) / f"sent-back-{agent.restart}", agent):
        return None
    say(f"the job is started again, time-out {so_far} of at most max_num_timeout={settings.max_num_timeout}")
    if settings.cluster == "local":
        return START_AGAIN
    try:
        acts.requeue(job_id)
    except ClusterduckError as error:
        say(f"the job could not be put back into Slurm's queue: {error}")
    return None


def _is_first(mark: Path, agent: AgentId) -> bool:
    """Whether no other agent of the job does the same: they may all be the last to end."""
    try:
        os.symlink(str(agent), mark)
    except FileExistsError:
        return os.readlink(mark) == str(agent)
    return True


def _ended(sweep: SweepPaths, batch: str, restart: int) -> list[AgentEnded]:
    found: list[AgentEnded] = []
    for agent, files in sweep.agent_journals(batch).items():
        if agent.restart == restart:
            for path in files:
                found += [event for event in journal.read_all(path) if isinstance(event, AgentEnded)]
    return found
