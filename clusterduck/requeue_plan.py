"""Which runs are to be sent again, and where they would go: a plan made from the replica, which changes nothing."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clusterduck import standing
from clusterduck.errors import ClusterduckError, ConfigError
from clusterduck.launch import owner
from clusterduck.launch.again import Launched, launched
from clusterduck.ledger import heard, queries, times
from clusterduck.ledger.queries import Run
from clusterduck.model import FAILED_STATES, AgentId, Attempt, State
from clusterduck.paths import SweepPaths
from clusterduck.queue import Queue
from clusterduck.slurm.jobs import JobStatus
from clusterduck.standing import Standing

#: An agent that was not heard of for so many seconds is not counted on. Clocks of hosts differ, and reports may stall.
SILENT_S = 120.0

#: Whoever sends runs again has said after so many seconds which jobs they go to, or has died meanwhile.
SENDING_S = 20.0

_FAILED = tuple(state.value for state in FAILED_STATES)


@dataclass(frozen=True)
class Wish:
    """Which runs are to be sent again, and how.

    Attributes:
        states: those that ended in one of these states.
        unfinished: also those that wait for nobody, that failed, or whose job was cancelled under them.
        runs: only these, by sweep; None: all of the sweeps. Named runs are meant whatever their state if no state is.
        changes: launcher options to be changed, for the new jobs.
        overrides: added to the runs' own.
        as_submitted: run the function as it was pickled at launch, instead of today's.
        fresh: move a run's folder aside first.
    """

    states: tuple[str, ...] = ()
    unfinished: bool = False
    runs: Mapping[str, Collection[int]] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    as_submitted: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class Chosen:
    """A run to be sent again.

    Attributes:
        run: as it stands.
        attempt: the new one.
        replaces: the attempt on record that waits for nobody and will not be executed, if there is one.
    """

    run: Run
    attempt: Attempt
    replaces: Attempt | None = None


@dataclass(frozen=True)
class Skipped:
    """A run that was asked for and is not sent again, and why."""

    sweep: str
    run: int
    why: str


@dataclass(frozen=True)
class Room:
    """A live agent that claims, with empty slots and nothing of its own to put there."""

    agent: AgentId
    host: str
    slots: int


@dataclass(frozen=True)
class SweepPlan:
    """One sweep's part of a plan.

    Attributes:
        standing: how it stands.
        chosen: what is sent again.
        rooms: where there is room.
        launches: the launches the runs came from, with the options that new jobs get.
    """

    standing: Standing
    chosen: tuple[Chosen, ...]
    rooms: tuple[Room, ...]
    launches: Mapping[int, Launched]

    @property
    def to_live(self) -> int:
        """How many there is room for in live agents."""
        return min(len(self.chosen), sum(room.slots for room in self.rooms))

    @property
    def jobs(self) -> int:
        """How many new jobs the rest needs."""
        rest = Counter(chosen.run.launch or 0 for chosen in self.chosen[self.to_live :])
        sizes = {number: launch.options.runs_per_batch for number, launch in self.launches.items()}
        return sum(-(-count // (sizes[number] or count)) for number, count in rest.items())


@dataclass(frozen=True)
class RequeuePlan:
    """What would be sent again, where it would go, and what is left out."""

    wish: Wish
    sweeps: tuple[SweepPlan, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def count(self) -> int:
        """How many runs."""
        return sum(len(sweep.chosen) for sweep in self.sweeps)

    def describe(self) -> str:
        """The plan in a sentence: ``12 failed runs: 4 to a running job on node7, 8 in 2 new jobs``."""
        if not self.count:
            return "no run is to be sent again"
        return f"{_kinds(chosen for sweep in self.sweeps for chosen in sweep.chosen)}: {self.places}"

    @property
    def places(self) -> str:
        """Where they would go, in words."""
        rooms = [room for sweep in self.sweeps for room in sweep.rooms if sweep.to_live]
        live = sum(sweep.to_live for sweep in self.sweeps)
        jobs = sum(sweep.jobs for sweep in self.sweeps)
        parts = []
        if live:
            hosts = sorted({room.host for room in rooms})
            on = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more nodes" if len(hosts) > 3 else "")
            parts.append(f"{live} to {'a running job' if len(hosts) == 1 else 'running jobs'} on {on}")
        if self.count > live:
            parts.append(f"{self.count - live} in {'a new job' if jobs == 1 else f'{jobs} new jobs'}")
        return ", ".join(parts)

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence for each reason why the code of today cannot run, though it is wanted."""
        if self.wish.as_submitted:
            return ()
        launches = [launch for sweep in self.sweeps for launch in sweep.launches.values()]
        why = dict.fromkeys(launch.not_today for launch in launches if launch.not_today is not None)
        return tuple(f"{each} The code as it was submitted will run instead." for each in why)


