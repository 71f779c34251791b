"""States of sharded trainings: each rank writes its share of a tensor, and reads anyone's.

No process holds a whole state. The shares are torch.distributed.checkpoint's
(https://docs.pytorch.org/docs/stable/distributed.checkpoint.html), a safetensors file a rank
whose header says which part of a tensor is where, so that more ranks, fewer, or one alone can
read them. They lie in a folder beside the state's own file, which names them with their SHA-256
and has the rest: what is small, the history, the record. That file is written and sealed last,
as ever. Without it there is no state, and where one share is damaged the state is.
"""

import errno
import shutil
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from gptmill.files import sha256
from gptmill.training.distributed import COLLECTIVE_TIMEOUT, World
from gptmill.training.state.store import (
    SHARDS,
    State,
    StateStore,
    no_room,
)


def for_ranks(store: StateStore | None, world: World) -> StateStore | None:
    """Return what this rank saves states by: the first rank's store, or, sharded, one a rank."""
    if not world.sharded:
        return store
    told = world.broadcast_object(
        None if store is None else (store.folder, store.every, store.keep)
    )
    if told is None:
        return None
    _check_seen(told[0], world)
    notes = [] if store is None else store.notes
    return ShardedStore(told[0], every=told[1], keep=told[2], world=world, notes=notes)


def handed_out(found: State | None, world: World, like: Mapping[str, Tensor]) -> State | None:
    """Give each rank its part of the state that the first rank found.

    Sharded, that is a share on the CPU of whatever has the shape of its parameter in `like`, by
    names. Otherwise the first rank has all tensors, and the others their shapes.
    """
    if found is not None and found.shards is not None and not world.sharded:
        tensors = {**found.tensors, **read_whole(found.shards)}
        found = replace(found, tensors=tensors, shards=None)
    told = world.broadcast_object(_outline(found))
    if told is None or not world.sharded:
        return found if world.rank == 0 else told
    given = told if found is None else found
    shares = {
        name: world.shard(value, like[_parameter(name, like)])
        for name, value in given.tensors.items()
    }
    if told.shards is not None:
        shares |= _read_shares(told.shards, world, like)
    return replace(told, tensors=shares, shards=None)


class ShardedStore(StateStore):
    """States of which each rank writes its shares; the first rank does the rest.

    All ranks save and load together, in the same order. What they have to say to one another
    while they write has a group of its own: the training goes on meanwhile.
    """

    def __init__(
        self, folder: Path, *, every: float, keep: int, world: World, notes: list[str]
    ) -> None:
        super().__init__(folder, every=every, keep=keep)
        self.notes = notes
        self._world = world
        self._group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)

    @property
    def leads(self) -> bool:
        """Return whether this rank writes the state's own file."""
        return self._world.rank == 0

    def load(self) -> State | None:
        """Return on the first rank what there is, on the others nothing: they are told."""
        return super().load() if self.leads else None

    def _set_aside(self, state: State, path: Path) -> State:
        """Write the shares; return the rest of the state, with what names them."""
        shares = {n: value for n, value in state.tensors.items() if isinstance(value, DTensor)}
        rest = {n: value for n, value in state.tensors.items() if n not in shares}
        folder = self._new_folder(path, shares)
        partial = folder.with_name(f".{folder.name}.partial")
        try:
            _save(partial, shares, self._group)
            files = self._hashes(partial)
            if self.leads:
                partial.rename(folder)
        finally:
            if self.leads:
                shutil.rmtree(partial, ignore_errors=True)
        named = {SHARDS: {"folder": folder.name, "files": files}}
        return replace(state, tensors=rest, record={**state.record, **named})

    def _new_folder(self, path: Path, shares: Mapping[str, Tensor]) -> Path:
        """Return where the shares of a state are to go; a step may be saved twice.

        Raises OSError, on all ranks alike, where there is no room for them.
        """
        told: list[Any] = [None]
        if self.leads:
            taken = {found.name for found in path.parent.glob(f"*.{SHARDS}")}
            names = (f"{path.stem}-{number}.{SHARDS}" for number in range(len(taken) + 1))
            needed = sum(value.numel() * value.element_size() for value in shares.values())
            free = shutil.disk_usage(path.parent).free
            told = [next(name for name in names if name not in taken), needed, free]
        told = self._tell(told)
        name, needed, free = told
        if needed > free:
            raise OSError(errno.ENOSPC, no_room(path, f"{needed:,} bytes needed, {free:,} free"))
        return path.with_name(name)

    def _tell(self, value: list[Any]) -> list[Any]:
        told = [value]
        dist.broadcast_object_list(told, 0, group=self._group)
        return told[0]

    def _hashes(self, folder: Path) -> dict[str, str]:
        """Return the SHA-256 of each file on the first rank; the ranks share the work."""
        mine = sorted(folder.iterdir())[self._world.rank :: self._world.size]
        found: list[Any] | None = [None] * self._world.size if self.leads else None
        dist.gather_object({path.name: sha256(path) for path in mine}, found, group=self._group)
        return {name: value for part in found or () for name, value in sorted(part.items())}


