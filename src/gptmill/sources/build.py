"""The files of `data/`, built from fetched sources.

The hash of each file is checked and recorded.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from gptmill.data.documents import decode_text, text_pieces
from gptmill.files import sha256, write_json
from gptmill.origins import manifest_of
from gptmill.sources.archive import check_found, read_members, visible_files
from gptmill.sources.bpe import bpe_files
from gptmill.sources.exercises import exercises
from gptmill.sources.questions import questions
from gptmill.sources.sms import sms_table
from gptmill.sources.table import TARGETS, TEXT, Place, Source, describe
from gptmill.sources.text import documents, kjv_books

Made = Mapping[str, bytes | Path]  # file name in the target folder: content, or path of the content


def rows(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return a file of instruction rows, checked, as `instructions.json`.

    Sources of the same target join in this file. Raises ValueError for unfit rows and for
    several files.
    """
    from gptmill.data.row_files import parse_instructions  # imports pandas, for this maker alone

    if len(members) > 1:
        raise ValueError(f"rows come from one file, not from {', '.join(sorted(members))}")
    ((name, content),) = members.items()
    parse_instructions(decode_text(content, name), Path(name))
    return {"instructions.json": content}


def own(make: str) -> Callable[..., Mapping[str, bytes]]:
    """Return a maker for files in the forms people have them."""

    def maker(members: Mapping[str, bytes], **options: Any) -> Mapping[str, bytes]:
        from gptmill.sources.own import chats, labels, texts  # import pandas and pyarrow

        makers: dict[str, Callable[..., Mapping[str, bytes]]] = {
            "texts": texts.texts,
            "labels": labels.labels,
            "chats": chats.chats,
        }
        return makers[make](members, **options)

    return maker


MAKERS: Mapping[str, Callable[..., Mapping[str, bytes]]] = {
    "bpe": bpe_files,
    "documents": documents,
    "exercises": exercises,
    "kjv-books": kjv_books,
    "questions": questions,
    "rows": rows,
    "sms": sms_table,
    "texts": own("texts"),
    "labels": own("labels"),
    "chats": own("chats"),
}
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "exercises": ("seed", "rows"),
    "texts": ("fields",),
    "labels": ("name", "fields"),
    "chats": ("name", "fields", "turns"),
}
# Allowed values of `make`, each with the names of the required options.
MAKES: Mapping[str, tuple[str, ...]] = {"copy": ()} | {
    name: OPTIONS.get(name, ()) for name in MAKERS
}


def make_files(source: Source, place: Place, fetched: Path) -> Made:
    """Make a source's files from a place that carries it.

    Raises ValueError if the place does not match the table: a member is missing, two members
    would become the same file, or the hash of a file differs from the hash in the table.
    """
    files: Made
    if place.make == "copy":
        files = _copies(place, fetched)
    else:
        files = MAKERS[place.make](read_place(place, fetched), **place.options)
    for name, expected in source.files.items():
        actual = digest(files[name]) if name in files else "(file missing)"
        if actual != expected:
            raise ValueError(
                f"{place} gives {name} with SHA-256 {actual}, the table says {expected}"
            )
    return files


def add_files(folder: Path, target: str, made: Made) -> dict[str, str]:
    """Write the files below `folder/target`; return the SHA-256 of each, by the path.

    `folder` is a folder in the making: the caller flushes it to disk as a whole. The paths are
    relative to `folder`. If two sources write the same JSON file, the lists are
    joined in the table's order; for every file without a JSON list, a second source raises
    ValueError. The hash is that of the file before it was joined.
    """
    digests = {}
    for name in sorted(made):
        content = made[name]
        path = folder / target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digests[path.relative_to(folder).as_posix()] = digest(content)
        if path.exists():
            content = _joined(path, content, f"{target}/{name}")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)
    return digests


Near = Mapping[str, Mapping[str, Any]]
"""Near-duplicate documents by path: `group`, a document that stands for the group; `twin`, the most
similar document found; and the `similarity` to the twin."""


