"""Validation of params.yaml and similar files, with a sentence per mistake."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from tasks.project import graph

T = TypeVar("T")


def checked(kind: type[T], section: str) -> T:
    """Load a section of params.yaml as `kind`.

    Raises ValueError with one line per mistake.
    """
    content = graph.params()
    if section not in content:
        raise ValueError(f"params.yaml has no section `{section}`")
    return validated(kind, content[section], file="params.yaml", section=section)


def validated(kind: type[T], content: Any, *, file: str, section: str = "") -> T:
    """Validate the content of a file or section as `kind`.

    Raises ValueError with one line per mistake.
    """
    try:
        # pydantic's strict JSON mode accepts mappings for dataclasses and lists for tuples
        adapter = _adapter(cast("Any", kind))  # mypy does not accept a type as hashable
        value: T = adapter.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        lines = (_sentence(mistake, file, section) for mistake in error.errors())
        raise ValueError("\n".join(lines)) from None
    except TypeError:
        where = f"{file}: `{section}`" if section else file
        raise ValueError(
            f"{where} holds a value of an unsupported type: allowed are text, numbers, booleans, "
            "null, lists and mappings"
        ) from None
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _sentence(mistake: Mapping[str, Any], file: str, section: str) -> str:
    # skip parts in brackets, pydantic's own names for the kinds of value allowed for a key
    parts = (str(part) for part in mistake["loc"])
    where = ".".join(part for part in (section, *parts) if part and part[0] not in "{[")
    match mistake["type"]:
        case "missing":
            return f"{file}: {where} is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{file}: {where} is unknown: remove the key or correct the name"
    message = mistake["msg"].removeprefix("Value error, ")
    value = mistake["input"]
    suffix = "" if isinstance(value, dict) else f" (given: {json.dumps(value, default=str)})"
    return f"{file}: {where + ': ' if where else ''}{message[0].lower()}{message[1:]}{suffix}"
