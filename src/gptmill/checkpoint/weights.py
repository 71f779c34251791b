"""Tensors in files: safetensors or PyTorch's own, whole or in shards, named as they lie there.

Files are mapped, and a tensor's pages are given back as soon as it was read. A pickle is read
with `weights_only=True` alone: nothing in it can run.
"""

import ctypes
import json
import math
import mmap
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptmill.files import read_json

# In the order of preference; a folder often carries more than one.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MAX_HEADER = 100_000_000  # bytes; the safetensors library reads no longer one
# The types of safetensors files, by the names they have there.
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SAVED_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

HUGE_PAGE = 2**21  # bytes

Shape = tuple[int, ...]


class Taken(NamedTuple):
    """A tensor, and whether its memory is pages of a file, which can be given back."""

    tensor: Tensor
    mapped: bool


@dataclass(frozen=True)
class Tensors:
    """Named tensors that lie in files: their shapes at once, their values one by one."""

    where: Path
    shapes: Mapping[str, Shape]
    take: Callable[[str], Taken]
    """Return a tensor; it may be asked for once."""


def drop_pages(tensor: Tensor) -> None:
    """Give the pages of a mapped, unchanged tensor back to the system; the file still has them.

    Memory that is no file's would be lost.
    """
    if sys.platform == "linux" and tensor.is_contiguous():
        end = tensor.data_ptr() + tensor.nbytes
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        _advise(first, end - first, mmap.MADV_DONTNEED)


def new_tensor(shape: Shape, dtype: torch.dtype) -> Tensor:
    """Return a tensor to be filled, on huge pages where the system has them.

    A first touch of each 4 KB costs more than the copying: filling is 3 to 5 times as fast.
    """
    tensor = torch.empty(shape, dtype=dtype)
    if sys.platform == "linux":
        end = tensor.data_ptr() + tensor.nbytes
        first = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        _advise(first, (end - first) // HUGE_PAGE * HUGE_PAGE, mmap.MADV_HUGEPAGE)
    return tensor


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _advise(address: int, length: int, advice: int) -> None:
    """Tell the kernel about pages; it may decline, and nothing depends on it."""
    if length > 0:
        _libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice)


def map_file(path: Path) -> Tensor:
    """Map the bytes of a file, (size,); what is written to them never reaches the file."""
    return torch.from_file(str(path), False, path.stat().st_size, dtype=torch.uint8)


def open_folder(folder: Path) -> Tensors:
    """Open the weights of a Hugging Face folder; raise ValueError where there are none."""
    return _joined(folder, [_open_file(path) for path in weight_files(folder)])


def _open_file(path: Path) -> Tensors:
    return open_safetensors(path) if path.suffix == ".safetensors" else open_pickle(path)


def _joined(where: Path, files: list[Tensors]) -> Tensors:
    home = {name: file for file in files for name in file.shapes}
    if len(home) < sum(len(file.shapes) for file in files):
        names = [name for file in files for name in file.shapes]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{where}: {double} is in more than one file; allowed is one")
    return Tensors(
        where=where,
        shapes={name: file.shapes[name] for name, file in home.items()},
        take=lambda name: home[name].take(name),
    )


def read_shapes(folder: Path) -> dict[str, Shape]:
    """Return the shape of each tensor in `folder`, from headers where the format has them."""
    return dict(open_folder(folder).shapes)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return each tensor in `folder`, on the CPU, in the type that it has there."""
    tensors = open_folder(folder)
    return {name: tensors.take(name).tensor for name in tensors.shapes}


def weight_files(folder: Path) -> list[Path]:
    """Return the file or the shards that hold the weights in `folder`."""
    names = [name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not names:
        raise ValueError(f"{folder}: no weights; allowed is one of {', '.join(WEIGHT_FILES)}")
    path = folder / names[0]
    if not path.name.endswith(".index.json"):
        return [path]
    shards = sorted(set(_weight_map(path).values()))
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{path} names {shard!r}; allowed are files beside it")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ValueError(f"{folder}: {path.name} names {', '.join(missing)}, which is missing")
    return [folder / shard for shard in shards]


def _weight_map(path: Path) -> dict[str, Any]:
    index = read_json(path)
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} has no weight_map of tensors and files; fetch it again")
    return found


# safetensors: eight bytes of the header's length, the header in JSON, the tensors' bytes.


def open_safetensors(path: Path) -> Tensors:
    """Map a safetensors file; raise ValueError where it is not whole."""
    start, entries = _read_header(path)
    whole: list[Tensor] = []

    def take(name: str) -> Taken:
        if not whole:
            whole.append(map_file(path))
        first, last = (start + offset for offset in entries[name]["data_offsets"])
        dtype, content = SAFETENSORS_DTYPES[entries[name]["dtype"]], whole[0][first:last]
        mapped = first % dtype.itemsize == 0  # no file of the library's own has another place
        if not mapped:
            content = content.clone()
        return Taken(content.view(dtype).view(entries[name]["shape"]), mapped)

    shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    return Tensors(path, shapes, take)


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, MAX_HEADER))
    if size < 8 + length or not header.startswith(b"{"):
        raise ValueError(f"{path} is not a whole safetensors file; fetch or write it again")
    entries: dict[str, Any] = json.loads(header)
    entries.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"{path} has {size} bytes, its header says {8 + length + end}")
    for name, entry in entries.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise ValueError(
                f"{path}: {name} is of type {entry['dtype']}; allowed are "
                f"{', '.join(SAFETENSORS_DTYPES)}"
            )
        first, last = entry["data_offsets"]
        if (
            first < 0
            or last - first
            != math.prod(entry["shape"]) * SAFETENSORS_DTYPES[entry["dtype"]].itemsize
        ):
            raise ValueError(
                f"{path}: {name} {tuple(entry['shape'])} has {last - first} bytes; it must have as "
                "many as its shape and type"
            )
    return 8 + length, entries


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write tensors of one type, the bytes that the library writes, one tensor at a time.

    The metadata has one key: with two the library writes them in random order.
    """
    code = next(code for code, known in SAFETENSORS_DTYPES.items() if known is dtype)
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        end = offset + tensors[name].numel() * dtype.itemsize
        shape = list(tensors[name].shape)
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in sorted(tensors):
            tensor = tensors[name].detach().to("cpu", dtype).contiguous()
            file.write(tensor.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


# PyTorch's pickles.


def open_pickle(path: Path) -> Tensors:
    """Open a file of tensors as `torch.save` writes them."""
    tensors, mapped = read_pickle(path)
    if not all(map(torch.is_tensor, tensors.values())):
        raise ValueError(f"{path} holds other things than named tensors; allowed are no others")
    return of_dict(path, tensors, mapped=mapped)


def of_dict(where: Path, tensors: dict[str, Tensor], *, mapped: bool) -> Tensors:
    """Return tensors that were read already; those in memory are let go of as they are taken."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Tensors(where, shapes, take=lambda name: Taken(tensors.pop(name), mapped))


def read_pickle(path: Path) -> tuple[dict[str, Any], bool]:
    """Read PyTorch's file without running what it may carry; mapped, where its format allows.

    Returns its top dict, and whether the tensors in it are pages of the file.
    """
    mapped = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a file of tensors alone; allowed is no other") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} holds other things than named tensors; allowed are no others")
    return dict(content), mapped
