"""What follows from a stretch's facts: how agents, batches, attempts and runs stand, and all counts."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from clusterduck.ledger import columns, rules, schema, times
from clusterduck.ledger.rows import AttemptRow, RunRow
from clusterduck.ledger.rules import Closing
from clusterduck.ledger.tables import AgentKey, Changes, took_of, write_rows
from clusterduck.model import State

#: How many readings of a slot are kept while its agent lives (the half hour that the dashboard shows of a young one,
#: nine hours of another), and how many after that. Older files were brought to these numbers by a step of the schema.
SAMPLES_KEPT = 180
SAMPLES_KEPT_AFTER = 10

_COUNTED = tuple(State)


def settle(changes: Changes) -> None:
    """Work out all that follows, and write it together with the facts."""
    _sweep(changes)
    for batch in sorted(changes.unsettled):
        _batch(changes, batch)
    slots = _attempts(changes)
    changes.attempts.write()
    changes.agents.write()
    changes.batches.write()
    _unstarted_runs(changes)
    _counts(changes)
    changes.runs.write()
    _homes(changes)
    _slots(changes, slots)
    _samples(changes)


def _sweep(changes: Changes) -> None:
    db, sweep = changes.connection, changes.sweep
    folder = changes.root.parent.parent
    write_rows(
        db,
        "INSERT OR IGNORE INTO sweep(id, folder, root, launches, runs, planned, pending, running, completed, failed, "
        "cancelled, timeout, out_of_memory, node_fail, preempted) VALUES (?, ?, ?, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)",
        [(sweep, str(folder), str(changes.root))],
    )
    if changes.latest:
        db.execute(
            "INSERT INTO visit(sweep, last_event_at) VALUES (?, ?) ON CONFLICT(sweep) DO UPDATE "
            "SET last_event_at = max(coalesce(last_event_at, ''), excluded.last_event_at)",
            (sweep, times.to_text(changes.latest)),
        )
    write_rows(
        db,
        "INSERT OR IGNORE INTO act(sweep, id, kind, batch, run, attempt, job_id, user, host, at, state, reason, "
        "detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(sweep, *act) for act in changes.acts],
    )
    if changes.launches.changed():
        changes.launches.write()
        db.execute(
            "UPDATE sweep SET launches = (SELECT count(*) FROM launch WHERE sweep = :sweep), "
            "created_at = (SELECT min(started_at) FROM launch WHERE sweep = :sweep), "
            "(job_name, user, host, cwd, command, launcher, git_commit, git_dirty) = "
            "(SELECT job_name, user, host, cwd, command, launcher, git_commit, git_dirty FROM launch "
            "WHERE sweep = :sweep ORDER BY started_at IS NULL, number LIMIT 1) WHERE id = :sweep",
            {"sweep": sweep},
        )
    columns.write(db, sweep, changes.plans)


def _batch(changes: Changes, batch_id: str) -> None:
    """Settle a batch and its agents."""
    agents = changes.agents.where("batch = ?", (batch_id,), lambda agent: agent.batch == batch_id)
    row = changes.batches.change(batch_id)
    found = changes.connection.execute(
        "SELECT at, state, reason, kind, detail FROM act WHERE sweep = ? AND batch = ? "
        "AND kind IN ('batch_closed', 'batch_doubted') ORDER BY at, reason",
        (changes.sweep, batch_id),
    ).fetchall()
    was_taken = bool(agents) or row.submitted_at is not None
    closings = [
        Closing(at, state, reason)
        for at, state, reason, kind, detail in found
        if kind == "batch_closed" and not (was_taken and detail is not None)
    ]
    doubts = [reason for _, _, reason, kind, _ in found if kind == "batch_doubted"]
    for agent in agents:
        if agent.exit_code is not None:
            continue
        end = rules.agent_end(agent, closings, agents)
        at, state, reason = (None, State.RUNNING.value, None) if end is None else end
        if (agent.ended_at, agent.state, agent.reason) != (at, state, reason):
            changes.agents.change(agent.batch, agent.restart, agent.node)
            agent.ended_at, agent.state, agent.reason = at, state, reason
            changes.over.add((agent.batch, agent.restart, agent.node))
    rules.settle_batch(row, agents, closings, None if was_taken else next(iter(doubts), None))
    restart = max((agent.restart for agent in agents if agent.started_at is not None), default=0)
    if restart:
        changes.restarts[batch_id] = restart
        schema.make_index(changes.connection, "attempt_by_slot")
        for key in changes.connection.execute(
            "SELECT run, number FROM attempt WHERE sweep = ? AND batch = ? AND restart < ? AND by_job_end = 1",
            (changes.sweep, batch_id, restart),
        ).fetchall():
            changes.attempts.change(*key)


def _attempts(changes: Changes) -> set[tuple[str, int, int, int]]:
    """Settle the attempts that changed, or whose agent did, and their runs. Returns the slots they are or were in."""
    db, sweep = changes.connection, changes.sweep
    slots = set(changes.left)
    for agent in sorted(changes.over):
        for run, number in db.execute(
            "SELECT run, number FROM attempt "
            "WHERE sweep = ? AND batch = ? AND restart = ? AND node = ? AND reported = 0",
            (sweep, *agent),
        ).fetchall():
            changes.attempts.change(run, number)
    for agent in sorted(changes.placed):
        if not changes.agents.is_new(*agent):
            _find_placed_before(changes, agent)
    for attempt in changes.attempts.changed():
        agent_row = None
        if attempt.batch is not None and attempt.restart is not None and attempt.node is not None:
            agent_row = changes.agents.get(attempt.batch, attempt.restart, attempt.node)
            assert agent_row is not None, "an agent's row is made before those of its attempts"
            attempt.host = agent_row.host
            if attempt.slot is not None:
                place = (attempt.batch, attempt.restart, attempt.node, attempt.slot)
                slots.add(place)
                slot = changes.slots.get(*place) or changes.slots.change(*place)
                attempt.cpus, attempt.gpus = slot.cpus, slot.gpus
        if not attempt.reported:
            rules.settle_attempt(attempt, agent_row)
        elif attempt.by_job_end and attempt.batch is not None:
            rules.settle_restarted(attempt, _restart(changes, attempt.batch))
        if attempt.started_at is None:
            attempt.started_at = attempt.spawned_at
        if attempt.started_at is not None and attempt.ended_at is not None:
            attempt.duration_s = max(0.0, times.between(attempt.started_at, attempt.ended_at))
        else:
            attempt.duration_s = None
        rules.settle_run(changes.run(attempt.run), attempt)
        _keep_time(changes, attempt)
    return slots


def _keep_time(changes: Changes, attempt: AttemptRow) -> None:
    """Keep how long each agent's slots were busy, so that nobody has to add it up."""
    before, now = changes.attempts.took_before.get((attempt.run, attempt.number)), took_of(attempt)
    if before != now:
        if before is not None:
            changes.agents.change(*before[0]).busy_ms -= before[1]
        if now is not None:
            changes.agents.change(*now[0]).busy_ms += now[1]