def plan(
    connection: sqlite3.Connection, sweeps: Iterable[str], wish: Wish, jobs: Mapping[tuple[str, str], JobStatus]
) -> RequeuePlan:
    """Choose runs.

    Args:
        connection: the ledger, caught up.
        sweeps: their ids.
        wish: which runs, and how.
        jobs: what is known of the jobs of live batches.

    Raises:
        ConfigError: if an override or a changed option cannot be carried out, or another sweep uses the folder.
        NotFoundError: if a run does not exist, or a sweep's folder is gone.
    """
    check_overrides(wish.overrides)
    parts, skipped = [], []
    for sweep in sweeps:
        now = standing.of_sweep(connection, sweep, jobs)
        chosen, left_out = _choose(connection, now, wish)
        skipped += left_out
        if not chosen:
            continue
        _refuse_if_taken_over(now.paths)
        launches = {
            number: launched(connection, now.paths, number, wish.changes)
            for number in sorted({one.run.launch or 0 for one in chosen})
        }
        rooms = () if wish.changes else _rooms(connection, now)
        parts.append(SweepPlan(now, tuple(chosen), rooms, launches))
    return RequeuePlan(wish, tuple(parts), tuple(skipped))


def _refuse_if_taken_over(paths: SweepPaths) -> None:
    """A later sweep in the same folder writes where these runs would."""
    current = owner.current(paths.sweep_dir)
    if current is None or current.sweep in ("", paths.sweep):
        return
    try:
        owner.refuse_if_live(paths.sweep_dir)
    except ConfigError:
        raise ConfigError(
            f"The sweep {current.sweep} uses the folder {paths.sweep_dir} now: runs of {paths.sweep} can be sent again "
            f"once it is over."
        ) from None


def check_overrides(overrides: Sequence[str]) -> None:
    """See that each is one override of one value, as Hydra reads them.

    Raises:
        ConfigError: naming the first that is not.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise ConfigError(f"{text!r} is no override: {str(error).splitlines()[0]}.") from None
        if override.is_sweep_override():
            raise ConfigError(f"{text!r} has several values; a run that is sent again gets one.")


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Launcher options given as ``name=value``, the value as Hydra reads it.

    Raises:
        ConfigError: naming the first that is not of that form.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    parser = OverridesParser.create()
    changes = {}
    for text in texts:
        bare = text.removeprefix("hydra.launcher.")
        try:
            override = parser.parse_override(bare)
        except HydraException as error:
            raise ConfigError(f"{text!r} sets no option of the launcher: {str(error).splitlines()[0]}.") from None
        if bare[:1] in "+~" or override.is_sweep_override():
            raise ConfigError(f"{text!r} sets no option of the launcher: write name=value, with one value.")
        plain = OmegaConf.create({"value": override.value()})
        changes[override.key_or_group] = OmegaConf.to_container(plain)["value"]  # type: ignore[index,call-overload]
    return changes


# --- choosing


def _choose(connection: sqlite3.Connection, now: Standing, wish: Wish) -> tuple[list[Chosen], list[Skipped]]:
    wanted = None if wish.runs is None else sorted(wish.runs.get(now.sweep, ()))
    unattended = set(now.unattended)
    by_name = wanted is not None and not wish.states and not wish.unfinished
    states = {*wish.states, *(_FAILED if wish.unfinished else ())}
    interrupted = standing.interrupted(connection, now.sweep) if wish.unfinished else set()
    more = {*interrupted, *(unattended if wish.unfinished else ())}
    being_sent = _being_sent(connection, now)
    chosen, skipped = [], []
    for run in _looked_at(connection, now.sweep, wanted, states, more):
        why = None
        if run.launch is None:
            why = "the journal of its launch has not been read yet"
        elif run.number in being_sent:
            why = f"already requeued by {being_sent[run.number]}"
        elif run.number in unattended:
            if wish.unfinished or by_name or State.PENDING.value in states:
                chosen.append(_again(run, now))
                continue
            why = "it waits for nobody; --unfinished sends such runs"
        elif run.state == State.RUNNING.value:
            why = "it is running"
        elif run.state == State.PENDING.value:
            why = f"it waits for batch {now.waiting[run.number]} already"
        elif not by_name and run.state not in states and run.number not in interrupted:
            why = f"it is {run.state}"
        if why is None:
            number = run.attempt + 1
            if number == 1 and str(Attempt(run.number, 1)) in now.claimed:  # by an agent that never started it
                number = 2
            chosen.append(Chosen(run, Attempt(run.number, number)))
        elif wanted is not None or run.number in being_sent:
            skipped.append(Skipped(now.sweep, run.number, why))
    return chosen, skipped


def _being_sent(connection: sqlite3.Connection, now: Standing) -> dict[int, str]:
    """The runs that somebody is just sending again, and who: requeued a moment ago, and in no job's list yet."""
    since = times.to_text(time.time() - SENDING_S)
    acts = "SELECT 1 FROM act WHERE sweep = ? AND kind = 'requeue' AND at >= ? LIMIT 1"
    if connection.execute(acts, (now.sweep, since)).fetchone() is None:
        return {}
    listed = {pair for batch in now.batches for pair in batch.attempts}
    queue = Queue(now.paths.queue)
    found = {}
    for attempt in (now.attempt(run) for run in now.unattended if run in now.later):
        if (attempt.run, attempt.number) in listed or str(attempt) in now.claimed:
            continue
        try:
            entry = queue.read(attempt)
        except FileNotFoundError:
            found[attempt.run] = "somebody else"  # who has said so, and is putting it there
            continue
        except (ClusterduckError, OSError):
            continue
        if entry.kind == "person" and abs(time.time() - entry.at) < SENDING_S:
            found[attempt.run] = entry.by
    return found


