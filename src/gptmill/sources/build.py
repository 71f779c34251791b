"""From what was fetched to the files of `data/`, with the hash of each checked and recorded."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from gptmill.files import sha256, write_bytes, write_json
from gptmill.origins import manifest_of
from gptmill.sources.archive import check_found, read_members, visible_files, wanted
from gptmill.sources.bpe import bpe_files
from gptmill.sources.exercises import exercises
from gptmill.sources.questions import questions
from gptmill.sources.sms import sms_table
from gptmill.sources.table import TARGETS, Place, Source, describe
from gptmill.sources.text import documents, kjv_books

Made = dict[str, bytes | Path]  # a file's name in its folder, and its bytes or where they are

MAKERS: Mapping[str, Callable[..., dict[str, bytes]]] = {
    "bpe": bpe_files,
    "documents": documents,
    "exercises": exercises,
    "kjv-books": kjv_books,
    "questions": questions,
    "sms": sms_table,
}
# What `make` may say, and the options that go with it.
MAKES: Mapping[str, tuple[str, ...]] = {"copy": ()} | {
    name: ("seed", "rows") if name == "exercises" else () for name in MAKERS
}


def make_files(source: Source, place: Place, fetched: Path) -> Made:
    """Return the files that a source becomes, from one place that carries it.

    Raises ValueError where the place has not what the table says: a member is missing, two
    members would become one file, or a file has another hash than the source demands.
    """
    if place.make == "copy":
        made = _copies(place, fetched)
    else:
        made = dict(MAKERS[place.make](_members(place, fetched), **place.options))
    for name, expected in source.files.items():
        found = digest(made[name]) if name in made else "no such file"
        if found != expected:
            raise ValueError(
                f"{place} gives {name} with SHA-256 {found}, the table says {expected}"
            )
    return made


def add_files(folder: Path, target: str, made: Made) -> list[str]:
    """Write the files below `folder/target` and return their paths below `folder`.

    Two sources may write one JSON file, whose lists are then joined in the table's order;
    any other file may come from one source only, or ValueError is raised.
    """
    paths = []
    for name, content in sorted(made.items()):
        path = folder / target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            write_bytes(path, _joined(path, content, f"{target}/{name}"))
        elif isinstance(content, bytes):
            write_bytes(path, content)
        else:
            shutil.copyfile(content, path)
        paths.append(path.relative_to(folder).as_posix())
    return paths


def write_manifest(folder: Path, made_from: Mapping[str, list[Source]]) -> None:
    """Write `manifest/KIND.json` for each kind: its files' hashes and sizes, its sources' licences.

    It names all the places that may carry a source, not the one that did, so that the same
    bytes from elsewhere are the same data.
    """
    for kind in TARGETS:
        of_kind = {name: made_from[name] for name in made_from if name.startswith(f"{kind}/")}
        path = manifest_of(folder, kind)
        path.parent.mkdir(exist_ok=True)
        write_json(path, _manifest(folder, of_kind))


def _manifest(folder: Path, made_from: Mapping[str, list[Source]]) -> dict[str, Any]:
    files = {
        name: {
            "sha256": sha256(folder / name),
            "bytes": (folder / name).stat().st_size,
            "sources": [source.name for source in sources],
        }
        for name, sources in made_from.items()
    }
    known = {source.name: source for sources in made_from.values() for source in sources}
    return {"files": files, "sources": {name: describe(source) for name, source in known.items()}}


def file_name(place: Place) -> str:
    """Return the name under which a single file that a place stands for is kept in data/."""
    return PurePosixPath(place.at.get("url") or place.at["path"]).name


def _members(place: Place, fetched: Path) -> dict[str, bytes]:
    if place.members or fetched.is_dir():
        return read_members(fetched, place.members or ("*",))
    return {file_name(place): fetched.read_bytes()}


def _copies(place: Place, fetched: Path) -> Made:
    """Return files as they are; big ones (weights) are copied later, never read whole."""
    if fetched.is_dir():
        files = {path.relative_to(fetched).as_posix(): path for path in visible_files(fetched)}
        check_found(files, place.members or ("*",), str(place))
        return {name: files[name] for name in files if wanted(name, place.members or ("*",))}
    if not place.members:
        return {file_name(place): fetched}
    members = read_members(fetched, place.members)
    made: Made = {PurePosixPath(name).name: content for name, content in members.items()}
    if len(made) < len(members):
        raise ValueError(f"{place} has two members of one name; name fewer in the table")
    return made


def digest(content: bytes | Path) -> str:
    """Return the SHA-256 of a file to be, wherever its bytes are."""
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256(content)


def _joined(path: Path, content: bytes | Path, name: str) -> bytes:
    added = content if isinstance(content, bytes) else content.read_bytes()
    rows = _json_list(path.read_bytes(), path), _json_list(added, path)
    if None in rows:
        raise ValueError(f"two sources make {name}; give one of them another target")
    joined: list[Any] = [row for part in rows for row in part or ()]
    return (json.dumps(joined, indent=1, ensure_ascii=False) + "\n").encode()


def _json_list(content: bytes, path: Path) -> list[Any] | None:
    read = json.loads(content) if path.suffix == ".json" else None
    return read if isinstance(read, list) else None
