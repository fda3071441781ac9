"""From ``resources_config`` to slots: :func:`validate` checks at launch, :func:`build_slots` divides on the node."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from clusterduck.agent.node import Node, counted, format_cpu_list
from clusterduck.agent.resources.gpus import survey
from clusterduck.agent.resources.kind import Grant, Kind
from clusterduck.agent.resources.options import show
from clusterduck.agent.resources.registry import read_resources
from clusterduck.errors import ConfigError
from clusterduck.model import Slot

_T = TypeVar("_T")


def validate(resources: object, parallel_runs_per_node: object) -> None:
    """Check at launch all that can be known before a node is seen.

    Raises:
        ConfigError: for unknown kinds and options, values that cannot be meant, and divisions that cannot work.
    """
    if isinstance(parallel_runs_per_node, bool) or not isinstance(parallel_runs_per_node, int):
        raise ConfigError(f"parallel_runs_per_node must be a whole number, not {show(parallel_runs_per_node)}.")
    if not 1 <= parallel_runs_per_node <= 10_000:
        raise ConfigError(f"parallel_runs_per_node must be from 1 to 10000, not {show(parallel_runs_per_node)}.")
    for name, kind in read_resources(resources):
        _guarded(name, kind.check, parallel_runs_per_node)


def build_slots(node: Node, count: int, resources: Mapping[str, object] | None) -> list[Slot]:
    """Divide a node into slots. Kinds must be asked for: without any, a slot binds nothing and sets nothing.

    Raises:
        ConfigError: if the resources cannot be divided so on this node.
    """
    validate(resources, count)
    kinds = read_resources(resources)
    if any(kind.needs_gpus for _, kind in kinds):
        node = survey(node)
    merged = [Grant() for _ in range(count)]
    for name, kind in kinds:
        grants = _divide(name, kind, node, count, merged)
        merged = [_merge(name, old, new) for old, new in zip(merged, grants, strict=True)]
    return [
        Slot(
            index=index,
            cpus=grant.cpus,
            gpus=grant.gpus,
            env=dict(grant.env),
            start_delay_s=grant.start_delay_s,
            tmpdir_vars=grant.tmpdir_vars,
            why=grant.note or "nothing of its own: resources_config is empty",
        )
        for index, grant in enumerate(merged)
    ]


def _guarded(name: str, question: Callable[..., _T], *arguments: object) -> _T:
    """Call a kind, which may be another package's: whatever it raises becomes a sentence."""
    try:
        return question(*arguments)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"resources_config.{name} failed: {type(error).__name__}: {show(str(error))}.") from error


def _divide(name: str, kind: Kind, node: Node, count: int, so_far: Sequence[Grant]) -> list[Grant]:
    grants = _guarded(name, kind.divide, node, count, tuple(so_far))
    if not isinstance(grants, list) or len(grants) != count or not all(isinstance(grant, Grant) for grant in grants):
        raise ConfigError(f"resources_config.{name} did not give one grant to each of {count} slots.")
    for grant in grants:
        strange = sorted({*grant.cpus} - {*node.cpus})
        if strange:
            raise ConfigError(f"resources_config.{name} gives CPUs that are not the job's: {format_cpu_list(strange)}.")
        for variable, value in grant.env.items():
            if not (isinstance(value, str) and re.fullmatch(r"[^=\0]+", variable) and "\0" not in value):
                raise ConfigError(f"resources_config.{name} sets a variable that cannot be: {show((variable, value))}.")
    return grants


def _merge(name: str, old: Grant, new: Grant) -> Grant:
    if old.cpus and new.cpus:
        raise ConfigError(f"resources_config.{name} gives CPUs, but another resource already does; leave one out.")
    clash = [variable for variable, value in new.env.items() if old.env.get(variable, value) != value]
    if clash:
        raise ConfigError(f"resources_config.{name} sets {clash[0]}, but another resource already does; leave one out.")
    return replace(
        old,
        cpus=old.cpus or new.cpus,
        gpus=tuple(dict.fromkeys((*old.gpus, *new.gpus))),
        env={**old.env, **new.env},
        start_delay_s=max(old.start_delay_s, new.start_delay_s),
        tmpdir_vars=tuple(dict.fromkeys((*old.tmpdir_vars, *new.tmpdir_vars))),
        note="; ".join(filter(None, (old.note, _one_line(new.note)))),
    )


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def describe(node: Node, slots: Sequence[Slot]) -> list[str]:
    """Lines for ``verbose``: what the node has, then one for each slot with what it got and why."""
    cores = len({node.core_of.get(cpu, cpu) for cpu in node.cpus})
    numa_nodes = len({node.numa_of.get(cpu, 0) for cpu in node.cpus})
    lines = [
        f"{_one_line(node.host)}: CPUs {format_cpu_list(node.cpus)} ({counted(len(node.cpus), 'CPU')}, "
        f"{counted(cores, 'core')}, {counted(numa_nodes, 'NUMA node')}) for {counted(len(slots), 'slot')}"
    ]
    for slot in slots:
        env = " ".join(f"{name}={value}" for name, value in sorted(slot.env.items()))
        lines.append(_one_line(f"slot {slot.index}: {slot.why}" + (f"; sets {env}" if env else "")))
    return lines