def _looked_at(
    connection: sqlite3.Connection,
    sweep: str,
    wanted: Sequence[int] | None,
    states: Collection[str],
    more: Collection[int],
) -> list[Run]:
    """Those of the runs wanted, or else all in these states and ``more``."""
    if wanted is not None:
        return [queries.run(connection, sweep, number) for number in wanted]
    found = queries.runs(connection, sweep, queries.Filter(states=sorted(states))) if states else []
    known = {run.number for run in found}
    found += queries.runs_numbered(connection, sweep, [number for number in more if number not in known])
    return sorted(found, key=lambda run: run.number)


def _again(run: Run, now: Standing) -> Chosen:
    """A run that waits for nobody: its first attempt if that was never heard of, else one after the latest."""
    attempt = now.attempt(run.number)
    if run.attempt == 0 and run.number not in now.holders:
        return Chosen(run, attempt)
    return Chosen(run, Attempt(attempt.run, attempt.number + 1), replaces=attempt)


def _rooms(connection: sqlite3.Connection, now: Standing) -> tuple[Room, ...]:
    """Live agents that claim and have empty slots, less what their batches will put there by themselves."""
    due = Counter(now.waiting.values())
    silent_since = times.to_text(time.time() - SILENT_S)
    deaf = {
        AgentId(agent.batch, agent.restart, agent.node)
        for agent in heard.corrected(connection, queries.agents(connection, now.sweep, alive=True))
        if agent.draining or (agent.seen_at or "") < silent_since
    }
    empty: Counter[AgentId] = Counter()
    hosts = {}
    for slot in queries.slots(connection, now.sweep):
        if slot.run is None and slot.batch in now.live:
            agent = AgentId(slot.batch, slot.restart, slot.node)
            if agent not in deaf:
                empty[agent] += 1
                hosts[agent] = slot.host or "?"
    rooms = [Room(agent, hosts[agent], count - due[agent.batch]) for agent, count in sorted(empty.items(), key=str)]
    return tuple(room for room in rooms if room.slots > 0)


def _kinds(chosen: Iterable[Chosen]) -> str:
    """What runs they are, in words."""
    states = Counter(one.run.state for one in chosen)
    count = sum(states.values())
    plural = "run" if count == 1 else "runs"
    if set(states) <= set(_FAILED):
        return f"{count} failed {plural}"
    if set(states) == {State.PENDING.value}:
        return f"{count} {plural} that nobody would take"
    if len(states) == 1:
        return f"{count} {next(iter(states))} {plural}"
    return f"{count} {plural} ({', '.join(f'{number} {state}' for state, number in sorted(states.items()))})"
