"""Sharded training states: every rank writes and loads shards.

Each rank writes its own shards, and can read any rank's shards: no process holds a whole state.
torch.distributed.checkpoint
(https://docs.pytorch.org/docs/stable/distributed.checkpoint.html) writes the shards, one
safetensors file per rank. The header of each file records the location of every part of a tensor:
more ranks, fewer ranks or a single process can read the shards. The shard files are in a folder
beside the state file. The state file names the shard files with their SHA-256 and holds the rest:
small tensors, the history and the record. The state file is written and sealed last, as in
unsharded training. Without a state file there is no state, and a damaged shard means a damaged
state.

torch.distributed.checkpoint is imported where shards are written or read: the imports take half a
second, and most trainings have no shards.
"""

import errno
import shutil
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from gptmill.files import sha256
from gptmill.training.distributed import COLLECTIVE_TIMEOUT, World, is_shard
from gptmill.training.state.store import (
    SHARDS,
    State,
    StateStore,
    no_room,
)

if TYPE_CHECKING:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader


def for_ranks(store: StateStore | None, world: World) -> StateStore | None:
    """Return this rank's state store.

    In sharded training, every rank has a store; otherwise, only the first rank.
    """
    if not world.sharded:
        return store
    settings = world.broadcast_object(
        None if store is None else (store.folder, store.every, store.keep)
    )
    if settings is None:
        return None
    folder, every, keep = settings
    _check_seen(folder, world)
    notes = [] if store is None else store.notes
    return ShardedStore(folder, every=every, keep=keep, world=world, notes=notes)


def handed_out(state: State | None, world: World, like: Mapping[str, Tensor]) -> State | None:
    """Return each rank's part of the first rank's loaded state.

    In sharded training, each rank gets a shard on the CPU of every tensor with the shape of the
    parameter of the same name in `like`. Otherwise the first rank gets all tensors, and the
    other ranks get the shapes.
    """
    if state is not None and state.shards is not None and not world.sharded:
        tensors = {**state.tensors, **read_whole(state.shards)}
        state = replace(state, tensors=tensors, shards=None)
    outline = world.broadcast_object(_outline(state))
    if outline is None or not world.sharded:
        return state if world.rank == 0 else outline
    source = outline if state is None else state
    shards = {
        name: world.shard(value, like[_parameter(name, like)])
        for name, value in source.tensors.items()
    }
    if outline.shards is not None:
        shards |= _load_shards(outline.shards, world, like)
    return replace(outline, tensors=shards, shards=None)


