"""Comparison of data/ with data.dvc, and DVC commands.

The commands bring data/ and the pin in data.dvc into agreement. data.dvc holds a single hash of
all of data/. DVC leaves the entry `meta` of data.dvc alone, and `meta` tells an edit of the
source table from bytes that changed without an edit: the entry holds the hash of the table, a
hash of each source's files, and a hash of each of the user's own files.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from flows.dvc.command import dvc, run_dvc
from gptmill.files import read_json
from gptmill.origins import MANIFEST, read_manifest
from gptmill.sources.archive import visible_files
from tasks.project.cache import cached_file, drop_damaged, share
from tasks.project.hashes import known

META = "made_from"


@dataclass(frozen=True)
class MadeFrom:
    """Origin of data/: hashes of table, sources, own files.

    `sources` holds a hash of each source's files.
    """

    table: str
    sources: Mapping[str, str]
    own: Mapping[str, str]

    def edited_since(self, pinned: "MadeFrom") -> bool:
        """Return whether the table or a user's own file changed.

        An own file that is missing on this machine counts as unchanged.
        """
        own = {path: digest for path, digest in self.own.items() if path in pinned.own}
        return self.table != pinned.table or any(
            digest != pinned.own[path] for path, digest in own.items()
        )


@dataclass(frozen=True)
class Pin:
    """Content of data.dvc: the hash of data/, and its origin.

    The origin is None where data.dvc does not record an origin.
    """

    md5: str
    origin: MadeFrom | None


def read_pin(root: Path) -> Pin | None:
    """Load data.dvc; return None where the file does not exist."""
    path = root / "data.dvc"
    if not path.exists():
        return None
    content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    meta = (content.get("meta") or {}).get(META)
    return Pin(content["outs"][0]["md5"], MadeFrom(**meta) if meta else None)


def write_pin(root: Path, origin: MadeFrom) -> None:
    """Pin the present data/ with DVC, and record its origin."""
    share(root / "data", root)
    dvc(root, "add", "data")
    yaml, path = YAML(), root / "data.dvc"
    content = yaml.load(path.read_text(encoding="utf-8"))
    meta = {
        "table": origin.table,
        "sources": dict(sorted(origin.sources.items())),
        "own": dict(sorted(origin.own.items())),
    }
    if (content.get("meta") or {}).get(META) != meta:
        content.setdefault("meta", {})[META] = meta
        with path.with_name(".data.dvc.partial").open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
        path.with_name(".data.dvc.partial").replace(path)


def matches(root: Path, pin: Pin) -> bool:
    """Return whether data/ equals the pinned data byte for byte."""
    return (root / "data").is_dir() and known().content_hash(root / "data") == pin.md5


def altered(root: Path) -> list[str]:
    """Return the files of data/ that differ from data/manifest/."""
    recorded = made_here(root)
    hashes = {name: known().sha256(path) for name, path in raw_files(root).items()}
    names = {*recorded, *hashes}
    return sorted(name for name in names if recorded.get(name) != hashes.get(name))


def unsaved(root: Path) -> list[str]:
    """Return the files missing from data/manifest/ and DVC's cache.

    The bytes of these files exist only in data/: replacing data/ would lose them.
    """
    recorded = made_here(root)
    unknown = [
        path for name, path in raw_files(root).items() if recorded.get(name) != known().sha256(path)
    ]
    return [
        path.relative_to(root).as_posix()
        for path in unknown
        if not cached_file(root, known().md5(path)).exists()
    ]


def made_here(root: Path) -> dict[str, str]:
    """Return the SHA-256 of each file as recorded in data/manifest/.

    The result is empty without a manifest.
    """
    files = read_manifest(root / "data")["files"]
    return {name: entry["sha256"] for name, entry in files.items()}


def raw_files(root: Path) -> dict[str, Path]:
    """Return the files of data/ by path, without the manifest."""
    paths = visible_files(root / "data") if (root / "data").is_dir() else []
    files = {path.relative_to(root / "data").as_posix(): path for path in paths}
    return {name: path for name, path in files.items() if not name.startswith(f"{MANIFEST}/")}


def restore(root: Path, pin: Pin) -> str:
    """Restore data/ from DVC's cache or remote; name the store.

    Returns "" where neither the cache nor the remote has the data.
    """
    _drop_damaged(root, pin)
    if cached_file(root, pin.md5).exists() and _restore_with(root, pin, "checkout"):
        return "DVC's cache"
    remotes = dvc(root, "remote", "list").split()
    if remotes and _restore_with(root, pin, "pull"):
        return f"the DVC remote {remotes[0]}"
    if remotes:
        print(f"the DVC remote {remotes[0]} does not have this data, or cannot be reached")
    return ""


def _drop_damaged(root: Path, pin: Pin) -> None:
    """Remove the damaged ones of the cached files that `pin` names."""
    listing = cached_file(root, pin.md5)
    damaged = drop_damaged(root, [pin.md5])
    if listing.exists():
        damaged += drop_damaged(root, (entry["md5"] for entry in read_json(listing)))
    for path in damaged:
        print(f"{path} was damaged: the content has a different hash than the name; removed")


def _restore_with(root: Path, pin: Pin, command: str) -> bool:
    result = run_dvc(root, command, "--quiet", "--force", "data.dvc")
    return result.returncode == 0 and matches(root, pin)


def listing_hash(hashes: Mapping[str, str]) -> str:
    """Return a single hash of several files' names and hashes.

    The hash is short enough for a line of YAML: 32 hex digits.
    """
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:32]
