"""Checks of a model's configuration for all families, in config.json and in GGUF's metadata."""

import math
from collections.abc import Mapping
from typing import Any

LARGEST_SIZE = 2**31 - 1
"""Limit of every size: a product of two sizes fits 64 bits."""


def read_sizes(content: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the sizes of a configuration by our names; raise ValueError for anything else."""
    return {ours: read_size(content, theirs) for ours, theirs in names.items()}


def read_size(content: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Return an integer from 1 to LARGEST_SIZE; `default` stands for a missing key or null."""
    value: Any = default if content.get(name) is None else content[name]
    if not is_integer(value) or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(
            f"{name} is {value!r:.40}; allowed is a whole number from 1 to {LARGEST_SIZE}"
        )
    return int(value)


def read_number(content: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """Return a finite number; `default` stands for a missing key or null."""
    value: Any = default if content.get(name) is None else content[name]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.40}; allowed is a number")
    if abs(value) > 2**1000 or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r:.40}; allowed is a finite number")
    return float(value)


def read_flag(content: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """Return a boolean; `default` stands for a missing key."""
    value = content.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.40}; allowed are true and false")
    return value


def is_integer(value: Any) -> bool:
    """Return whether a JSON value is an integer and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def refuse_variants(content: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ValueError for a value that the model does not compute.

    The first allowed value of each key is the meaning of a missing key.
    """
    for name, allowed in fixed.items():
        if content.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{name} is {content[name]!r}; allowed is {allowed[0]!r}")
