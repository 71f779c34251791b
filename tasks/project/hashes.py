"""Hashes of files, computed once and shared by all processes of the project.

The hash of a large file is kept in `.state/hashes` and stands while device, inode, size and time
of change of the file are the same. Hard links of a file share the hash. An edit in place changes
the time, also an edit by root: the file is then hashed again. Small files are always hashed.
"""

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from gptmill import files, records
from gptmill.files import write_text
from tasks.project.environment import HOME

LARGE = 1 << 20
"""The size in bytes from which a hash is kept."""
MOST = 4096
"""The number of lines at which the older half is dropped."""
LINE = re.compile(r"md5( \d+){4} [0-9a-f]{32}|sha256( \d+){4} [0-9a-f]{64}")

HASHERS: Mapping[str, Callable[[Path], str]] = {"md5": files.md5, "sha256": files.sha256}


class Hashes:
    """A file of hashes: a line per content, appended by any process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, str] = {}
        self._read = 0
        self._lock = threading.Lock()

    def md5(self, path: Path) -> str:
        """Return a file's MD5."""
        return self._hash("md5", path)

    def sha256(self, path: Path) -> str:
        """Return a file's SHA-256."""
        return self._hash("sha256", path)

    def content_hash(self, path: Path) -> str:
        """Return DVC's hash of a file or a folder."""
        return records.content_hash(path, hasher=self.md5)

    def _hash(self, algorithm: str, path: Path) -> str:
        status = path.stat()
        if status.st_size < LARGE:
            return HASHERS[algorithm](path)
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        key = " ".join(map(str, (algorithm, *stamp)))
        with self._lock:
            if key not in self._known:
                self._load()
            if key not in self._known:
                self._known[key] = HASHERS[algorithm](path)
                self._append(f"{key} {self._known[key]}\n")
            return self._known[key]

    def _load(self) -> None:
        """Read the lines that other processes appended; a torn line counts as none."""
        with suppress(OSError), self.path.open(encoding="ascii", errors="replace") as file:
            if self.path.stat().st_size < self._read:  # shortened by another process
                self._read = 0
            file.seek(self._read)
            lines = file.read().splitlines()
            self._read = file.tell()
            for line in filter(LINE.fullmatch, lines):
                key, _, digest = line.rpartition(" ")
                self._known[key] = digest
            if len(lines) > MOST:
                self._known = dict(list(self._known.items())[-MOST // 2 :])
                write_text(self.path, "".join(f"{k} {v}\n" for k, v in self._known.items()))

    def _append(self, line: str) -> None:
        """Append a line in one write. On a full disk the hash stays in memory."""
        with suppress(OSError):
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(line.encode("ascii"))


@cache
def known(root: Path = HOME) -> Hashes:
    """Return the hashes of a project."""
    return Hashes(root / ".state" / "hashes")
