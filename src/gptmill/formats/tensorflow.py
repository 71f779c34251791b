"""OpenAI's published TensorFlow checkpoints of GPT-2, read without TensorFlow.

`hparams.json` holds the model's sizes, and `checkpoint` names the bundle. The bundle's `.index` is
a table in LevelDB's format (https://github.com/google/leveldb/blob/main/doc/table_format.md). The
table maps tensor names to protocol buffers with the location of each tensor in the `.data` files
(https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto).
Every checksum is verified: of a block when the index is read, of a tensor when the tensor is taken.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptmill.checkpoint.config_fields import read_sizes
from gptmill.checkpoint.weights import (
    Shape,
    Taken,
    Tensors,
    map_file,
)
from gptmill.files import read_object, read_text, refuse_lfs_pointer
from gptmill.formats.crc32c import masked_crc32c
from gptmill.model.gpt import GPTConfig

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER = 48  # bytes: two block handles, padding and the magic number
TF_DTYPES = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}
HPARAMS = {
    "vocab_size": "n_vocab",
    "context_length": "n_ctx",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
}


@dataclass(frozen=True)
class Entry:
    """Location, type, shape and masked CRC-32C of a tensor."""

    dtype: torch.dtype
    shape: Shape
    shard: int
    offset: int
    size: int
    crc: int


def read_hparams(folder: Path) -> GPTConfig:
    """Load the model's config from hparams.json.

    OpenAI's models have tied embeddings, and biases in queries, keys and values. Raises ValueError
    where a size is missing.
    """
    path = folder / "hparams.json"
    hparams = read_object(path)
    try:
        sizes = read_sizes(hparams, HPARAMS)
        return GPTConfig(**sizes, drop_rate=0.1, qkv_bias=True, tie_weights=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; fetch the file again") from None


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the index and data files named in `checkpoint`.

    Raises ValueError where `checkpoint` names no index, or the index is missing.
    """
    path = folder / "checkpoint"
    text = read_text(path) if path.is_file() else ""
    match = re.search(r'^model_checkpoint_path: "([^"\x00-\x1f]+)"', text, re.MULTILINE)
    if match is None:
        raise ValueError(f"{path} names no checkpoint; fetch the folder's seven files again")
    prefix = re.split(r"[/\\]", match[1])[-1]
    index = folder / f"{prefix}.index"
    if not index.is_file():
        raise ValueError(f"{index} is missing, but named in {path}")
    data = re.compile(rf"{re.escape(prefix)}\.data-\d+-of-\d+")
    return [index, *sorted(path for path in folder.iterdir() if data.fullmatch(path.name))]


def open_checkpoint(folder: Path) -> Tensors:
    """Open the tensors of a checkpoint.

    The index is read and checked; the data files are memory-mapped.
    """
    index, *shards = checkpoint_files(folder)
    entries = read_index(index)
    sizes = [path.stat().st_size for path in shards]
    for name, entry in entries.items():
        if entry.shard >= len(shards) or entry.offset + entry.size > sizes[entry.shard]:
            raise ValueError(f"{folder}: the data of {name} is missing; fetch the data file again")
    mapped: dict[int, Tensor] = {}

    def take(name: str) -> Taken:
        entry = entries[name]
        if entry.shard not in mapped:
            mapped[entry.shard] = map_file(shards[entry.shard])
        content = mapped[entry.shard][entry.offset : entry.offset + entry.size]
        if masked_crc32c(content.numpy()) != entry.crc:
            raise ValueError(f"{folder}: the data of {name} is damaged; fetch the data file again")
        in_place = entry.offset % entry.dtype.itemsize == 0
        content = content if in_place else content.clone()
        return Taken(content.view(entry.dtype).view(entry.shape), in_place)

    return Tensors(folder, {name: entry.shape for name, entry in entries.items()}, take)


