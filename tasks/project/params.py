"""What a person writes in params.yaml and files like it, checked: one sentence a mistake."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from tasks.project import graph

T = TypeVar("T")


def checked(kind: type[T], section: str) -> T:
    """Return a section of params.yaml as `kind`. Raises ValueError, one line a mistake."""
    content = graph.params()
    if section not in content:
        raise ValueError(f"params.yaml has no section `{section}`")
    return validated(kind, content[section], file="params.yaml", section=section)


def validated(kind: type[T], content: Any, *, file: str, section: str = "") -> T:
    """Return what a file holds, or a section of it, as `kind`.

    Raises ValueError, one line a mistake.
    """
    try:
        # through JSON, whose strict mode takes mappings for dataclasses and lists for tuples
        adapter = _adapter(cast("Any", kind))  # a type is hashable, which mypy doubts
        found: T = adapter.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        lines = (_sentence(mistake, file, section) for mistake in error.errors())
        raise ValueError("\n".join(lines)) from None
    except TypeError:
        where = f"{file}: `{section}`" if section else file
        raise ValueError(f"{where} holds something that is no plain value") from None
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _sentence(mistake: Mapping[str, Any], file: str, section: str) -> str:
    # in brackets stand pydantic's own names for the kinds of value that a key may have
    parts = (str(part) for part in mistake["loc"])
    where = ".".join(part for part in (section, *parts) if part and part[0] not in "{[")
    match mistake["type"]:
        case "missing":
            return f"{file}: {where} is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{file}: {where} is unknown: remove it or mend its name"
    what = mistake["msg"].removeprefix("Value error, ")
    given = mistake["input"]
    shown = "" if isinstance(given, dict) else f" (given: {json.dumps(given, default=str)})"
    return f"{file}: {where + ': ' if where else ''}{what[0].lower()}{what[1:]}{shown}"
