"""`make data TEXT=books/`, `LABELLED=tickets.csv`, `CHATS=chats.jsonl`: a user's own data.

The command writes an entry of sources.toml and the params that name the data; `make data` then
builds data/ as for every other source.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from flows.sweeps.params import edited
from gptmill.files import write_text
from gptmill.sources.build import MAKES, make_files, read_place
from gptmill.sources.fetch import own_path
from gptmill.sources.table import Place, parse
from tasks.project import graph

USAGE = (
    "`make data` takes no arguments, or a path as TEXT=books/, LABELLED=tickets.csv or "
    "CHATS=chats.jsonl, with FIELDS=text=COLUMN,label=COLUMN for other column names and "
    "TURNS=first for the first exchange alone of each conversation"
)

DEFAULT = {"text": "text"}  # columns for text files, which have none


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of own data: maker, target, path of the result, and the param for the path."""

    make: str
    target: str
    path: str
    param: str | None
    options: tuple[str, ...]


KINDS: Mapping[str, Kind] = {
    "TEXT": Kind(
        make="texts",
        target="text/{name}",
        path="data/text/{name}",
        param=None,
        options=("fields",),
    ),
    "LABELLED": Kind(
        make="labels",
        target="labelled",
        path="data/labelled/{name}.csv",
        param="split.labelled",
        options=("name", "fields"),
    ),
    "CHATS": Kind(
        make="chats",
        target="instructions",
        path="data/instructions/{name}.json",
        param="split.instructions",
        options=("name", "fields", "turns"),
    ),
}


@dataclass(frozen=True)
class Request:
    """The arguments of the command."""

    kind: str
    path: str
    fields: Mapping[str, str]
    turns: str


@dataclass(frozen=True)
class Entry:
    """An entry of sources.toml: name, kind, place in data/, and the columns in words."""

    name: str
    kind: str
    path: str
    columns: str


def requested(arguments: Sequence[str]) -> Request | None:
    """Return the request of `NAME=value` arguments, None without arguments.

    Raises ValueError for unknown names, for none or several paths, and for unreadable fields.
    """
    values = dict(argument.partition("=")[::2] for argument in arguments)
    kinds = [name for name in KINDS if values.get(name)]
    if not arguments:
        return None
    if len(kinds) != 1 or not set(values) <= {*KINDS, "FIELDS", "TURNS"}:
        raise ValueError(f"{USAGE}; given: {' '.join(arguments)}")
    pairs = [pair.partition("=") for pair in values.get("FIELDS", "").split(",") if pair]
    fields = {role.strip(): column.strip() for role, _, column in pairs}
    if not all(role and column for role, column in fields.items()) or len(fields) < len(pairs):
        raise ValueError(f"FIELDS must be like text=COLUMN,label=COLUMN, not {values['FIELDS']}")
    turns = values.get("TURNS", "all")
    return Request(kinds[0], values[kinds[0]], fields, turns)


@contextmanager
def entered(root: Path, request: Request) -> Iterator[Entry]:
    """Write a request into sources.toml and params.yaml for the block.

    The data is converted on trial before. Both files are as before where the block raises
    ValueError or OSError; a killed command leaves the entry to the next `make data`.
    """
    kind = KINDS[request.kind]
    place, columns = _place(root, request)
    name = name_of(root, request.path)
    options = {"name": name, "fields": dict(columns) or DEFAULT, "turns": request.turns}
    options = {key: options[key] for key in kind.options}
    table, params = root / "sources.toml", root / "params.yaml"
    before = {path: graph.read_text(path) for path in (table, params)}
    row = {
        "name": name,
        "target": kind.target.format(name=name),
        "licence": "mine",
        "place": [{"kind": "path", "path": request.path, "make": kind.make, "options": options}],
    }
    path = kind.path.format(name=name)
    (source,) = parse({"source": [row]}, makers=MAKES)
    make_files(source, source.places[0], own_path(place, root))
    write_text(table, with_entry(before[table], row))
    if kind.param is not None:
        write_text(params, edited(before[params], {kind.param: path}))
    try:
        yield Entry(name, request.kind, path, _shown(columns))
    except (ValueError, OSError):
        for file, text in before.items():
            write_text(file, text)
        raise


def name_of(root: Path, path: str) -> str:
    """Return a source's name: the file's or folder's name in lower-case letters and dashes."""
    from gptmill.sources.own.tables import stem_of

    full = (root / Path(path).expanduser()).resolve()
    name = full.name if full.is_dir() else stem_of(full.name)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "mine"


def with_entry(text: str, row: Mapping[str, Any]) -> str:
    """Return sources.toml's text with an entry added, or updated in place; comments stay.

    Raises ValueError for an entry of the same name with other content than this command writes.
    """
    try:
        table = tomlkit.parse(text)
    except TOMLKitError as error:
        raise ValueError(f"sources.toml: {error}") from None
    same = [found for found in table.get("source", []) if found.get("name") == row["name"]]
    if not same:
        return f"{text.rstrip()}\n\n{_dumped(row)}"
    (found,), (place,) = same, row["place"]
    present = found.get("place", [{}])[0]
    if found.get("target") != row["target"] or present.get("make") != place["make"]:
        raise ValueError(
            f"sources.toml has a different source {row['name']}; rename your file or folder, or "
            "remove the entry"
        )
    found.pop("enabled", None)
    present["path"] = place["path"]
    for option, value in place["options"].items():
        present["options"][option] = _inline(value)
    return tomlkit.dumps(table)


def _dumped(row: Mapping[str, Any]) -> str:
    """Return an entry as TOML, in the layout of sources.toml."""
    (place,) = row["place"]
    document = tomlkit.document()
    source, at, options = tomlkit.table(), tomlkit.table(), tomlkit.table()
    for name in ("name", "target", "licence"):
        source.add(name, row[name])
    for name in ("kind", "path", "make"):
        at.add(name, place[name])
    for name, value in place["options"].items():
        options.add(name, _inline(value))
    at.add("options", options)
    places, sources = tomlkit.aot(), tomlkit.aot()
    places.append(at)
    source.add("place", places)
    sources.append(source)
    document.add("source", sources)
    return tomlkit.dumps(document)


def _inline(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    table = tomlkit.inline_table()
    table.update(value)
    return table


def _place(root: Path, request: Request) -> tuple[Place, Mapping[str, str]]:
    """Return the user's path as a place, and the columns: as given, or as guessed."""
    from gptmill.sources.own.chats import chat_fields
    from gptmill.sources.own.labels import label_fields
    from gptmill.sources.own.texts import text_fields

    place = Place("path", {"path": request.path}, None, (), "copy", {})
    members = read_place(place, own_path(place, root))
    guess: dict[str, Callable[[Mapping[str, bytes]], Mapping[str, str]]] = {
        "TEXT": text_fields,
        "LABELLED": label_fields,
        "CHATS": chat_fields,
    }
    return place, request.fields or guess[request.kind](members)


def _shown(columns: Mapping[str, str]) -> str:
    listed = ", ".join(f"{role} from {column}" for role, column in columns.items())
    return f" ({listed})" if listed else ""
