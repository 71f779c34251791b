"""Verification of a stage's outputs and their copies in DVC's cache against dvc.lock.

DVC trusts its cache without reading it: a flipped bit in a cached file is restored as the output,
with status 0. DVC also reports success after a full disk kept it from filling the cache. Each file
that a lock entry names is therefore hashed when size or time of the file are new, in artifacts/ and
in the cache; hashes of known files are read from `.state/verified.json`.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptmill.files import md5, write_json
from gptmill.records import content_hash
from tasks.project.cache import cached_file
from tasks.project.environment import ROOT

FOLDER = ".dir"  # the end of DVC's hash of a folder
_LOCK = threading.Lock()  # the stages of a flow run in threads of one process


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
    with _LOCK:
        known = _Known(root / ".state" / "verified.json")
        faults = Faults()
        for out in entry.get("outs", []):
            for path, digest in _files(root, out, known, faults):
                if known.md5(path) != digest:
                    faults.changed.append(path)
                _check_cached(cached_file(root, digest), digest, known, faults)
        known.save()
    return faults


def _files(
    root: Path, out: dict[str, Any], known: "_Known", faults: Faults
) -> Iterator[tuple[Path, str]]:
    """Yield the files of an output with their hashes; a folder's are listed in the cache.

    Without the list, the folder is compared as a whole, and no file is yielded.
    """
    output, digest = root / out["path"], str(out["md5"])
    if not digest.endswith(FOLDER):
        yield output, digest
        return
    listing = cached_file(root, digest)
    if _check_cached(listing, digest.removesuffix(FOLDER), known, faults):
        for file in json.loads(listing.read_bytes()):
            yield output / file["relpath"], file["md5"]
    elif not output.is_dir() or content_hash(output) != digest:
        faults.changed.append(output)


def _check_cached(path: Path, digest: str, known: "_Known", faults: Faults) -> bool:
    """Return whether a cached file has the content of its hash, and record a fault."""
    actual = known.md5(path)
    if actual is None:
        faults.missing.append(path)
    elif actual != digest:
        faults.damaged.append(path)
    return actual == digest


class _Known:
    """The hashes of files by path, valid while size and time of a file are unchanged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            content = None
        self.old: dict[str, Any] = content if isinstance(content, dict) else {}
        self.new: dict[str, Any] = {}

    def md5(self, path: Path) -> str | None:
        """Return a file's hash, or None where there is no file."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        key, stamp = str(path), [status.st_size, status.st_mtime_ns, status.st_ino]
        if key not in self.new:
            entry = self.old.get(key)
            if isinstance(entry, list) and entry[:-1] == stamp:
                self.new[key] = entry
            else:
                self.new[key] = [*stamp, md5(path)]
        return str(self.new[key][-1])

    def save(self) -> None:
        """Write the hashes of all files that still exist."""
        content = {key: entry for key, entry in self.old.items() if Path(key).exists()} | self.new
        if content != self.old:
            self.path.parent.mkdir(exist_ok=True)
            write_json(self.path, content)
