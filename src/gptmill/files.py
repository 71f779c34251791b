"""Atomic writes and checked reads.

Writes use a temporary name, then rename. A file or folder is complete or absent: a reader, a second
run or DVC never sees a partial file under its real name, even if the writer dies.

Reads of a user's file raise ValueError with the file, the field and the allowed values.
"""

import ctypes
import hashlib
import io
import json
import os
import reprlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:  # the import takes 0.2 s, and most callers write no tables
    import pandas as pd

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MANY = 1000  # files, above which flushing the whole file system is faster
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to, which appears at `path` complete or not at all.

    The file has a temporary name in the same folder, is flushed to disk at the end, and renamed.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, as `writing` does."""
    with writing(path) as file:
        file.write(content)


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


def read_text(path: Path) -> str:
    """Read a UTF-8 file, without a byte order mark.

    Raises ValueError with the path for other encodings, and for a git-lfs pointer.
    """
    content = path.read_bytes()
    refuse_lfs_pointer(path, content)
    if content.startswith(UTF_16):
        raise ValueError(f"{path} is UTF-16; allowed is UTF-8: save the file again as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def refuse_lfs_pointer(path: Path, start: bytes) -> None:
    """Raise ValueError if a file starts as a git-lfs pointer."""
    if start.startswith(LFS_POINTER):
        raise ValueError(
            f"{path} is a git-lfs pointer and not the file itself; run `git lfs install` and "
            f"`git lfs pull` in {path.parent} to fetch the file"
        )


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file; raise ValueError with the path for anything else."""
    return parse_json(read_text(path), path)


def parse_json(text: str, where: Path | str, *, surrogates: bool = False) -> Any:
    """Parse strict JSON: unique keys, no NaN or Infinity, valid Unicode.

    With `surrogates`, the caller names half a surrogate pair by its place. Raises ValueError with
    `where` and the mistake.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if not surrogates and (
            "\\ud" in text or "\\uD" in text
        ):  # escapes of surrogates, valid only in pairs
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} is not JSON: an escaped surrogate stands alone") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply to be read") from None
    except ValueError as error:
        raise ValueError(f"{where} is not UTF-8 JSON: {error}") from None
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice!r} twice; allowed is once")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise ValueError with the path for anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content


def checked(kind: Any, value: Any, where: Path | str) -> Any:
    """Return a JSON value as the type `kind`, checked by pydantic.

    Raises ValueError with `where`, the field and the allowed values.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # pydantic adds the names of a union's members, which are no fields
        field = ".".join(map(str, first["loc"])) or "the content"
        missing = first["type"] == "missing"
        found = "missing" if missing else reprlib.repr(first["input"])
        reason = "add the field" if missing else first["msg"][0].lower() + first["msg"][1:]
        raise ValueError(f"{where}: {field} is {found}; {reason}") from None


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


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
def removed_on_error(partial: Path) -> Iterator[None]:
    """Remove an unfinished file if the block raises."""
    try:
        yield
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
    """Write a folder's files to disk: each by itself, or many at once with their file system."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    if len(files) > MANY and _flush_system(folder):
        return
    for file in files:
        _flush_file(file)


def _flush_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_system(folder: Path) -> bool:
    """Write the whole file system of a folder to disk; return whether this system can."""
    syncfs = getattr(ctypes.CDLL(None), "syncfs", None)  # Linux
    if syncfs is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return bool(syncfs(descriptor) == 0)
    finally:
        os.close(descriptor)
