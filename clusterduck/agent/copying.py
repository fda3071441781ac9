"""Deep copies of configurations in a tenth of the time.

Hydra copies the whole configuration of a run a dozen times before it calls the function, which is most of what a run
costs. Most of that time is for making each node by its class, with checks of a value that is not there yet, and for the
metadata that OmegaConf keeps with it: plain values, which ``copy.deepcopy`` takes apart and puts together by the
protocol for unknown objects.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, ListConfig, nodes
from omegaconf.base import ContainerMetadata, Metadata

#: The metadata of OmegaConf 2.3 and 2.4: types, a key, truth values, but for ``flags`` and ``resolver_cache``.
KNOWN = frozenset(
    ("ref_type", "object_type", "optional", "key", "flags", "flags_root", "resolver_cache", "key_type", "element_type")
)

#: Classes of nodes that have a value and nothing besides.
_VALUES = (
    *(nodes.AnyNode, nodes.StringNode, nodes.PathNode, nodes.BytesNode),
    *(nodes.IntegerNode, nodes.FloatNode, nodes.BooleanNode),
)


def quicken() -> None:
    """Have ``copy.deepcopy`` copy OmegaConf's nodes field by field, in this process and those forked from it; what it
    makes is the same. Nothing changes where this OmegaConf keeps other fields than are known here."""
    if not {field.name for field in dataclasses.fields(ContainerMetadata)} <= KNOWN:
        return
    classes: dict[type, str] = {DictConfig: "_content", ListConfig: "_content", **dict.fromkeys(_VALUES, "_val")}
    if all(vars(cls(None)).keys() == {"_metadata", "_parent", "_flags_cache", it} for cls, it in classes.items()):
        Metadata.__deepcopy__ = _metadata  # type: ignore[attr-defined]
        for cls, copier in _COPIERS.items():
            cls.__deepcopy__ = copier  # type: ignore[attr-defined]


def _metadata(metadata: Metadata, memo: dict[int, Any]) -> Metadata:
    result = object.__new__(type(metadata))
    fields = result.__dict__
    fields.update(metadata.__dict__)
    fields["flags"] = None if metadata.flags is None else metadata.flags.copy()
    cache = metadata.resolver_cache
    fields["resolver_cache"] = deepcopy(cache, memo) if cache else defaultdict(dict)
    return result


def _value_of(cls: type[nodes.ValueNode]) -> Callable[[Any, dict[int, Any]], Any]:
    def copied(node: nodes.ValueNode, memo: dict[int, Any]) -> nodes.ValueNode:
        result = object.__new__(cls)
        fields = node.__dict__
        metadata = _metadata(fields["_metadata"], memo)
        result.__dict__.update(_metadata=metadata, _parent=fields["_parent"], _flags_cache=None, _val=fields["_val"])
        return result

    return copied


def _mapping(node: DictConfig, memo: dict[int, Any]) -> DictConfig:
    result = object.__new__(DictConfig)
    content = _container(node, result, memo)
    if isinstance(content, dict):
        content = {key: _child(child, result, memo) for key, child in content.items()}
    result.__dict__["_content"] = content
    return result


def _sequence(node: ListConfig, memo: dict[int, Any]) -> ListConfig:
    result = object.__new__(ListConfig)
    content = _container(node, result, memo)
    if isinstance(content, list):
        content = [_child(child, result, memo) for child in content]
    result.__dict__["_content"] = content
    return result


def _container(node: Any, result: Any, memo: dict[int, Any]) -> Any:
    """Copy all but the content, which is returned; the parent is that of the original."""
    fields = node.__dict__
    cache = fields["_flags_cache"]
    result.__dict__["_metadata"] = _metadata(fields["_metadata"], memo)
    result.__dict__["_parent"] = fields["_parent"]
    result.__dict__["_flags_cache"] = None if cache is None else cache.copy()
    return fields["_content"]


def _child(child: Any, parent: Any, memo: dict[int, Any]) -> Any:
    copier = _COPIERS.get(type(child))
    result = memo.get(id(child))
    if result is None and copier is not None:
        result = memo[id(child)] = copier(child, memo)
    elif result is None:  # its own way of copying may go on to its parent
        before = child.__dict__["_parent"]
        child.__dict__["_parent"] = None
        try:
            result = deepcopy(child, memo)
        finally:
            child.__dict__["_parent"] = before
    result.__dict__["_parent"] = parent
    return result


_COPIERS: dict[type, Callable[[Any, dict[int, Any]], Any]] = {
    DictConfig: _mapping,
    ListConfig: _sequence,
    **{cls: _value_of(cls) for cls in _VALUES},
}