def _restart(changes: Changes, batch: str) -> int:
    """The highest restart of a batch of which an agent was up."""
    if batch not in changes.restarts:
        agents = changes.agents.where("batch = ?", (batch,), lambda agent: agent.batch == batch)
        changes.restarts[batch] = max((agent.restart for agent in agents if agent.started_at is not None), default=0)
    return changes.restarts[batch]


def _find_placed_before(changes: Changes, agent: AgentKey) -> None:
    """An agent's host and slots became known after some of its attempts: these get them too."""
    schema.make_index(changes.connection, "attempt_by_slot")
    found = changes.connection.execute(
        "SELECT run, number FROM attempt WHERE sweep = ? AND batch = ? AND restart = ? AND node = ?",
        (changes.sweep, *agent),
    ).fetchall()
    for key in found:
        changes.attempts.change(*key)


def _unstarted_runs(changes: Changes) -> None:
    """Give runs without an attempt their home, and end those that somebody said will never start."""
    db, sweep = changes.connection, changes.sweep
    for first, stop in changes.closed_ranges:
        for (number,) in db.execute(
            "SELECT number FROM run WHERE sweep = ? AND number >= ? AND number < ? AND attempt = 0",
            (sweep, first, stop),
        ).fetchall():
            changes.run(number)
    waiting = [run for run in changes.runs.changed() if run.attempt == 0]
    if not waiting:
        return
    _find_homes(changes, [run for run in waiting if run.batch is None])
    for at, state, reason, detail in db.execute(
        "SELECT at, state, reason, detail FROM act WHERE sweep = ? AND kind = 'runs_closed'", (sweep,)
    ).fetchall():
        ranges = json.loads(detail)["runs"]
        for run in waiting:
            if any(first <= run.number < stop for first, stop in ranges):
                rules.close_unstarted(run, Closing(at, state, reason))


def _find_homes(changes: Changes, runs: list[RunRow]) -> None:
    if not runs:
        return
    lowest, highest = min(run.number for run in runs), max(run.number for run in runs)
    batches = changes.connection.execute(
        "SELECT id, first_run, stop_run FROM batch WHERE sweep = ? AND first_run <= ? AND stop_run > ? ORDER BY id",
        (changes.sweep, highest, lowest),
    ).fetchall()
    for run in runs:
        run.batch = next((batch for batch, first, stop in batches if first <= run.number < stop), None)


