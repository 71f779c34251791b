"""Atomic writes: write under a temporary name, then rename.

A file or folder is complete or absent. A reader, a second run or DVC never sees a partial file
under its real name, even if the writer dies.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the import takes 0.2 s, and most callers write no tables
    import pandas as pd


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Write under a temporary name in the same folder, flush to disk and rename.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 with unchanged line ends.

    The bytes are the same on every operating system.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys: equal content gives equal bytes."""
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write a table without index, floats in shortest exact form."""
    rows = _Rows()
    table.to_csv(rows, index=False, lineterminator="\r\n")
    write_text(path, rows.getvalue())


class _Rows(io.StringIO):
    """Ends each row in a newline.

    The csv module quotes a cell with a carriage return only if the row's end has one too; without
    quotes, readers take the rest of the cell for a new row. The module writes a row per call.
    """

    def write(self, row: str, /) -> int:
        return super().write(row.removesuffix("\r\n") + "\n")


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file.

    Raises ValueError with the path where the content is not UTF-8 JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not UTF-8 JSON: {error}") from None


def md5(path: Path) -> str:
    """Return a file's MD5, the hash by which DVC names content.

    MD5 guards against mistakes.
    """
    return _digest(path, "md5")


def sha256(path: Path) -> str:
    """Return a file's SHA-256, used to pin raw downloads.

    SHA-256 guards against malice.
    """
    return _digest(path, "sha256")


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder, renamed to `path` on success.

    The folder is beside `path`, and an existing folder at `path` is replaced. When the block
    raises, the partial folder is removed and `path` stays unchanged.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _flush(partial)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
