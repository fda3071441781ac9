"""Reading a kind's options: each value is what was meant, or refused with one sentence that shows what was given."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from clusterduck.errors import ConfigError

#: An index without leading zeros, or NVIDIA's ids: "GPU-…" and "MIG-…" (older ones hold slashes: MIG-GPU-<uuid>/1/0).
GPU_ID = re.compile(r"(0|[1-9][0-9]{0,5})|(GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]{0,127}")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def show(value: object) -> str:
    """A value as it is quoted in a message: on one line, printable, and not long."""
    try:
        text = ascii(value)
    except Exception:  # an int of thousands of digits, or an object that cannot say what it is
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_list(where: str, value: object, example: str) -> list[object]:
    """A list that is not empty.

    Raises:
        ConfigError: if it is anything else, also text or a mapping.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise ConfigError(f"{where} must be a list such as {example}, not {show(value)}.")
    if not value:
        raise ConfigError(f"{where} is an empty list; name some, or leave the option out for the default.")
    return list(value)


def refuse_duplicates(where: str, values: Sequence[object]) -> None:
    """Raise a ConfigError if something is named twice."""
    twice = next((value for value, count in Counter(values).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"{where} names {show(twice)} more than once.")


def read_cpus(where: str, value: object) -> tuple[int, ...] | None:
    """CPU ids in ascending order, or None for no restriction."""
    if value is None:
        return None
    cpus: list[int] = []
    for item in read_list(where, value, "[0, 1, 2, 3]"):
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 10**6:
            raise ConfigError(f"{where} must list CPU numbers such as [0, 1, 2, 3]; {show(item)} is none.")
        cpus.append(item)
    refuse_duplicates(where, cpus)
    return tuple(sorted(cpus))


def read_gpus(where: str, value: object) -> tuple[str, ...] | None:
    """GPU ids as strings in the order given, or None for detection."""
    if value is None:
        return None
    gpus: list[str] = []
    for item in read_list(where, value, "[0, 1] or [GPU-…, GPU-…]"):
        text = item if isinstance(item, str) else ""
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 10**6:
            text = str(item)
        if not GPU_ID.fullmatch(text):
            raise ConfigError(f"{where} must list GPU numbers or GPU-… or MIG-… ids; {show(item)} is none.")
        gpus.append(text)
    refuse_duplicates(where, gpus)
    return tuple(gpus)


def read_seconds(where: str, value: object, default: float) -> float:
    """A number of seconds, not negative and finite."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10**7 or math.isnan(value):
        raise ConfigError(f"{where} must be a number of seconds such as 5 or 0.5, not {show(value)}.")
    return float(value)


def read_variables(where: str, value: object, default: tuple[str, ...]) -> tuple[str, ...]:
    """Names of environment variables."""
    if value is None:
        return default
    names: list[str] = []
    for item in read_list(where, value, "[TMPDIR]"):
        if not isinstance(item, str) or not _VARIABLE.fullmatch(item):
            raise ConfigError(f"{where} must list names of environment variables; {show(item)} is none.")
        names.append(item)
    refuse_duplicates(where, names)
    return tuple(names)
