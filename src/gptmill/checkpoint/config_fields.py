"""Checks of config.json for all model families."""

from collections.abc import Mapping
from typing import Any


def read_sizes(content: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the integers of a config.json by our names; raise ValueError for anything else."""
    for name in names.values():
        if not is_integer(content.get(name)):
            raise ValueError(f"{name} is {content.get(name)!r}; allowed is a whole number")
    return {ours: content[theirs] for ours, theirs in names.items()}


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
