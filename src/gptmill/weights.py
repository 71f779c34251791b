"""Tensors in files: safetensors or PyTorch's own, whole or in shards, named as they lie there.

A pickle is read with `weights_only=True` alone: nothing in it can run.
"""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
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

Shape = tuple[int, ...]


def read_shapes(folder: Path) -> dict[str, Shape]:
    """Return the shape of each tensor in `folder`, from headers where the format has them."""
    shapes: dict[str, Shape] = {}
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            shapes |= _safetensors_shapes(path)
        else:
            shapes |= {name: tuple(tensor.shape) for name, tensor in _read_pickle(path).items()}
    return shapes


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return each tensor in `folder`, on the CPU, in the type that it has there."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors |= load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the file or the shards that hold the weights in `folder`."""
    names = [name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not names:
        raise ValueError(f"{folder}: no weights; allowed is one of {', '.join(WEIGHT_FILES)}")
    path = folder / names[0]
    if not path.name.endswith(".index.json"):
        return [path]
    shards = sorted({folder / shard for shard in read_json(path)["weight_map"].values()})
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(f"{folder}: {path.name} names {', '.join(missing)}, which is missing")
    return shards


def _safetensors_shapes(path: Path) -> dict[str, Shape]:
    """Parse the header: eight bytes of its length, then JSON; then the tensors' bytes."""
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
    return {name: tuple(entry["shape"]) for name, entry in entries.items()}


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Read PyTorch's file without running what it may carry; mapped, where its format allows."""
    mapped = zipfile.is_zipfile(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a file of tensors alone; allowed is no other") from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise ValueError(f"{path} holds other things than named tensors; allowed are no others")
    return dict(tensors)
