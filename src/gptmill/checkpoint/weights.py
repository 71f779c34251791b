"""Tensors in safetensors and PyTorch files, single or sharded.

Tensors keep their names from the file. Files are memory-mapped, and a tensor's pages are released
as soon as the tensor has been read. A pickle is only loaded with `weights_only=True`: no code in
the file can run.
"""

import ctypes
import json
import math
import mmap
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from gptmill.files import checked, parse_json, read_object, refuse_lfs_pointer, removed_on_error

# In order of preference; a folder often has several of them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MAX_HEADER = 100_000_000  # bytes; the safetensors library rejects longer headers
# Types by their names in safetensors files.
SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = {
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

# Keys of the state dict inside of a training checkpoint.
STATE_KEYS = ("model_state_dict", "state_dict", "model")
# Modules that wrap others, as parts of tensor names: anywhere, and in front.
COMPILED, PARALLEL = ("_orig_mod", "_fsdp_wrapped_module"), "module"
# The library raises these for damaged files.
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    zipfile.BadZipFile,
    struct.error,
)

HUGE_PAGE = 2**21  # bytes

Shape = tuple[int, ...]


class Taken(NamedTuple):
    """A tensor, and whether it consists of pages of a file.

    File pages can be released with `drop_pages`.
    """

    tensor: Tensor
    mapped: bool


@dataclass(frozen=True)
class Tensors:
    """Named tensors in files: shapes upfront, values on demand."""

    where: Path
    shapes: Mapping[str, Shape]
    take: Callable[[str], Taken]
    """Return a tensor; callable once per name."""


def drop_pages(tensor: Tensor) -> None:
    """Release the pages of a mapped, unchanged tensor.

    The file still holds the values; memory that is not backed by a file would lose them.
    """
    if sys.platform == "linux" and tensor.is_contiguous():
        end = tensor.data_ptr() + tensor.nbytes
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        _advise(first, end - first, mmap.MADV_DONTNEED)


def new_tensor(shape: Shape, dtype: torch.dtype) -> Tensor:
    """Return an uninitialized tensor, on huge pages where available.

    The first touch of each 4 KB page costs more than the copy itself: filling huge pages is 3 to 5
    times as fast.
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
    """Advise the kernel about pages.

    The kernel may decline, and no result depends on the advice.
    """
    if length > 0:
        _libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice)


def map_file(path: Path) -> Tensor:
    """Memory-map a file, (size,); writes never reach the file."""
    return torch.from_file(str(path), False, path.stat().st_size, dtype=torch.uint8)


def open_folder(folder: Path) -> Tensors:
    """Open the weights of a Hugging Face folder.

    Raises ValueError where the folder has no weights.
    """
    return _join(folder, [_open_file(path) for path in weight_files(folder)])


def _open_file(path: Path) -> Tensors:
    if path.suffix != ".safetensors":
        return open_pickle(path)
    file = open_safetensors(path)
    names = {unwrapped(name): name for name in file.shapes}
    if len(names) < len(file.shapes):
        raise ValueError(f"{path}: a tensor is there twice, with and without a module's prefix")
    shapes = {name: file.shapes[stored] for name, stored in names.items()}
    return Tensors(path, shapes, take=lambda name: file.take(names[name]))


def _join(where: Path, files: list[Tensors]) -> Tensors:
    file_of = {name: file for file in files for name in file.shapes}
    if len(file_of) < sum(len(file.shapes) for file in files):
        names = [name for file in files for name in file.shapes]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{where}: {duplicate} is in several files; allowed is a single file")
    return Tensors(
        where=where,
        shapes={name: file.shapes[name] for name, file in file_of.items()},
        take=lambda name: file_of[name].take(name),
    )


def read_shapes(folder: Path) -> dict[str, Shape]:
    """Return tensor shapes in `folder`, from headers where possible."""
    return dict(open_folder(folder).shapes)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Load the tensors in `folder` to the CPU, types unchanged."""
    tensors = open_folder(folder)
    return {name: tensors.take(name).tensor for name in tensors.shapes}


LONGEST_NAME = 255  # bytes; a file system refuses longer names


def weight_files(folder: Path) -> list[Path]:
    """Return the weight file, or the shards, in `folder`."""
    names = [name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not names:
        raise ValueError(f"{folder} has no weights; allowed are {', '.join(WEIGHT_FILES)}")
    path = folder / names[0]
    if not path.name.endswith(".index.json"):
        return [path]
    shards = sorted(set(_weight_map(path).values()))
    for shard in shards:
        if Path(shard).name != shard or "\0" in shard or len(shard.encode()) > LONGEST_NAME:
            raise ValueError(f"{path} names {shard[:80]!r}; allowed are files in the same folder")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ValueError(f"{folder}: {path.name} names missing files: {', '.join(missing)}")
    return [folder / shard for shard in shards]


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_object(path).get("weight_map")
    if not weight_map:
        raise ValueError(f"{path} has no weight_map from tensors to files; fetch the file again")
    return dict(checked(dict[str, str], weight_map, f"{path}, weight_map"))


# safetensors: the header's length in eight bytes, the header in JSON, the tensors' bytes.


def open_safetensors(path: Path) -> Tensors:
    """Memory-map a safetensors file; raise ValueError if incomplete."""
    start, entries = _read_header(path)
    file_bytes: list[Tensor] = []

    def take(name: str) -> Taken:
        if not file_bytes:
            file_bytes.append(map_file(path))
        first, last = (start + offset for offset in entries[name].data_offsets)
        dtype, values = SAFETENSORS_DTYPES[entries[name].dtype], file_bytes[0][first:last]
        mapped = first % dtype.itemsize == 0  # true in every file saved by the library
        if not mapped:
            values = values.clone()
        return Taken(values.view(dtype).view(entries[name].shape), mapped)

    shapes = {name: entry.shape for name, entry in entries.items()}
    return Tensors(path, shapes, take)


Offset = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class _Entry:
    """A tensor in the header of a safetensors file."""

    dtype: Literal[*SAFETENSORS_DTYPES]  # type: ignore[valid-type]
    shape: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...]
    data_offsets: tuple[Offset, Offset]


