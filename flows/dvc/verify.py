"""Verification of a stage's outputs and their copies in DVC's cache against dvc.lock.

DVC trusts its cache without reading it: a flipped bit in a cached file is restored as the output,
with status 0. An output is a hard link to the cached file, so that an edit in place changes both.
DVC also reports success after a full disk kept it from filling the cache. Each file that a lock
entry names is therefore hashed when size, time or inode of the file are new, in artifacts/ and in
the cache.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.project.cache import cached_file
from tasks.project.environment import ROOT
from tasks.project.hashes import known

FOLDER = ".dir"  # the end of DVC's hash of a folder


@dataclass
class Faults:
    """The differences between a lock entry and the files."""

    damaged: list[Path] = field(default_factory=list)
    """Cached files whose content differs from the hash in the name."""
    missing: list[Path] = field(default_factory=list)
    """Cached files that do not exist."""
    changed: list[Path] = field(default_factory=list)
    """Files or folders of outputs that differ from dvc.lock, or do not exist."""

    def __bool__(self) -> bool:
        return bool(self.damaged or self.missing or self.changed)


def verify(entry: dict[str, Any], root: Path = ROOT) -> Faults:
    """Compare the outputs and the cache with a stage's entry in dvc.lock."""
    faults = Faults()
    for out in entry.get("outs", []):
        for path, digest in _files(root, out, faults):
            if _md5(path) != digest:
                faults.changed.append(path)
            _check_cached(cached_file(root, digest), digest, faults)
    return faults


def _files(root: Path, out: dict[str, Any], faults: Faults) -> Iterator[tuple[Path, str]]:
    """Yield the files of an output with their hashes; a folder's are listed in the cache.

    Without the list, the folder is compared as a whole, and no file is yielded.
    """
    output, digest = root / out["path"], str(out["md5"])
    if not digest.endswith(FOLDER):
        yield output, digest
        return
    listing = cached_file(root, digest)
    if _check_cached(listing, digest.removesuffix(FOLDER), faults):
        for file in json.loads(listing.read_bytes()):
            yield output / file["relpath"], file["md5"]
    elif not output.is_dir() or known().content_hash(output) != digest:
        faults.changed.append(output)


def _check_cached(path: Path, digest: str, faults: Faults) -> bool:
    """Return whether a cached file has the content of its hash, and record a fault."""
    actual = _md5(path)
    if actual is None:
        faults.missing.append(path)
    elif actual != digest:
        faults.damaged.append(path)
    return actual == digest


def _md5(path: Path) -> str | None:
    """Return a file's hash, or None where there is no file."""
    try:
        return known().md5(path)
    except FileNotFoundError:
        return None