def _homes(changes: Changes) -> None:
    """Give runs planned before their batch that batch (of several, the one whose name is smallest)."""
    changes.connection.executemany(
        "UPDATE run SET batch = ? WHERE sweep = ? AND number >= ? AND number < ? AND attempt = 0 "
        "AND (batch IS NULL OR batch > ?)",
        [(batch, changes.sweep, first, stop, batch) for batch, first, stop in changes.homes],
    )


def _counts(changes: Changes) -> None:
    """Keep the sweep's counts: each run that changed is taken from where it was counted and counted where it stands."""
    runs = changes.runs.changed()
    moved = Counter([run.state for run in runs])
    old = [run.number for run in runs if not changes.runs.is_new(run.number)]
    moved.subtract([changes.states_before[number] for number in old])
    new = len(runs) - len(old)
    if new or changes.newly_planned or any(moved.values()):
        changes.connection.execute(
            "UPDATE sweep SET runs = runs + ?, planned = planned + ?, pending = pending + ?, running = running + ?, "
            "completed = completed + ?, failed = failed + ?, cancelled = cancelled + ?, timeout = timeout + ?, "
            "out_of_memory = out_of_memory + ?, node_fail = node_fail + ?, preempted = preempted + ? WHERE id = ?",
            (new, changes.newly_planned, *(moved[state.value] for state in _COUNTED), changes.sweep),
        )


def _slots(changes: Changes, touched: set[tuple[str, int, int, int]]) -> None:
    """Show in each slot the attempt that runs in it, if any."""
    for agent in changes.over:
        touched |= {(*agent, index) for index in _slots_of(changes, agent)}
    for key in touched:
        found: tuple[Any, ...] | None = changes.connection.execute(
            "SELECT run, number, started_at FROM attempt WHERE sweep = ? AND batch = ? AND restart = ? AND node = ? "
            "AND slot = ? AND reported = 0 AND state = 'RUNNING' "
            "ORDER BY started_at DESC, run DESC, number DESC LIMIT 1",
            (changes.sweep, *key),
        ).fetchone()
        row = changes.slots.change(*key)
        row.run, row.attempt, row.since = found or (None, None, None)
    changes.slots.write()


def _slots_of(changes: Changes, agent: AgentKey) -> list[int]:
    rows = changes.slots.where(
        "batch = ? AND restart = ? AND node = ?", agent, lambda row: (row.batch, row.restart, row.node) == agent
    )
    return [row.slot for row in rows]


def _samples(changes: Changes) -> None:
    """Add readings, and drop all but the latest of each slot."""
    for key in changes.samples.keys() | changes.over:
        agent = changes.agents.get(*key)
        kept = SAMPLES_KEPT if agent is None or agent.exit_code is None else SAMPLES_KEPT_AFTER
        slots = _add_readings(changes, key, kept)
        if key in changes.over:
            slots |= {
                slot
                for (slot,) in changes.connection.execute(
                    "SELECT DISTINCT slot FROM sample WHERE sweep = ? AND batch = ? AND restart = ? AND node = ?",
                    (changes.sweep, *key),
                ).fetchall()
            }
        changes.connection.executemany(
            "DELETE FROM sample WHERE sweep = ?1 AND batch = ?2 AND restart = ?3 AND node = ?4 AND slot = ?5 "
            "AND taken_at < (SELECT taken_at FROM sample WHERE sweep = ?1 AND batch = ?2 AND restart = ?3 "
            "AND node = ?4 AND slot = ?5 ORDER BY taken_at DESC LIMIT 1 OFFSET ?6)",
            [(changes.sweep, *key, slot, kept - 1) for slot in slots],
        )


def _add_readings(changes: Changes, agent: AgentKey, kept: int) -> set[int]:
    """Add an agent's readings, of each slot no more than are kept. Returns its slots."""
    new: list[tuple[Any, ...]] = []
    room: dict[int, int] = {}
    key = (changes.sweep, *agent)
    for at, readings in sorted(changes.samples.get(agent, {}).items(), reverse=True):
        for slot, *values in readings:
            place = int(slot or 0)
            left = room[place] = room.get(place, kept) - 1
            if left >= 0:
                new.append((*key, place, at, *values))
    changes.connection.executemany(
        "INSERT OR REPLACE INTO sample(sweep, batch, restart, node, slot, taken_at, cpu_percent, memory_bytes, "
        "gpu_percent, gpu_memory_bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        new,
    )
    return set(room)
