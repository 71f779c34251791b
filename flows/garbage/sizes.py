"""Bytes that a removal frees: a file with hard links is freed with its last link."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


class Links:
    """The removed links of each file so far."""

    def __init__(self) -> None:
        self._removed: Counter[tuple[int, int]] = Counter()

    def freed_by(self, paths: list[Path]) -> int:
        """Return the bytes freed by the removal of more files and folders."""
        return sum(self._freed(status) for path in paths for status in _statuses(path))

    def _freed(self, status: os.stat_result) -> int:
        file = (status.st_dev, status.st_ino)
        self._removed[file] += 1
        return status.st_size if self._removed[file] == status.st_nlink else 0


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of each file at or below a path; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        for top, _, names in os.walk(path):
            yield from (Path(top, name).lstat() for name in names)
    elif os.path.lexists(path):
        yield path.lstat()