def read_whole(folder: Path) -> dict[str, Tensor]:
    """Return the tensors whose shares are in a folder, put together, by this process alone."""
    tensors = {name: torch.empty_like(meta, device="cpu") for name, meta in _shapes(folder).items()}
    with warnings.catch_warnings():  # that it is alone is meant
        warnings.simplefilter("ignore")
        load(dict(tensors), storage_reader=_reader(folder), no_dist=True)
    return tensors


def _read_shares(folder: Path, world: World, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this rank's shares of the tensors in a folder, whoever wrote which part of them."""
    tensors: dict[str, Tensor] = {
        name: world.empty_shard(meta, like[_parameter(name, like)])
        for name, meta in _shapes(folder).items()
    }
    load(dict(tensors), storage_reader=_reader(folder))
    return tensors


def _shapes(folder: Path) -> dict[str, Tensor]:
    """Return the tensors in a folder without their content."""
    tensors = {}
    for name, entry in sorted(_reader(folder).read_metadata().state_dict_metadata.items()):
        assert isinstance(entry, TensorStorageMetadata)
        tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return tensors


def _reader(folder: Path) -> HuggingFaceStorageReader:
    return HuggingFaceStorageReader(str(folder))


def _save(folder: Path, shares: Mapping[str, Tensor], group: dist.ProcessGroup) -> None:
    """Write each rank's shares. Raises on all ranks what one of them met, OSError or another."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(shares), storage_writer=writer, process_group=group)
    except CheckpointException as error:  # no Exception, and it would pass by every handler
        rank, (cause, _) = next(iter(error.failures.items()))
        if isinstance(cause, OSError):
            raise OSError(cause.errno, no_room(folder, f"rank {rank}: {cause}")) from None
        raise RuntimeError(f"rank {rank} could not write its shares: {cause}") from cause


def _check_seen(folder: Path, world: World) -> None:
    """Raise ValueError where not all ranks see one folder: no state could be put together."""
    token = folder / f".{world.broadcast_object(uuid.uuid4().hex)}.token"
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    world.broadcast_object(None)  # it is there now
    blind = world.any_rank(not token.exists())
    with suppress(FileNotFoundError):
        token.unlink()
    if blind:
        raise ValueError(
            f"{folder} is not the same folder for all processes, and a sharded training's state is "
            "written by all: put the project on a file system that the nodes share, or set "
            "pretrain.shard to false"
        )


def _parameter(name: str, like: Mapping[str, Tensor]) -> str:
    """Return the parameter that a state's tensor belongs to: `model/X`, `optimizer/X.exp_avg`."""
    last = name.rpartition("/")[2]
    return last if last in like else last.rpartition(".")[0]


def _outline(state: State | None) -> State | None:
    """Return a state without the content of its tensors."""
    if state is None:
        return None
    return replace(state, tensors={name: t.to("meta") for name, t in state.tensors.items()})
