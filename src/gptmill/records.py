"""DVC hashes of files and folders, and their git commits.

The hash of a file is its MD5. The hash of a folder is the MD5 of the JSON list of its files' hashes
and relative paths, followed by `.dir`.
"""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from gptmill.files import md5, read_json

IGNORED = (
    "__pycache__",
    "*.pyc",
    "*.partial",
    # written by file managers and Jupyter into any folder that is opened
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    ".ipynb_checkpoints",
)
"""Names of ignored files and folders; .dvcignore lists the same names for DVC."""


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted, without ignored files."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(map(is_ignored, path.relative_to(folder).parts)):
            yield path


def is_ignored(name: str) -> bool:
    """Return whether files and folders with this name are ignored."""
    return any(fnmatch(name, pattern) for pattern in IGNORED)


def file_hashes(path: Path, *, hasher: Callable[[Path], str] = md5) -> dict[str, str]:
    """Return the MD5 of every file below a folder.

    The keys are relative paths; a single file has the key ".". A `hasher` may know the MD5 of an
    unchanged file already.
    """
    files = [path] if path.is_file() else files_below(path)
    return {file.relative_to(path).as_posix(): hasher(file) for file in files}


def content_hash(path: Path, *, hasher: Callable[[Path], str] = md5) -> str:
    """Return DVC's hash of a file or a folder."""
    if path.is_file():
        return hasher(path)
    hashes = file_hashes(path, hasher=hasher)
    entries = [{"md5": hashes[name], "relpath": name} for name in sorted(hashes)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def stamps(folder: Path, *, hasher: Callable[[Path], str] = md5) -> dict[str, list[Any]]:
    """Return MD5, size in bytes and time of change in ns of each file below a folder."""
    hashes = file_hashes(folder, hasher=hasher)
    return {name: [hashes[name], *_stamp(folder / name)] for name in sorted(hashes)}


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def check_stamps(folder: Path, record: Path) -> None:
    """Compare a folder with the JSON file of its `stamps`.

    Files with the recorded size and time count as unchanged; the rest are hashed. Raises
    ValueError naming a file that is missing or has other content.
    """
    for name, (digest, *stamp) in read_json(record).items():
        path = folder / name
        if not path.exists():
            raise ValueError(f"{path} is missing, and {record} lists the file")
        if list(_stamp(path)) != stamp and md5(path) != digest:
            raise ValueError(
                f"{path} was changed after the model was logged (recorded MD5 {digest}): "
                "run `make pipeline`, which makes a damaged file again and logs a new model"
            )


def recorded_at(folder: Path) -> str | None:
    """Return the commit at HEAD if dvc.lock records `folder` unchanged.

    The folder may lie in an output, as the merged model of `lora` does. Returns None outside a git
    repository, and where the bytes differ from the recorded bytes.
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
    """Return git's output, empty where git fails or is missing."""
    try:
        result = subprocess.run(["git", *words], cwd=folder, capture_output=True, encoding="utf-8")
    except OSError:
        return ""
    return result.stdout if result.returncode == 0 else ""
