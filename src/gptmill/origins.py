"""Origins of raw data: sources with licence and hash.

Origins are passed from stage to stage. `make data` records the sources in data/manifest/, with a
file for each folder of data/, so that a stage depends only on the data it reads. A stage that reads
raw data writes the sources beside its outputs, and model cards name every source of the weights.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptmill.files import read_json, write_json

MANIFEST = "manifest"
"""Folder of data/: KIND.json records the files below data/KIND and their sources."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A source of raw data.

    The hash covers the only file, or the `sha256sum` list of all files.
    """

    name: str
    licence: str
    attribution: str
    """Author or rights holder, in words; empty where unknown."""
    files: int
    hash: str
    """Algorithm, colon and digest: `sha256:...`."""


def manifest_of(data: Path, path: str) -> Path:
    """Return the manifest file for a path relative to data/."""
    return data / MANIFEST / f"{path.partition('/')[0]}.json"


def read_manifest(data: Path) -> dict[str, dict[str, Any]]:
    """Return all manifest records: `files` by path, `sources` by name."""
    files: dict[str, Any] = {}
    sources: dict[str, Any] = {}
    for path in sorted((data / MANIFEST).glob("*.json")):
        content = read_json(path)
        files |= content["files"]
        sources |= content["sources"]
    return {"files": files, "sources": sources}


def manifest_origins(data: Path, below: str) -> list[Origin]:
    """Return the sources of a file or folder of data/.

    A folder stands for all files below. `LC_ALL=C sha256sum FILES | sha256sum`, run in data/,
    prints the hash of several files.
    """
    content = read_json(manifest_of(data, below))
    hashes: dict[str, dict[str, str]] = {}
    for name, entry in content["files"].items():
        if name == below or name.startswith(f"{below}/"):
            for source in entry["sources"]:
                hashes.setdefault(source, {})[name] = entry["sha256"]
    return [
        Origin(
            name=source,
            licence=content["sources"][source]["licence"],
            attribution=content["sources"][source]["attribution"],
            files=len(digests),
            hash=f"sha256:{_joint_hash(digests)}",
        )
        for source, digests in sorted(hashes.items())
    ]


def _joint_hash(hashes: dict[str, str]) -> str:
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def write_origins(path: Path, origins: Iterable[Origin]) -> None:
    """Write sources beside the data made from them."""
    write_json(path, [asdict(origin) for origin in origins])


def read_origins(path: Path) -> list[Origin]:
    """Read sources written by `write_origins`."""
    return [Origin(**entry) for entry in read_json(path)]
