"""The bytes of a GGUF file: metadata and tensors.

Every count and length is compared with the rest of the file before memory is allocated.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptmill.files import refuse_lfs_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# Types of metadata by number, as numpy types.
SCALARS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
MOST_DIMENSIONS = 4  # as in llama.cpp
# The least bytes of an entry: lengths, types and offsets, with empty names.
LEAST_FIELD, LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a file: shape, number of the type, bytes.

    `content` has the last axis in bytes for quantized types.
    """

    shape: tuple[int, ...]
    kind: int
    content: npt.NDArray[Any]


@dataclass(frozen=True)
class GgufContent:
    """The metadata and the tensors of a file, by name."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufContent:
    """Read the metadata and map the tensors; raise ValueError for a damaged file."""
    with path.open("rb") as file:
        refuse_lfs_pointer(path, file.read(64))
    try:
        data = np.memmap(path, mode="c")
        return _read(data)
    except ValueError as error:
        raise ValueError(f"{path} is not a complete GGUF file: {error}") from None


def _read(data: npt.NDArray[np.uint8]) -> GgufContent:
    cursor = _Cursor(data)
    if cursor.take(4, "the magic number") != MAGIC:
        raise ValueError(f"the file must begin with {MAGIC.decode()}")
    version = cursor.number("<u4", "the version")
    if version not in VERSIONS:
        raise ValueError(
            f"the version is {version}; allowed are {', '.join(map(str, VERSIONS))}, in "
            "little-endian order"
        )
    n_tensors = cursor.count("<u8", "tensor_count", LEAST_TENSOR)
    n_fields = cursor.count("<u8", "metadata_kv_count", LEAST_FIELD)
    fields = dict(_unique("field", [_field(cursor) for _ in range(n_fields)]))
    infos = _unique("tensor", [_tensor_info(cursor) for _ in range(n_tensors)])
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}; allowed is a power of 2")
    start = -(-cursor.position // alignment) * alignment
    return GgufContent(
        fields, {name: _tensor(data, start, alignment, name, info) for name, info in infos}
    )


class _Cursor:
    """A position in the file; reads never pass the end."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self.data = data
        self.position = 0

    def take(self, length: int, name: str) -> bytes:
        """Read `length` bytes; raise ValueError where fewer remain."""
        left = len(self.data) - self.position
        if length > left:
            raise ValueError(f"{name} needs {length} bytes, and the file has {left} left")
        self.position += length
        return self.data[self.position - length : self.position].tobytes()

    def number(self, kind: str, name: str) -> Any:
        """Read a number of a numpy type."""
        dtype = np.dtype(kind)
        return np.frombuffer(self.take(dtype.itemsize, name), dtype)[0].item()

    def count(self, kind: str, name: str, least: int) -> int:
        """Read a count of entries of at least `least` bytes each."""
        count: int = self.number(kind, name)
        left = len(self.data) - self.position
        if count * least > left:
            raise ValueError(f"{name} is {count}, and the file has {left} bytes left")
        return count

    def text(self, name: str) -> str:
        """Read a string: the length, then UTF-8."""
        content = self.take(self.count("<u8", f"the length of {name}", 1), name)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{name} is not UTF-8") from None


def _field(cursor: _Cursor) -> tuple[str, Any]:
    name = cursor.text("a field's name")
    return name, _value(cursor, cursor.number("<u4", name), name)


def _value(cursor: _Cursor, kind: int, name: str) -> Any:
    if kind in SCALARS:
        return _as_written(cursor.number(SCALARS[kind], name), kind)
    if kind == STRING:
        return cursor.text(name)
    if kind != ARRAY:
        raise ValueError(f"{name} has type {kind}; allowed are 0 to 12")
    inner = cursor.number("<u4", name)
    if inner not in SCALARS and inner != STRING:
        raise ValueError(f"{name} is a list of type {inner}; allowed are numbers and texts")
    if inner == STRING:
        return [cursor.text(name) for _ in range(cursor.count("<u8", name, 8))]
    dtype = np.dtype(SCALARS[inner])
    length = cursor.count("<u8", name, dtype.itemsize)
    values = np.frombuffer(cursor.take(length * dtype.itemsize, name), dtype).tolist()
    return [_as_written(value, inner) for value in values]


def _as_written(value: Any, kind: int) -> Any:
    """Return a float as written: a file has only 32 bits of 1e-05."""
    return float(str(np.float32(value))) if SCALARS[kind] == "<f4" else value


@dataclass(frozen=True)
class _Info:
    """The entry of a tensor in the header."""

    dims: tuple[int, ...]  # the innermost axis first
    kind: int
    offset: int


def _tensor_info(cursor: _Cursor) -> tuple[str, _Info]:
    name = cursor.text("a tensor's name")
    n_dims = cursor.number("<u4", name)
    if n_dims > MOST_DIMENSIONS:
        raise ValueError(f"{name} has {n_dims} dimensions; allowed are at most {MOST_DIMENSIONS}")
    dims = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims, name))
    return name, _Info(dims, cursor.number("<u4", name), cursor.number("<u8", name))


def _tensor(
    data: npt.NDArray[np.uint8], start: int, alignment: int, name: str, info: _Info
) -> GgufTensor:
    """Return a tensor as a view of the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if info.kind not in {kind.value for kind in GGML_QUANT_SIZES}:
        raise ValueError(f"{name} has the unknown type {info.kind}; convert the file anew")
    block, width = GGML_QUANT_SIZES[GGMLQuantizationType(info.kind)]
    inner, *outer = info.dims or (1,)
    if inner % block:
        raise ValueError(f"{name} has rows of {inner} values; allowed are multiples of {block}")
    size = inner // block * width * math.prod(outer)
    begin = start + info.offset
    if info.offset % alignment or begin + size > len(data):
        raise ValueError(
            f"{name} has {size} bytes at {begin}, and the file has {len(data)}; the offset must be "
            f"a multiple of {alignment} and the tensor within the file"
        )
    content = data[begin : begin + size].reshape(*reversed(outer), inner // block * width)
    return GgufTensor(tuple(reversed(info.dims)), info.kind, content)


def _unique(kind: str, entries: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    names: set[str] = set()
    for name, _ in entries:
        if name in names:
            raise ValueError(f"{kind} {name} is there twice; allowed is once")
        names.add(name)
    return entries
