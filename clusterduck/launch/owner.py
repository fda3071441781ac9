"""One live sweep per ``hydra.sweep.dir``: who uses the folder, and how another takes it over once the first is over.

An owner is a symbolic link ``<sweep dir>/.clusterduck/owner.<n>``, numbered upwards; the highest number holds the
folder. Its target names the sweep, and the process that launches it. Making the next link is exclusive, so that of two
sweeps which find the last owner gone, one goes on.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from clusterduck.errors import ConfigError, SlurmError
from clusterduck.launch.processes import CLOCK_SLACK_S, began, is_running
from clusterduck.launch.watch import BatchView, Watch
from clusterduck.paths import HIDDEN, SweepPaths, make_private_folder

_PREFIX = "owner."

#: For how long a sweep of another host that has not yet begun may be composing its runs, in seconds.
COMPOSING_S = 3600.0

#: An agent that was heard of within this time is alive, in seconds.
SILENCE_S = 180.0


@dataclass(frozen=True)
class Owner:
    """Who holds a sweep folder.

    Attributes:
        number: of the link.
        sweep: the sweep's id.
        host: where it is launched,
        pid: and by which process,
        began: which began then (seconds since the epoch).
        taken_at: when the folder was taken.
    """

    number: int
    sweep: str
    host: str
    pid: int
    began: float
    taken_at: float


class Ownership:
    """A sweep folder that is ours, until we are over or give it back."""

    def __init__(self, link: Path) -> None:
        self._link = link

    def give_back(self) -> None:
        """Leave the folder as it was found, for a sweep that was never launched after all."""
        self._link.unlink(missing_ok=True)
        try:
            self._link.parent.rmdir()
        except OSError:
            return  # others have been here before


def take(sweep_dir: Path, sweep: str, instead_of: str | None = None) -> Ownership:
    """Make the folder ours.

    Args:
        sweep_dir: ``hydra.sweep.dir``.
        sweep: the id of our sweep.
        instead_of: an earlier sweep of this very process that gives up the folder, though its jobs may be alive.

    Raises:
        ConfigError: if a live sweep uses it, or it cannot be written.
    """
    hidden = sweep_dir / HIDDEN
    try:
        make_private_folder(hidden)
    except OSError as error:
        raise _unwritable(sweep_dir, error) from None
    target = f"{sweep}/{socket.gethostname()}/{os.getpid()}/{began(os.getpid()):.2f}/{secrets.token_hex(6)}"
    while True:
        last = current(sweep_dir)
        if last is None or last.sweep != instead_of:
            last = refuse_if_live(sweep_dir)
        link = hidden / f"{_PREFIX}{last.number + 1 if last is not None else 0}"
        try:
            os.symlink(target, link)
        except FileExistsError:
            # NFS may have carried out a request whose answer was lost, and answers the repeated one so.
            if os.readlink(link) != target:
                continue
        except OSError as error:
            raise _unwritable(sweep_dir, error) from None
        return Ownership(link)


def _unwritable(sweep_dir: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"The sweep folder {sweep_dir} cannot be written ({error.strerror}): set hydra.sweep.dir to one that can."
    )


def refuse_if_live(sweep_dir: Path) -> Owner | None:
    """The last owner of the folder, which is over; None if there never was one.

    Raises:
        ConfigError: if it is not over.
    """
    owner = current(sweep_dir)
    if owner is not None:
        why = _why_live(owner, SweepPaths.of(sweep_dir, owner.sweep))
        if why is not None:
            raise ConfigError(
                f"The sweep {owner.sweep} uses the folder {sweep_dir}: {why}. Set hydra.sweep.dir to another folder, "
                f"or wait until that sweep is over. Nothing in the folder was changed."
            )
    return owner


def current(sweep_dir: Path) -> Owner | None:
    """Who made the link with the highest number."""
    highest: tuple[int, Path] | None = None
    try:
        with os.scandir(sweep_dir / HIDDEN) as entries:
            for entry in entries:
                number = entry.name[len(_PREFIX) :]
                if entry.name.startswith(_PREFIX) and number.isdigit() and int(number) >= (highest or (-1,))[0]:
                    highest = int(number), Path(entry.path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if highest is None:
        return None
    number_, link = highest
    try:
        sweep, host, pid, began, _ = os.readlink(link).split("/")
        return Owner(number_, sweep, host, int(pid), float(began), os.lstat(link).st_mtime)
    except (OSError, ValueError):
        return Owner(number_, "", "", 0, 0.0, 0.0)  # given back this moment, or not made by us: nobody's


def _why_live(owner: Owner, paths: SweepPaths) -> str | None:
    """What shows that the sweep is not over, in words; None if it is."""
    here = owner.host == socket.gethostname()
    at = began(owner.pid) if here and owner.pid != os.getpid() else None
    if at is not None and abs(at - owner.began) < CLOCK_SLACK_S:
        return f"its launcher, process {owner.pid}, is running"
    if not paths.root.is_dir():
        composing = not here and time.time() - owner.taken_at < COMPOSING_S
        return f"it is being launched on {owner.host}, as process {owner.pid}" if composing else None
    watch = Watch(paths)
    while watch.look():
        pass  # what an agent wrote meanwhile
    for batch_id, batch in watch.batches.items():
        if not batch.is_over:
            why = _why_batch_lives(batch)
            if why is not None:
                return f"its batch {batch_id} {why}"
    return None


def _why_batch_lives(batch: BatchView) -> str | None:
    heard = time.time() - batch.heard_at
    submitted = batch.submitted
    if submitted is None and batch.doubted is not None:
        return "may be in Slurm's queue, which `clusterduck status` finds out"
    if submitted is None:
        return "has an agent that was heard of a moment ago" if heard < SILENCE_S else None
    if submitted.cluster == "local":
        if submitted.host != socket.gethostname():
            recent = min(heard, time.time() - submitted.time) < SILENCE_S
            return f"was alive on {submitted.host} a moment ago" if recent else None
        pids = [(int(submitted.job_id), submitted.time)] if submitted.job_id.isdigit() else []
        agents = [agent for agent in batch.agents.values() if agent.host == submitted.host and not agent.ended]
        pids += [(agent.pid, agent.heard_at) for agent in agents]
        for pid, known_at in pids:
            if is_running(pid, known_at):
                return f"is running here, as process {pid}"
        return None
    return _why_slurm_job_lives(submitted.job_id, submitted.time, heard)


def _why_slurm_job_lives(job_id: str, submitted_at: float, heard: float) -> str | None:
    from clusterduck.slurm.jobs import ABSENT, look_up

    try:
        status = look_up({job_id: submitted_at})[job_id]
    except SlurmError:
        return f"may still run as job {job_id}, and Slurm cannot be asked now"
    if status.is_over:
        return None
    if status.state == ABSENT:
        return f"is running as job {job_id}" if heard < SILENCE_S else None
    return f"is {status.state} in Slurm, as job {job_id}"
