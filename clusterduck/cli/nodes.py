"""``clusterduck nodes``: what each node's slots are doing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from clusterduck import job_words
from clusterduck.cli.exit_codes import ExitCode
from clusterduck.cli.looking import View, opened
from clusterduck.cli.output import Output, narrate
from clusterduck.cli.table import Column
from clusterduck.ledger import heard, queries
from clusterduck.ledger.overrides import as_dict
from clusterduck.ledger.queries import Agent, SlotNow
from clusterduck.wording import duration, elapsed, ids, percent, size

_COLUMNS = (
    Column("slot", right=True),
    Column("run"),
    Column("elapsed", right=True),
    Column("cpus"),
    Column("cpu", right=True),
    Column("memory", right=True),
    Column("gpus"),
    Column("gpu", right=True),
    Column("gpu memory", right=True),
    Column("overrides"),
)


def execute(options: argparse.Namespace) -> ExitCode:
    """Print the nodes at work for all sweeps, or for the one that ``options`` name."""
    with opened(options) as view:
        sweep = None if options.sweep is None else view.sweep(options.sweep)
        agents = heard.corrected(view.connection, queries.agents(view.connection, sweep, alive=True))
        slots: dict[tuple[str, str, int, int], list[SlotNow]] = {}
        for slot in queries.slots(view.connection, sweep, alive=True):
            slots.setdefault((slot.sweep, slot.batch, slot.restart, slot.node), []).append(slot)
        output = Output()
        found = [(agent, slots.get((agent.sweep, agent.batch, agent.restart, agent.node), [])) for agent in agents]
        view.narrate_trouble()
        if options.json:
            output.json(_row(agent, its, view) for agent, its in found)
        elif not found:
            narrate("no node is at work")
        else:
            varying: dict[str, list[str]] = {}
            for position, (agent, its) in enumerate(found):
                if agent.sweep not in varying:
                    varying[agent.sweep] = queries.varying_keys(view.connection, agent.sweep)
                if position:
                    output.line()
                _print(output, agent, its, varying[agent.sweep], view)
    return ExitCode.OK


def _time_left(agent: Agent, view: View) -> float | None:
    return job_words.time_left(agent, view.jobs.get((agent.sweep, agent.batch)))


def _row(agent: Agent, slots: Sequence[SlotNow], view: View) -> dict[str, Any]:
    """A node for programs."""
    return {
        "sweep": agent.sweep,
        "batch": agent.batch,
        "restart": agent.restart,
        "node": agent.node,
        "host": agent.host,
        "agent_pid": agent.pid,
        "cluster": agent.cluster,
        "job_id": agent.job_id,
        "started_at": agent.started_at,
        "heartbeat_at": agent.heartbeat_at,
        "ends_at": agent.ends_at,
        "draining": agent.draining,
        "time_left_s": _time_left(agent, view),
        "cpu_percent": agent.cpu_percent,
        "memory_bytes": agent.memory_bytes,
        "slots": [
            {
                "slot": slot.slot,
                "run": None if slot.run is None else f"{slot.sweep}/{slot.run}",
                "attempt": slot.attempt,
                "overrides": slot.overrides,
                "since": slot.since,
                "cpus": slot.cpus,
                "gpus": slot.gpus,
                "cpu_percent": slot.cpu_percent,
                "memory_bytes": slot.memory_bytes,
                "gpu_percent": slot.gpu_percent,
                "gpu_memory_bytes": slot.gpu_memory_bytes,
                "sampled_at": slot.sampled_at,
            }
            for slot in slots
        ],
    }


def _print(output: Output, agent: Agent, slots: Sequence[SlotNow], varying: Sequence[str], view: View) -> None:
    left = _time_left(agent, view)
    heard_at = agent.heartbeat_at or agent.started_at
    silence = 0.0 if heard_at is None else job_words.silence(heard_at)
    busy = sum(slot.run is not None for slot in slots)
    words = [
        agent.host or "a node that has not reported yet",
        f"{agent.sweep} batch {agent.batch}, job {agent.job_id or '?'}",
        f"{busy} of {len(slots)} slots busy",
        "takes nothing more" if agent.draining else "",
        f"CPU {percent(agent.cpu_percent)}" if agent.cpu_percent is not None else "",
        f"memory {size(agent.memory_bytes)}" if agent.memory_bytes is not None else "",
        f"{duration(left)} left" if left is not None else "",
        f"not heard of for {duration(silence)}" if silence > job_words.SILENT_S else "",
    ]
    output.line("  ".join(word for word in words if word))
    rows = [
        [
            str(slot.slot),
            _run(slot),
            "" if slot.run is None else elapsed(slot.since, None),
            ids(slot.cpus),
            percent(slot.cpu_percent),
            size(slot.memory_bytes),
            ids(slot.gpus),
            percent(slot.gpu_percent),
            size(slot.gpu_memory_bytes),
            _overrides(slot, varying),
        ]
        for slot in slots
    ]
    output.table(_COLUMNS, rows)


def _run(slot: SlotNow) -> str:
    if slot.run is None:
        return ""
    return f"{slot.sweep}/{slot.run}" if slot.attempt == 1 else f"{slot.sweep}/{slot.run} (attempt {slot.attempt})"


def _overrides(slot: SlotNow, varying: Sequence[str]) -> str:
    values = as_dict(slot.overrides)
    return " ".join(f"{key}={values[key]}" for key in varying if key in values)