def read_index(path: Path) -> dict[str, Entry]:
    """Read the index of a bundle: entries by tensor name.

    Raises ValueError if the file is incomplete, damaged or not an index.
    """
    content = path.read_bytes()
    refuse_lfs_pointer(path, content)
    if len(content) < FOOTER or not content.endswith(MAGIC):
        raise ValueError(f"{path} is not a complete index of a TensorFlow checkpoint")
    try:
        rows = index_rows(content)
        _check_header(rows.pop(b"", b""))
        return {
            name: _entry(name, value)
            for name, value in ((_name(key), value) for key, value in rows.items())
        }
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def index_rows(content: bytes) -> dict[bytes, bytes]:
    """Return the rows of an index by key; raise ValueError for damaged blocks."""
    footer = _Reader(content[-FOOTER:])
    footer.varint(), footer.varint()  # handle of the metaindex block
    index = _block(content, footer.varint(), footer.varint())
    rows: dict[bytes, bytes] = {}
    for _, handle in _rows(index):
        reader = _Reader(handle)
        rows |= _rows(_block(content, reader.varint(), reader.varint()))
    return rows


def _name(key: bytes) -> str:
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{key!r} is not UTF-8; allowed are names of tensors") from None


class _Reader:
    """Cursor over consecutive fields in a byte string."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def varint(self) -> int:
        """Read a variable-length integer.

        Each byte holds seven bits, the low bits first; the eighth bit is set if more bytes follow.
        """
        number = shift = 0
        while True:
            byte = self.bytes(1)[0]
            if shift >= 64:
                raise ValueError("a number has more than 64 bits")
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7

    def bytes(self, length: int) -> bytes:
        """Read `length` bytes; raise ValueError where fewer remain."""
        if self.position + length > len(self.content):
            raise ValueError("a record is cut off")
        self.position += length
        return self.content[self.position - length : self.position]

    @property
    def at_end(self) -> bool:
        """Return whether all bytes have been read."""
        return self.position >= len(self.content)


def _block(content: bytes, offset: int, size: int) -> bytes:
    """Return a block after verifying the checksum.

    The block is followed by a byte for the compression type and four for the checksum.
    """
    packed = content[offset : offset + size + 5]
    if len(packed) < size + 5:
        raise ValueError("a block is cut off")
    crc = masked_crc32c(np.frombuffer(packed[: size + 1], np.uint8))
    if crc != int.from_bytes(packed[-4:], "little"):
        raise ValueError("a block is damaged: the checksum differs")
    if packed[size] != 0:
        raise ValueError("a block is compressed; allowed are plain blocks, as savers write them")
    return packed[:size]


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block.

    A key is stored as the length of the prefix it shares with the previous key, and the rest.
    """
    restarts = int.from_bytes(block[-4:], "little")
    reader = _Reader(block[: len(block) - 4 * (restarts + 1)])
    key = b""
    while not reader.at_end:
        shared, own, length = reader.varint(), reader.varint(), reader.varint()
        key = key[:shared] + reader.bytes(own)
        yield key, reader.bytes(length)


def _message(content: bytes) -> dict[int, list[Any]]:
    """Return a protocol buffer's integers and bytes by field number."""
    reader = _Reader(content)
    fields: dict[int, list[Any]] = {}
    while not reader.at_end:
        tag = reader.varint()
        kind = tag & 7
        if kind == 0:
            value: Any = reader.varint()
        elif kind == 2:
            value = reader.bytes(reader.varint())
        elif kind in (1, 5):
            value = int.from_bytes(reader.bytes(8 if kind == 1 else 4), "little")
        else:
            raise ValueError("a record is not a protocol buffer")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: dict[int, list[Any]], field: int) -> int:
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {field} of a record is text; allowed is a number")
    return value


def _check_header(content: bytes) -> None:
    if _number(_message(content), 2) != 0:
        raise ValueError("the tensors are stored big-endian; allowed is little-endian")


def _parts(fields: dict[int, list[Any]]) -> list[bytes]:
    """Return the records in field 2: the shape of a tensor, or the axes of a shape."""
    parts = fields.get(2, [b""])
    if not all(isinstance(part, bytes) for part in parts):
        raise ValueError("a shape is a number; allowed is a list of axes")
    return parts


def _entry(name: str, content: bytes) -> Entry:
    fields = _message(content)

    def number(field: int) -> int:
        return _number(fields, field)

    if number(1) not in TF_DTYPES or 7 in fields:
        raise ValueError(
            f"{name} has type {number(1)} or is stored in slices; allowed are whole float tensors"
        )
    shape = tuple(_number(_message(dim), 1) for dim in _parts(_message(_parts(fields)[-1])))
    dtype = TF_DTYPES[number(1)]
    if number(5) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {number(5)} bytes; the size must match shape {shape}")
    return Entry(dtype, shape, number(3), number(4), number(5), number(6))
