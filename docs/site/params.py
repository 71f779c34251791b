"""The reference of params.yaml, from the classes that check each section."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.site.markdown import code, table
from flows.registry.rules import Gate
from gptmill.device import RuntimeConfig
from gptmill.generation.decoder import GenerationConfig
from gptmill.training.guard import GuardConfig
from gptmill.training.optimizers import OptimizerConfig
from gptmill.training.plan import StoppingConfig
from tasks.frame.resume import ResumeConfig
from tasks.frame.stage import load
from tasks.project import graph
from tasks.project.environment import ROOT

HEAD = ("param", "value", "type", "meaning")
SHARED = {
    "optimizer": OptimizerConfig,
    "stopping": StoppingConfig,
    "guard": GuardConfig,
    "generation": GenerationConfig,
}
WORDS = {bool: "true or false", int: "integer", float: "number", str: "text", NoneType: "null"}
CHOICES = re.compile(r"^[\w.-]+( \| [\w.-]+)+(: |, |$)")
"""Allowed words at the start of a comment: the column of types has them."""
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def page() -> str:
    """Return the page."""
    stages = {name: load(name).section for name in graph.stages()}
    parts = [
        "# Params\n\n`params.yaml` holds every value that a user may change, with a section per "
        "stage. A key that is missing, unknown or out of bounds stops a command before any work. "
        "`make params STAGE=pretrain` prints the values that a stage receives. Values below are "
        f"the defaults. `seed` is {graph.params()['seed']}.\n"
    ]
    for name, kind in {"runtime": RuntimeConfig, "resume": ResumeConfig, **stages}.items():
        parts.append(_section(name, kind, graph.params()[name]))
    parts.append("## Shared blocks\n\nA stage includes a block and may override values.\n")
    for name, kind in SHARED.items():
        parts.append(_section(name, kind, graph.params()["shared"][name], level=3))
    parts.append(_section("gate", Gate, graph.params()["gate"]))
    return "\n".join(parts)


def _section(name: str, kind: type, values: Mapping[str, Any], *, level: int = 2) -> str:
    about = inspect.cleandoc(kind.__doc__ or "").replace(
        f"params.yaml `{name}:`", f"Section `{name}`"
    )
    rows = [
        (code(place.removeprefix(f"{name}.")), *row) for place, *row in _rows(kind, name, values)
    ]
    return f"{'#' * level} {name}\n\n{about}\n\n{table(HEAD, rows)}"


def _rows(kind: type, path: str, values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row per field; a block of several fields has a row per field."""
    for name, (hint, note) in _fields(kind).items():
        value = values.get(name)
        place = f"{path}.{name}"
        block = _block(hint)
        if name in SHARED and path != "shared":
            yield place, _difference(name, value), f"[block](#{name})", _meaning(place, note)
        elif block and isinstance(value, Mapping):
            yield from _rows(block, place, value)
        else:
            yield place, code(json.dumps(value)), _type(hint), _meaning(place, note)


def _difference(name: str, value: Mapping[str, Any]) -> str:
    shared = graph.params()["shared"][name]
    changed = {key: item for key, item in value.items() if shared.get(key) != item}
    return ", ".join(code(f"{key}: {json.dumps(item)}") for key, item in changed.items())


def _fields(kind: type) -> dict[str, tuple[Any, str]]:
    """Return type and note of each field."""
    notes = _notes(kind)
    if issubclass(kind, BaseModel):
        return {
            one.alias or name: (_annotated(one), one.description or notes.get(name, ""))
            for name, one in kind.model_fields.items()
        }
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: (hints[one.name], notes.get(one.name, "")) for one in fields(kind)}


def _annotated(field: FieldInfo) -> Any:
    """Return the type of a pydantic field, with its bounds."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


@cache
def _notes(kind: type) -> dict[str, str]:
    """Return the docstrings below the fields of a class and of the classes above."""
    notes: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if parent.__module__.split(".")[0] not in ("gptmill", "tasks", "flows"):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                assert isinstance(field.target, ast.Name)
                notes[field.target.id] = ast.literal_eval(doc.value)
    return notes


def _block(hint: Any) -> type | None:
    """Return the class of a block in a type, None for plain values."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    blocks = [k for k in kinds if isinstance(k, type) and (is_dataclass(k) or _is_model(k))]
    return blocks[0] if blocks else None


def _is_model(kind: type) -> bool:
    return issubclass(kind, BaseModel)


def _type(hint: Any) -> str:
    """Return a type in words, with the bounds."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return ", ".join([_type(inner[0]), *filter(None, map(_bounds, inner[1:]))])
    if origin is Literal:
        return " or ".join(code(json.dumps(word).strip('"')) for word in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in inner))
    if origin in (list, tuple):
        return f"list of {_type(inner[0])}"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)).lower())


def _bounds(constraint: Any) -> str:
    if getattr(constraint, "min_length", None):
        return "not empty"
    found = [
        f"{BOUNDS[key]} {getattr(constraint, key):g}" for key in BOUNDS if hasattr(constraint, key)
    ]
    return ", ".join(found)


def _meaning(path: str, note: str) -> str:
    """Return the comment of params.yaml, and the note in the code where longer."""
    comments = _comments()
    comment = comments.get(path) or comments.get(f"shared.{path}", "")
    comment = CHOICES.sub("", comment)
    note = " ".join(note.split()).rstrip(".")
    return ". ".join(filter(None, [comment, note if len(note) > len(comment) else ""]))


@cache
def _comments() -> dict[str, str]:
    """Return the comments of params.yaml by the path of the key before."""
    comments: dict[str, str] = {}
    path: list[str] = []
    for line in (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines():
        found = re.match(r"( *)([\w-]+):.*?(?: # ?(.*))?$", line)
        if found:
            path = [*path[: len(found[1]) // 2], found[2]]
            comments[".".join(path)] = (found[3] or "").strip()
        elif path and (more := re.match(r" {10,}# (.*)", line)):
            comments[".".join(path)] += " " + more[1]
    return comments