def _read_header(path: Path) -> tuple[int, dict[str, _Entry]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        header = file.read(min(length, MAX_HEADER))
    refuse_lfs_pointer(path, start + header[:100])
    if size < 8 + length or not header.startswith(b"{"):
        raise ValueError(f"{path} is not a complete safetensors file; fetch or save the file again")
    try:
        content = parse_json(header.decode("utf-8"), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the header is not UTF-8: {error}") from None
    content.pop("__metadata__", None)
    entries: dict[str, _Entry] = checked(dict[str, _Entry], content, path)
    end = max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"{path} has {size} bytes, but the header requires {8 + length + end}")
    _check_entries(path, entries)
    return 8 + length, entries


def _check_entries(path: Path, entries: Mapping[str, _Entry]) -> None:
    """Raise ValueError unless the tensors fill the file without gap or overlap."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        first, last = entry.data_offsets
        if last - first != math.prod(entry.shape) * SAFETENSORS_DTYPES[entry.dtype].itemsize:
            raise ValueError(
                f"{path}: {name} has {last - first} bytes; the size must match shape "
                f"{entry.shape} and type {entry.dtype}"
            )
        if first != position:
            raise ValueError(
                f"{path}: {name} begins at byte {first}, and the tensor before ends at {position}; "
                "tensors must follow each other"
            )
        position = last


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Save tensors as `dtype` in a safetensors file.

    The file has the same bytes as the library's, and is written one tensor at a time. The metadata
    has a single key because the library writes two keys in random order.
    """
    code = next(code for code, value in SAFETENSORS_DTYPES.items() if value is dtype)
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
    with removed_on_error(partial), partial.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in sorted(tensors):
            values = tensors[name].detach().to("cpu")
            tensor = values.to(dtype).contiguous()
            check_finite(tensor, values, name)
            file.write(tensor.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def check_finite(stored: Tensor, values: Tensor, name: str) -> None:
    """Raise ValueError if `stored`, the rounded `values`, has infinities or NaN."""
    if _finite(stored):
        return
    if not _finite(values):
        raise ValueError(
            f"{name} has values that are NaN or infinite; allowed are finite weights: use an "
            "earlier checkpoint of the training"
        )
    least, most = torch.aminmax(values)
    largest = max(-least.item(), most.item())
    fitting = [n for n, dtype in SAVED_DTYPES.items() if largest <= torch.finfo(dtype).max]
    raise ValueError(
        f"{name} has values up to {largest:.4g}, and {_name(stored.dtype)} holds at most "
        f"{torch.finfo(stored.dtype).max:.4g}; allowed are {', '.join(fitting) or 'smaller values'}"
    )


def _finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, without a copy of the tensor."""
    return not tensor.numel() or all(bound.isfinite().item() for bound in torch.aminmax(tensor))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# PyTorch pickles.


def open_pickle(path: Path) -> Tensors:
    """Open a file of tensors saved with `torch.save`."""
    content, mapped = read_pickle(path)
    return of_dict(path, named_tensors(path, content), mapped=mapped)


def of_dict(where: Path, tensors: dict[str, Tensor], *, mapped: bool) -> Tensors:
    """Wrap tensors that are already loaded.

    Taking a tensor removes it from `tensors`, so that memory is freed tensor by tensor.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Tensors(where, shapes, take=lambda name: Taken(tensors.pop(name), mapped))


def read_pickle(path: Path) -> tuple[dict[Any, Any], bool]:
    """Load a PyTorch file without running code from the file.

    The file is memory-mapped where the format allows. Returns the state dict, and whether the
    tensors are pages of the file. A state dict inside of a training checkpoint is found by its key.
    Raises ValueError where the content is not a dict.
    """
    with path.open("rb") as file:
        refuse_lfs_pointer(path, file.read(100))
    mapped = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except PICKLE_ERRORS as error:
        raise ValueError(
            f"{path} is not a PyTorch file of tensors only; allowed are tensors saved by torch.save"
        ) from error
    while isinstance(content, dict):
        inner = next((content[key] for key in STATE_KEYS if key in content), None)
        if not isinstance(inner, dict):
            return dict(content), mapped
        content = inner
    raise ValueError(f"{path} holds {type(content).__name__}; allowed is a dict of named tensors")


def named_tensors(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return named tensors without the prefixes of wrapping modules.

    Raises ValueError for other content, and for tensors without values in the file.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path} holds more than named tensors: {name!r:.60} is {type(value).__name__}; "
                "allowed are named tensors only"
            )
        if not _is_plain(value):
            raise ValueError(
                f"{path}: {name} is sparse, quantized, without values or a view of fewer values; "
                "allowed are plain tensors: save tensor.contiguous()"
            )
        if unwrapped(name) in tensors:
            raise ValueError(f"{path}: {unwrapped(name)} is there twice; allowed is once")
        tensors[unwrapped(name)] = value
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor has values for all places in memory."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def unwrapped(name: str) -> str:
    """Return a tensor's name without the prefixes of torch.compile and data-parallel training."""
    parts = [part for part in name.split(".") if part not in COMPILED]
    while len(parts) > 1 and parts[0] == PARALLEL:
        parts.pop(0)
    return ".".join(parts)