class ShardedStore(StateStore):
    """Store of sharded states: each rank writes its own shards.

    The first rank writes the rest. All ranks save and load together, in the same order. Messages
    between the ranks during a save use a separate process group: the training continues meanwhile.
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
        """Return whether this rank writes the state file."""
        return self._world.rank == 0

    def load(self) -> State | None:
        """Load the newest state on the first rank only.

        The other ranks return None; `handed_out` sends the state to every rank.
        """
        return super().load() if self.leads else None

    def _set_aside(self, state: State, path: Path) -> State:
        """Write the shards; return the rest of the state.

        The returned record names the folder and the files of the shards.
        """
        shards = {n: value for n, value in state.tensors.items() if is_shard(value)}
        rest = {n: value for n, value in state.tensors.items() if n not in shards}
        folder = self._new_folder(path, shards)
        partial = folder.with_name(f".{folder.name}.partial")
        try:
            _save(partial, shards, self._group)
            files = self._hashes(partial)
            if self.leads:
                partial.rename(folder)
        finally:
            if self.leads:
                shutil.rmtree(partial, ignore_errors=True)
        named = {SHARDS: {"folder": folder.name, "files": files}}
        return replace(state, tensors=rest, record={**state.record, **named})

    def _new_folder(self, path: Path, shards: Mapping[str, Tensor]) -> Path:
        """Return a new folder for the shards of a state.

        A step may be saved twice, in different folders. Raises OSError, on all ranks alike, if the
        disk has too little space for the shards.
        """
        target: list[Any] = [None]
        if self.leads:
            taken = {folder.name for folder in path.parent.glob(f"*.{SHARDS}")}
            names = (f"{path.stem}-{number}.{SHARDS}" for number in range(len(taken) + 1))
            needed = sum(value.numel() * value.element_size() for value in shards.values())
            free = shutil.disk_usage(path.parent).free
            target = [next(name for name in names if name not in taken), needed, free]
        name, needed, free = self._broadcast(target)
        if needed > free:
            raise OSError(errno.ENOSPC, no_room(path, f"{needed:,} bytes needed, {free:,} free"))
        return path.with_name(name)

    def _broadcast(self, value: list[Any]) -> list[Any]:
        values = [value]
        dist.broadcast_object_list(values, 0, group=self._group)
        return values[0]

    def _hashes(self, folder: Path) -> dict[str, str]:
        """Return the SHA-256 of each file on the first rank.

        Each rank hashes a part of the files. The other ranks return an empty dict.
        """
        mine = sorted(folder.iterdir())[self._world.rank :: self._world.size]
        parts: list[Any] | None = [None] * self._world.size if self.leads else None
        dist.gather_object({path.name: sha256(path) for path in mine}, parts, group=self._group)
        return {name: value for part in parts or () for name, value in sorted(part.items())}


def read_whole(folder: Path) -> dict[str, Tensor]:
    """Load whole tensors from a shard folder, in one process."""
    from torch.distributed.checkpoint.state_dict_loader import load

    tensors = {name: torch.empty_like(meta, device="cpu") for name, meta in _shapes(folder).items()}
    with warnings.catch_warnings():  # ignore the warning about a single process: no group is needed
        warnings.simplefilter("ignore")
        load(dict(tensors), storage_reader=_reader(folder), no_dist=True)
    return tensors


def _load_shards(folder: Path, world: World, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Load this rank's shards of the tensors in a folder.

    Different ranks, and a different number of ranks, may have written the parts of a shard.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    tensors: dict[str, Tensor] = {
        name: world.empty_shard(meta, like[_parameter(name, like)])
        for name, meta in _shapes(folder).items()
    }
    load(dict(tensors), storage_reader=_reader(folder))
    return tensors


def _shapes(folder: Path) -> dict[str, Tensor]:
    """Return a folder's tensors as meta tensors, without content."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    tensors = {}
    for name, entry in sorted(_reader(folder).read_metadata().state_dict_metadata.items()):
        assert isinstance(entry, TensorStorageMetadata)
        tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return tensors


def _reader(folder: Path) -> "HuggingFaceStorageReader":
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(folder))


def _save(folder: Path, shards: Mapping[str, Tensor], group: dist.ProcessGroup) -> None:
    """Write each rank's shards.

    If writing fails on one rank, all ranks raise: OSError if the cause is an OSError, otherwise
    RuntimeError.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(shards), storage_writer=writer, process_group=group)
    except CheckpointException as error:  # a BaseException, missed by every `except Exception`
        rank, (cause, _) = next(iter(error.failures.items()))
        if isinstance(cause, OSError):
            raise OSError(cause.errno, no_room(folder, f"rank {rank}: {cause}")) from None
        raise RuntimeError(f"rank {rank} could not write the shards: {cause}") from cause


def _check_seen(folder: Path, world: World) -> None:
    """Raise ValueError unless all ranks see the same folder.

    Shards in different folders could not be combined into a state.
    """
    token = folder / f".{world.broadcast_object(uuid.uuid4().hex)}.token"
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    world.broadcast_object(None)  # wait until the token exists
    blind = world.any_rank(not token.exists())
    with suppress(FileNotFoundError):
        token.unlink()
    if blind:
        raise ValueError(
            f"{folder} is not the same folder for all processes, and all processes write the state "
            "of a sharded training: put the project on a file system shared by the nodes, or set "
            "pretrain.shard to false"
        )


def _parameter(name: str, like: Mapping[str, Tensor]) -> str:
    """Return the name of a state tensor's parameter.

    The parameter of `model/X` and of `optimizer/X.exp_avg` is `X`.
    """
    last = name.rpartition("/")[2]
    return last if last in like else last.rpartition(".")[0]


def _outline(state: State | None) -> State | None:
    """Return a state with meta tensors, without content."""
    if state is None:
        return None
    return replace(state, tensors={name: t.to("meta") for name, t in state.tensors.items()})
