"""Deep copies of configurations in half the time.

Hydra copies the whole configuration of a run a dozen times before it calls the function, which is most of what a run
costs. Most of that time is for the metadata that OmegaConf keeps with each node: plain values, which ``copy.deepcopy``
takes apart and puts together by the protocol for unknown objects.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from typing import Any

from omegaconf.base import ContainerMetadata, Metadata

#: The metadata of OmegaConf 2.3 and 2.4: types, a key, truth values, but for ``flags`` and ``resolver_cache``.
KNOWN = frozenset(
    ("ref_type", "object_type", "optional", "key", "flags", "flags_root", "resolver_cache", "key_type", "element_type")
)


def quicken() -> None:
    """Have ``copy.deepcopy`` copy OmegaConf's metadata field by field, in this process and those forked from it; what
    it makes is the same. Nothing changes where this OmegaConf keeps other metadata than is known here."""
    if {field.name for field in dataclasses.fields(ContainerMetadata)} <= KNOWN:
        Metadata.__deepcopy__ = _copied  # type: ignore[attr-defined]


def _copied(metadata: Metadata, memo: dict[int, Any]) -> Metadata:
    result = object.__new__(type(metadata))
    result.__dict__.update(metadata.__dict__)
    result.flags = copy.copy(metadata.flags)
    cache = metadata.resolver_cache
    result.resolver_cache = copy.deepcopy(cache, memo) if cache else defaultdict(dict)
    return result
