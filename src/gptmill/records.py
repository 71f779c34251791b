"""What DVC and git record of a file or folder: its hash, and the commit that stands for it.

A file's hash is its MD5; a folder's is the MD5 of the JSON list of its files' hashes and relative
paths, with `.dir` behind it.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from gptmill.files import md5

IGNORED = ("__pycache__", "*.pyc", "*.partial")
"""Names of files and folders that do not count; .dvcignore names the same for DVC."""


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that count, in order of their names."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(map(_is_ignored, path.relative_to(folder).parts)):
            yield path


def _is_ignored(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in IGNORED)


def file_hashes(path: Path) -> dict[str, str]:
    """Return the MD5 of each file below a folder by its relative path; of a file, under "."."""
    files = [path] if path.is_file() else files_below(path)
    return {file.relative_to(path).as_posix(): md5(file) for file in files}


def content_hash(path: Path) -> str:
    """Return the hash that DVC gives a file or a folder."""
    if path.is_file():
        return md5(path)
    hashes = file_hashes(path)
    entries = [{"md5": hashes[name], "relpath": name} for name in sorted(hashes)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def recorded_at(folder: Path) -> str | None:
    """Return the commit at HEAD if its dvc.lock records `folder` with just these bytes.

    The folder may lie in an output, as the merged model of `lora` does. None outside of a
    repository, and where the bytes are others than the recorded ones.
    """
    folder = folder.resolve()
    root = _git(folder, "rev-parse", "--show-toplevel").strip()
    lock = _git(folder, "show", "HEAD:dvc.lock")
    for path in (folder, *folder.parents):
        if not root or path == Path(root):
            return None
        if f"path: {path.relative_to(root).as_posix()}\n" in lock:
            recorded = f"md5: {content_hash(path)}\n" in lock
            return _git(folder, "rev-parse", "HEAD").strip() if recorded else None
    return None


def _git(folder: Path, *words: str) -> str:
    """Return what git prints; nothing where it fails, or is not there."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, encoding="utf-8")
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""