def near_texts(folder: Path, digests: Mapping[str, str]) -> Near:
    """Find the near-duplicates among the documents below `folder`/text.

    Of a group, the lowest second half of the hash stands for all: the choice depends on texts
    alone, and says nothing of the first half, which decides the part of a document.
    """
    from gptmill.data.near_documents import groups, near_documents  # imports pandas

    names = sorted(name for name in digests if name.startswith(f"{TEXT}/"))
    pairs = near_documents([partial(text_pieces, folder / name) for name in names])
    near: dict[str, dict[str, Any]] = {}
    for pair in sorted(pairs):  # the highest similarity comes last, and stays
        for own, twin in ((pair.first, pair.second), (pair.second, pair.first)):
            near[names[own]] = {"twin": names[twin], "similarity": round(pair.similarity, 4)}
    for numbers in groups(pairs):
        members = [names[number] for number in numbers]
        group = min(members, key=lambda name: (digests[name][32:], name))
        for name in members:
            near[name]["group"] = group
    return near


def write_manifest(
    folder: Path,
    made_from: Mapping[str, list[Source]],
    digests: Mapping[str, str],
    near: Near,
) -> None:
    """Write `manifest/KIND.json` for each kind of data.

    A manifest holds the hashes and sizes of the files and the licences of the sources. All
    the places of a source are listed, not only the place used: the same bytes from a different
    place are the same data. `digests` are the hashes of files that a single source made. A
    near-duplicate has the entry `near`.
    """
    for kind in TARGETS:
        of_kind = {name: made_from[name] for name in made_from if name.startswith(f"{kind}/")}
        path = manifest_of(folder, kind)
        path.parent.mkdir(exist_ok=True)
        write_json(path, _manifest(folder, of_kind, digests, near))


def _manifest(
    folder: Path, made_from: Mapping[str, list[Source]], digests: Mapping[str, str], near: Near
) -> dict[str, Any]:
    files = {
        name: {
            "sha256": digests[name] if len(sources) == 1 else sha256(folder / name),
            "bytes": (folder / name).stat().st_size,
            "sources": [source.name for source in sources],
            **({"near": dict(near[name])} if name in near else {}),
        }
        for name, sources in made_from.items()
    }
    by_name = {source.name: source for sources in made_from.values() for source in sources}
    return {"files": files, "sources": {name: describe(source) for name, source in by_name.items()}}


def file_name(place: Place) -> str:
    """Return the name in data/ for a single-file place."""
    path = urlsplit(place.at["url"]).path if place.kind == "http" else place.at["path"]
    return PurePosixPath(path).name


def read_place(place: Place, fetched: Path) -> Mapping[str, bytes]:
    """Return the content of a place's files by name.

    A folder gives paths below the folder, whatever else the folder holds; names from an archive
    lose the folders common to all members.
    """
    if not (place.members or fetched.is_dir()):
        return {file_name(place): fetched.read_bytes()}
    members = read_members(fetched, place.members or ("*",))
    if fetched.is_dir():
        return members
    common = os.path.commonpath([f"/{PurePosixPath(name).parent}" for name in members])
    return {os.path.relpath(f"/{name}", common): members[name] for name in members}


def _copies(place: Place, fetched: Path) -> Made:
    """Return the files of a place, unchanged.

    Large files (weights) are returned as paths: copied later, never read whole.
    """
    if fetched.is_dir():
        patterns = place.members or ("*",)
        files = {
            path.relative_to(fetched).as_posix(): path for path in visible_files(fetched, patterns)
        }
        check_found(files, patterns, str(place))
        return dict(files)
    if not place.members:
        return {file_name(place): fetched}
    members = read_members(fetched, place.members)
    copies: Made = {PurePosixPath(name).name: content for name, content in members.items()}
    if len(copies) < len(members):
        raise ValueError(
            f"{place} has two members with the same file name; list fewer members in the table"
        )
    return copies


def digest(content: bytes | Path) -> str:
    """Return the SHA-256 of content in memory or on disk."""
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256(content)


def _joined(path: Path, content: bytes | Path, name: str) -> bytes:
    added = content if isinstance(content, bytes) else content.read_bytes()
    rows = _json_list(path.read_bytes(), path), _json_list(added, path)
    if None in rows:
        raise ValueError(f"two sources make {name}; give each source a different target")
    joined: list[Any] = [row for part in rows for row in part or ()]
    return (json.dumps(joined, indent=1, ensure_ascii=False) + "\n").encode()


def _json_list(content: bytes, path: Path) -> list[Any] | None:
    value = json.loads(content) if path.suffix == ".json" else None
    return value if isinstance(value, list) else None
