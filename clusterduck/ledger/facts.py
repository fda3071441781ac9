"""What each event says, put into the rows it is about.

Each fact has one source, and an event found twice, or after later ones, changes nothing that is known already. What
follows from several facts together is worked out afterwards, by ``settle``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

from clusterduck import events
from clusterduck.errors import JournalError
from clusterduck.events import Event
from clusterduck.ledger import rules, times
from clusterduck.ledger.rows import TOLD_BY_ACT, TOLD_BY_AGENT, AgentRow, AttemptRow
from clusterduck.ledger.tables import Changes
from clusterduck.model import AgentId, Attempt, Slot, State


def take_in(new: Sequence[Event], changes: Changes, who: AgentId | None) -> None:
    """Put the events of a stretch of a journal into the rows.

    Args:
        new: the events, in order.
        changes: the transaction's rows.
        who: the agent whose journal it is; None for a launch's or an act's.

    Raises:
        JournalError: if an event cannot stand in this journal.
        ValueError, TypeError: if an event holds what no event holds.
    """
    _load(new, changes)
    facts = _Facts(changes, who)
    handlers = _HANDLERS
    for event in new:
        handler = handlers.get(type(event))
        if handler is not None:
            handler(facts, event)
        elif isinstance(event, events.UnknownEvent):
            changes.unknown.add(event.kind)
    latest = max([event.time for event in new])
    changes.latest = max(changes.latest, latest)
    facts.note_agent_seen(latest)


def _load(new: Sequence[Event], changes: Changes) -> None:
    """Read the rows that the events are about, all at once."""
    attempts = {(event.run, event.attempt) for event in new if isinstance(event, _OF_ATTEMPTS)}
    planned = [number for event in new if isinstance(event, events.RunsPlanned) for number, _ in event.runs]
    changes.runs.load("number", {run for run, _ in attempts}.union(planned))
    changes.attempts.load("run", attempts, changes.runs_with_attempts)


_OF_ATTEMPTS = (events.AttemptStarted, events.AttemptLocated, events.FolderSetAside, events.AttemptEnded)
_ACT_COLUMNS = ("id", "kind", "batch", "run", "attempt", "job_id", "user", "host", "at", "state", "reason", "detail")


_STATES = frozenset(state.value for state in State)


def _state(name: str) -> str:
    if name not in _STATES:
        raise ValueError(f"{name!r} is no state")
    return name


class _Facts:
    def __init__(self, changes: Changes, who: AgentId | None) -> None:
        self._changes = changes
        self._who = who
        self._row: AgentRow | None = None
        self._own: dict[tuple[int, int], AttemptRow] = {}  # attempts that are known to be this agent's
        self._results = os.path.join(changes.paths.results, "")

    # --- what a launch says

    def launch_started(self, event: events.LaunchStarted) -> None:
        row = self._changes.launches.change(event.launch)
        row.started_at = times.to_text(event.time)
        row.job_name, row.user, row.host, row.pid = event.job_name, event.user, event.host, event.pid
        row.cwd, row.python, row.command, row.launcher = (
            event.cwd,
            event.python,
            json.dumps(event.command),
            event.launcher,
        )
        row.settings, row.versions = json.dumps(event.settings), json.dumps(event.versions)
        row.git_commit, row.git_dirty = event.git_commit, event.git_dirty

    def launch_ended(self, event: events.LaunchEnded) -> None:
        self._changes.launches.change(event.launch).ended_at = times.to_text(event.time)

    def runs_planned(self, event: events.RunsPlanned) -> None:
        new = []
        for number, texts in event.runs:
            overrides = f"[{', '.join(map(encode_basestring_ascii, texts))}]"  # as dumps, in half the time
            if self._changes.plan(number, event.launch, overrides):  # else it is found a second time
                new.append((number, texts))
        self._changes.newly_planned += len(new)
        self._changes.plans.append(new)

    def batch_planned(self, event: events.BatchPlanned) -> None:
        row = self._changes.batches.change(event.batch)
        row.launch, row.first_run, row.stop_run = event.launch, event.first, event.stop
        row.nodes, row.slots_per_node, row.share_runs = event.nodes, event.slots_per_node, event.share_runs
        row.planned_at = times.to_text(event.time)
        row.attempts = json.dumps(event.attempts) if event.attempts else None
        self._changes.homes.append((event.batch, event.first, event.stop))
        self._changes.unsettled.add(event.batch)

    def batch_submitted(self, event: events.BatchSubmitted) -> None:
        row = self._changes.batches.change(event.batch)
        self._changes.unsettled.add(event.batch)
        row.cluster, row.job_id = event.cluster, event.job_id
        row.submit_host, row.submitted_at = event.host, times.to_text(event.time)
        row.log_folder = self._changes.paths.place(event.log_dir)

    # --- what acts say

    def batch_closed(self, event: events.BatchClosed) -> None:
        self._changes.batches.change(event.batch)
        detail = json.dumps({"unsubmitted": True}) if event.unsubmitted else None
        state = _state(event.state)
        self._act(event, "batch_closed", batch=event.batch, state=state, reason=event.reason, detail=detail)
        self._changes.unsettled.add(event.batch)

    def submission_doubted(self, event: events.SubmissionDoubted) -> None:
        self._changes.batches.change(event.batch)
        self._act(event, "batch_doubted", batch=event.batch, reason=event.reason)
        self._changes.unsettled.add(event.batch)

    def runs_closed(self, event: events.RunsClosed) -> None:
        ranges = [(int(first), int(stop)) for first, stop in event.ranges]
        detail = json.dumps({"runs": ranges})
        self._act(event, "runs_closed", state=_state(event.state), reason=event.reason, detail=detail)
        self._changes.closed_ranges += ranges

    def attempts_requeued(self, event: events.AttemptsRequeued) -> None:
        at = times.to_text(event.time)
        for run, number in event.attempts:
            row = self._changes.attempts.change(run, number)
            row.queued_at = min(at, row.queued_at or at)
        kept = {"kind": event.kind, "overrides": event.overrides, "as_submitted": event.as_submitted}
        kept |= {"fresh": event.fresh, "batch": event.batch}
        kept |= {"git_commit": event.git_commit, "git_dirty": event.git_dirty}
        self._act_on(event, "requeue", event.attempts, kept, reason=event.reason)

    def attempts_cancelled(self, event: events.AttemptsCancelled) -> None:
        new = times.to_text(event.time), event.reason
        for run, number in event.attempts:
            row = self._changes.attempts.change(run, number)
            if row.cancelled_at is None or new < (row.cancelled_at, row.cancel_reason or ""):
                row.cancelled_at, row.cancel_reason = new
        self._act_on(event, "cancel", event.attempts, {}, reason=event.reason)

    def asked(self, event: events.Asked) -> None:
        kept = {"batches": event.batches}
        self._act_on(event, f"ask_{event.kind}", event.attempts, kept, job_id=event.job_id)

    def _act_on(
        self,
        event: events.AttemptsRequeued | events.AttemptsCancelled | events.Asked,
        kind: str,
        attempts: Sequence[tuple[int, int]],
        kept: dict[str, Any],
        **columns: str | None,
    ) -> None:
        run, attempt = attempts[0] if len(attempts) == 1 else (None, None)
        detail = json.dumps({"attempts": attempts, **kept})
        more = {**columns, "user": event.user, "host": event.host, "detail": detail}
        self._act(event, kind, run=run, attempt=attempt, **more)

    def _act(self, event: Event, kind: str, **columns: str | int | None) -> None:
        """Note an act under a name that follows from its content, so that one found twice is there once."""
        name = hashlib.sha256(f"{self._changes.sweep}\n{events.to_json(event)}".encode("ascii", "backslashreplace"))
        known = {"id": name.hexdigest()[:20], "kind": kind, "at": times.to_text(event.time), **columns}
        self._changes.acts.append(tuple(known.get(column) for column in _ACT_COLUMNS))

    # --- what an agent says

    def _agent(self) -> AgentRow:
        if self._row is None:
            if self._who is None:
                raise JournalError("an agent's event stands in a journal that is no agent's")
            self._row = self._changes.agents.change(self._who.batch, self._who.restart, self._who.node)
        return self._row

    def note_agent_seen(self, latest: float) -> None:
        """An agent was alive when it wrote its latest event, whatever others concluded before."""
        agent = self._row
        if agent is None:
            return
        seen = times.to_text(latest)
        if agent.seen_at is None or seen > agent.seen_at:
            if agent.seen_at is None or agent.state != State.RUNNING.value:
                self._changes.unsettled.add(agent.batch)
            agent.seen_at = seen

    def agent_started(self, event: events.AgentStarted) -> None:
        agent = self._agent()
        slots = [Slot.from_json(data) for data in event.slots]
        agent.host, agent.pid, agent.cluster, agent.job_id = event.host, event.pid, event.cluster, event.job_id
        agent.slots = len(slots)
        agent.started_at = times.to_text(event.time)
        agent.ends_at = None if event.ends_at is None else times.to_text(event.ends_at)
        for slot in slots:
            row = self._changes.slots.change(agent.batch, agent.restart, agent.node, slot.index)
            row.host, row.cpus, row.gpus = event.host, json.dumps(slot.cpus), json.dumps(slot.gpus)
        self._changes.placed.add((agent.batch, agent.restart, agent.node))
        self._changes.unsettled.add(agent.batch)

    def heartbeat(self, event: events.Heartbeat) -> None:
        agent = self._agent()
        at = times.to_text(event.time)
        if agent.heartbeat_at is None or at >= agent.heartbeat_at:
            agent.heartbeat_at, agent.draining = at, event.draining
            agent.busy = event.busy if agent.exit_code is None else 0
        if event.samples:
            self._changes.samples[agent.batch, agent.restart, agent.node][at] = event.samples

    def agent_ended(self, event: events.AgentEnded) -> None:
        agent = self._agent()
        agent.exit_code, agent.busy = event.exit_code, 0
        failed = event.state or (State.TIMEOUT if event.timed_out else State.FAILED).value
        agent.state = failed if event.exit_code else State.COMPLETED.value
        agent.reason = event.reason or None
        agent.ended_at = times.to_text(event.time)
        self._changes.over.add((agent.batch, agent.restart, agent.node))
        self._changes.unsettled.add(agent.batch)

    def _attempt(self, run: int, number: int, of_agent: AgentRow | None = None) -> AttemptRow | None:
        """The attempt's row; None if another agent says that the attempt is its own, and is the one that counts."""
        own = self._own.get((run, number))
        if own is not None:
            return own
        agent = of_agent or self._row or self._agent()
        row = self._changes.attempts.change(run, number)
        owner = (agent.restart, agent.batch, agent.node)
        if row.batch is not None and owner != (row.restart, row.batch, row.node):
            if owner < (row.restart or 0, row.batch, row.node or 0):
                return None
            if row.slot is not None:
                self._changes.left.add((row.batch, row.restart or 0, row.node or 0, row.slot))
            other, row = row, self._changes.attempts.reset(run, number)
            row.queued_at, row.cancelled_at, row.cancel_reason = (
                other.queued_at,
                other.cancelled_at,
                other.cancel_reason,
            )
        row.restart, row.batch, row.node = owner
        if of_agent is None:
            self._own[run, number] = row
        return row

    def _silent_agent(self, name: str) -> AgentRow:
        """The agent of an attempt whose end somebody else found in its result file."""
        who = AgentId.parse(name)
        self._changes.unsettled.add(who.batch)
        return self._changes.agents.change(who.batch, who.restart, who.node)

    def attempt_started(self, event: events.AttemptStarted) -> None:
        row = self._attempt(event.run, event.attempt)
        if row is None:
            return
        row.slot, row.pid, row.spawned_at = event.slot, event.pid, times.to_text(event.time)
        row.git_commit, row.git_dirty = event.git_commit, event.git_dirty
        if row.folder is None:
            row.log = self._changes.paths.place(event.log)

    def attempt_located(self, event: events.AttemptLocated) -> None:
        row = self._attempt(event.run, event.attempt)
        if row is not None:
            row.folder, row.log = map(self._changes.paths.place, (event.run_dir, event.log))
            run = self._changes.runs.get(event.run)
            if run is not None and run.attempt > event.attempt:
                self._follow_folder(row)

    def folder_set_aside(self, event: events.FolderSetAside) -> None:
        row = self._attempt(event.run, event.attempt)
        if row is not None:
            row.set_aside = self._changes.paths.place(event.new_dir)
            for earlier in self._attempts_of(event.run):
                if earlier.number < event.attempt:
                    self._follow_folder(earlier)

    def _follow_folder(self, row: AttemptRow) -> None:
        """Note where an attempt's files lie, if a later one has moved them aside from the folder that all share."""
        moves = {
            later.number: later.set_aside
            for later in self._attempts_of(row.run)
            if later.number > row.number and later.set_aside is not None
        }
        if row.folder is None or not moves:
            return
        known = row.folder  # where it began, or where one of those moves brought it
        first = next((f".attempt-{number - 1}" for number, place in moves.items() if place == known), "")
        shared = known.removesuffix(first)
        place = next((place for place in moves.values() if place.startswith(f"{shared}.attempt-")), known)
        if place != known:
            found = self._changes.attempts.change(row.run, row.number)
            inside = os.path.join(known, "")
            if row.log is not None and row.log.startswith(inside):
                found.log = os.path.join(place, row.log[len(inside) :])
            found.folder = place

    def _attempts_of(self, run: int) -> list[AttemptRow]:
        found = self._changes.attempts.where("run = ?", (run,), lambda row: row.run == run)
        return sorted(found, key=lambda row: row.number)

    def attempt_ended(self, event: events.AttemptEnded) -> None:
        if self._who is not None:
            row = self._attempt(event.run, event.attempt)
            if row is None:
                return
            row.reported = TOLD_BY_AGENT
        else:
            if event.agent is None:
                row = self._changes.attempts.change(event.run, event.attempt)
            else:
                row = self._attempt(event.run, event.attempt, self._silent_agent(event.agent))
            if row is None or not rules.is_told_better(event, row):
                return
            row.reported = TOLD_BY_ACT
        row.state, row.reason = _state(event.state), event.reason or None
        row.exit_code, row.signal, row.by_job_end = event.exit_code, event.signal, event.by_job_end
        row.exception_type, row.exception_message = event.exception_type, event.exception_message
        row.traceback, row.return_value = event.traceback, event.return_value
        row.result = None if event.result is None else self._place_of_result(Attempt(row.run, row.number))
        row.peak_memory_bytes, row.cpu_time_s = event.peak_memory_bytes, event.cpu_time_s
        row.started_at = None if event.started_at is None else times.to_text(event.started_at)
        row.ended_at = times.to_text(event.time)

    def _place_of_result(self, attempt: Attempt) -> str:
        return f"{self._results}{self._changes.paths.result_name(attempt)}"


_HANDLERS: dict[type[Event], Callable[[_Facts, Any], None]] = {
    events.LaunchStarted: _Facts.launch_started,
    events.LaunchEnded: _Facts.launch_ended,
    events.RunsPlanned: _Facts.runs_planned,
    events.BatchPlanned: _Facts.batch_planned,
    events.BatchSubmitted: _Facts.batch_submitted,
    events.SubmissionDoubted: _Facts.submission_doubted,
    events.BatchClosed: _Facts.batch_closed,
    events.RunsClosed: _Facts.runs_closed,
    events.AttemptsRequeued: _Facts.attempts_requeued,
    events.AttemptsCancelled: _Facts.attempts_cancelled,
    events.Asked: _Facts.asked,
    events.AgentStarted: _Facts.agent_started,
    events.Heartbeat: _Facts.heartbeat,
    events.AgentEnded: _Facts.agent_ended,
    events.AttemptStarted: _Facts.attempt_started,
    events.AttemptLocated: _Facts.attempt_located,
    events.FolderSetAside: _Facts.folder_set_aside,
    events.AttemptEnded: _Facts.attempt_ended,
}
