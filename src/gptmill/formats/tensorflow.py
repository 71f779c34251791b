"""OpenAI's GPT-2 as it was published: a TensorFlow checkpoint, read without TensorFlow.

`hparams.json` says the shape; `checkpoint` names the bundle; its `.index` is a table of LevelDB's
form (https://github.com/google/leveldb/blob/main/doc/table_format.md) from names to protocol
buffers that say where in the `.data` files a tensor lies
(https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto).
Every checksum is compared: the blocks' when the table is read, a tensor's when it is taken.
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

from gptmill.checkpoint.weights import (
    Shape,
    Taken,
    Tensors,
    map_file,
)
from gptmill.files import read_json
from gptmill.formats.crc32c import masked_crc32c
from gptmill.model.gpt import GPTConfig

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER = 48  # bytes: two places of blocks, padded, and the magic number
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
    """Where a tensor lies, and its masked CRC-32C."""

    dtype: torch.dtype
    shape: Shape
    shard: int
    offset: int
    size: int
    crc: int


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder looks like one that OpenAI published."""
    return (folder / "hparams.json").is_file() and any(folder.glob("*.index"))


def read_hparams(folder: Path) -> GPTConfig:
    """Read the shape of the model; OpenAI's are tied and have biases."""
    path = folder / "hparams.json"
    given = read_json(path)
    for name in HPARAMS.values():
        if not isinstance(given, dict) or not isinstance(given.get(name), int):
            raise ValueError(f"{path} has no whole number {name}; fetch it again")
    sizes = {ours: given[theirs] for ours, theirs in HPARAMS.items()}
    return GPTConfig(**sizes, drop_rate=0.1, qkv_bias=True, tie_weights=True)


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the index and the data files that the folder's `checkpoint` names."""
    path = folder / "checkpoint"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    named = re.search(r'^model_checkpoint_path: "([^"]+)"', text, re.MULTILINE)
    if named is None:
        raise ValueError(f"{path} names no checkpoint; fetch the folder's seven files again")
    prefix = re.split(r"[/\\]", named[1])[-1]
    index = folder / f"{prefix}.index"
    if not index.is_file():
        raise ValueError(f"{index} is missing, which {path} names")
    return [index, *sorted(folder.glob(f"{prefix}.data-*-of-*"))]


def open_checkpoint(folder: Path) -> Tensors:
    """Open the tensors of a checkpoint; its index is read and checked, its data is mapped."""
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
    """Read a bundle's index; raise ValueError where it is not whole or of another kind."""
    content = path.read_bytes()
    if len(content) < FOOTER or not content.endswith(MAGIC):
        raise ValueError(f"{path} is not the index of a TensorFlow checkpoint, or not whole")
    try:
        footer = _Reader(content[-FOOTER:])
        footer.varint(), footer.varint()  # the place of the block about other blocks
        index = _block(content, footer.varint(), footer.varint())
        rows: dict[str, bytes] = {}
        for _, place in _rows(index):
            handle = _Reader(place)
            for key, value in _rows(_block(content, handle.varint(), handle.varint())):
                rows[key.decode("utf-8")] = value
        _check_header(rows.pop("", b""))
        return {name: _entry(name, value) for name, value in rows.items()}
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: {error}") from None


class _Reader:
    """Numbers one behind the other in bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.place = 0

    def varint(self) -> int:
        """Read seven bits a byte, the low ones first; the eighth says that more follow."""
        number = shift = 0
        while True:
            byte = self.content[self.place]
            self.place += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7

    def bytes(self, length: int) -> bytes:
        """Read so many bytes."""
        if self.place + length > len(self.content):
            raise ValueError("a record of it is cut off")
        self.place += length
        return self.content[self.place - length : self.place]

    @property
    def done(self) -> bool:
        """Return whether there is nothing more."""
        return self.place >= len(self.content)


def _block(content: bytes, offset: int, size: int) -> bytes:
    """Return a block; one byte behind it says how it is packed, four are its checksum."""
    whole = content[offset : offset + size + 5]
    if len(whole) < size + 5:
        raise ValueError("a block of it is cut off")
    crc = masked_crc32c(np.frombuffer(whole[: size + 1], np.uint8))
    if crc != int.from_bytes(whole[-4:], "little"):
        raise ValueError("a block of it is damaged: its checksum differs")
    if whole[size] != 0:
        raise ValueError("its blocks are compressed; allowed are plain ones, as savers write them")
    return whole[:size]


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values; a key begins with what it shares with the one before it."""
    restarts = int.from_bytes(block[-4:], "little")
    reader = _Reader(block[: len(block) - 4 * (restarts + 1)])
    key = b""
    while not reader.done:
        shared, own, length = reader.varint(), reader.varint(), reader.varint()
        key = key[:shared] + reader.bytes(own)
        yield key, reader.bytes(length)


def _message(content: bytes) -> dict[int, list[Any]]:
    """Return the fields of a protocol buffer by number: whole numbers, or bytes."""
    reader = _Reader(content)
    fields: dict[int, list[Any]] = {}
    while not reader.done:
        tag = reader.varint()
        kind = tag & 7
        if kind == 0:
            value: Any = reader.varint()
        elif kind == 2:
            value = reader.bytes(reader.varint())
        elif kind in (1, 5):
            value = int.from_bytes(reader.bytes(8 if kind == 1 else 4), "little")
        else:
            raise ValueError("a record of it is not a protocol buffer")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _check_header(content: bytes) -> None:
    if _message(content).get(2, [0])[-1] != 0:
        raise ValueError("its numbers have their high bytes first; allowed is the low ones first")


def _entry(name: str, content: bytes) -> Entry:
    fields = _message(content)

    def number(field: int) -> int:
        return int(fields.get(field, [0])[-1])

    if number(1) not in TF_DTYPES or 7 in fields:
        raise ValueError(f"{name} is of type {number(1)} or in slices; allowed are whole floats")
    dims = _message(fields.get(2, [b""])[-1]).get(2, [])
    shape = tuple(int(_message(dim).get(1, [0])[-1]) for dim in dims)
    dtype = TF_DTYPES[number(1)]
    if number(5) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} {shape} has {number(5)} bytes; it must have as many as its shape")
    return Entry(dtype, shape, number(3), number(4), number(5), number(6))
