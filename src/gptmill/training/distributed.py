"""One process or many: the operations of `torch.distributed` that the training loop needs.

Every rank builds the same batch and takes its own rows. So all ranks know the number of counted
targets without communication, and the order of the data does not depend on the number of ranks:
a training may resume with more ranks, or fewer.

Either each rank holds the whole model and gradients are averaged (DDP, Li et al. 2020,
https://arxiv.org/abs/2006.15704), or each rank holds shards of weights, gradients and moments, and
gathers the weights of a block to compute it (FSDP, Zhao et al. 2023,
https://arxiv.org/abs/2304.11277; in its second version, `fully_shard`,
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).

A training may resume sharded from an unsharded state, and the reverse. No rank holds a whole
sharded state (shards.py). But every rank draws all weights before sharding, and the first rank
gathers them at the end, so that its memory must hold the weights in fp32.
"""

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from gptmill.model.objectives import Batch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""Timeout for a rank that is alive but silent; a dead rank is noticed at once."""

T = TypeVar("T")


class LostRankError(RuntimeError):
    """Another rank is gone, and this rank cannot continue alone."""


@dataclass(frozen=True)
class World:
    """The processes that train a model together, and the rank of this process."""

    rank: int = 0
    size: int = 1
    sharded: bool = False

    # rows

    def share(self, batch: Batch) -> Batch:
        """Return this rank's rows of a batch, as evenly as possible."""
        rows = len(batch[0])
        assert rows >= self.size, f"{rows} rows are too few for {self.size} ranks"
        start, end = rows * self.rank // self.size, rows * (self.rank + 1) // self.size
        return tuple(tensor[start:end] for tensor in batch)

    def largest_share(self, rows: int) -> int:
        """Return the largest number of rows on a rank."""
        return -(-rows // self.size)

    # the model

    def wrap(self, module: nn.Module, model: nn.Module, device: str) -> nn.Module:
        """Move `module` to the device; return a module that averages the gradients of `model`."""
        if self.sharded:
            return Sharded(module, model, device)
        module.to(device)
        if self.size == 1:
            return module
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def unwrap(self, module: nn.Module) -> None:
        """Undo `wrap`: on the first rank, a sharded model becomes a plain model."""
        if isinstance(module, Sharded):
            module.unshard(self)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which gradients accumulate on each rank without averaging.

        Sharded gradients are always reduced, because unsharded ones would not fit into memory.
        """
        if isinstance(module, DistributedDataParallel):
            waiting: AbstractContextManager[None] = module.no_sync()
            return waiting
        return nullcontext()

    def reshard(self, model: nn.Module) -> None:
        """Reshard parameters that evaluation left gathered."""
        if self.sharded:
            from torch.distributed.fsdp import FSDPModule

            for part in model.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()

    @property
    def reorders(self) -> bool:
        """Return whether the first step fixes the order of summation."""
        return self.size > 1 and not self.sharded

    # numbers

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def broadcast(self, value: Tensor) -> Tensor:
        """Return the first rank's value, or all of a sharded value, equal on all ranks."""
        if is_shard(value):
            return value.full_tensor()
        if self.size > 1:
            dist.broadcast(value, 0)
        return value

    def any_rank_if_sharded(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any rank sets the flag; unsharded, return the own flags."""
        return tuple(map(self.any_rank, flags)) if self.sharded else flags

    def any_rank(self, flag: bool) -> bool:
        """Return whether any rank sets a flag."""
        if self.size == 1:
            return flag
        raised = torch.tensor(flag, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def broadcast_object(self, value: T) -> T:
        """Return the first rank's object on every rank."""
        if self.size == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, 0)
        return told[0]

    # tensors of a state, on the CPU: shards on each rank, or all of them on the first rank

    def to_cpu(self, tensor: Tensor, *, copy: bool = True) -> Tensor:
        """Return a copy on the CPU: this rank's shard, or all on the first rank.

        Unsharded, ranks behind the first return the shape alone, on the meta device. A tensor
        without shards in a sharded training is copied on every rank. Without `copy`, a whole
        tensor on the CPU is returned itself.
        """
        mine = tensor.detach()
        if is_shard(mine):
            return _share(mine.to_local().to("cpu", copy=True), mine, _on_cpu(self.size))
        return mine.to("cpu", copy=copy) if self.sharded or self.rank == 0 else mine.to("meta")

    def to_device_like(self, value: Tensor, like: Tensor) -> Tensor:
        """Return the inverse of `to_cpu`: the value on the device of `like`, on every rank."""
        if self.size == 1:
            return value
        if is_shard(value):
            assert is_shard(like)
            return _share(value.to_local().to(like.device), value, like.device_mesh)
        if self.sharded:
            return value.to(like.device)
        whole = (
            value.to(like.device) if self.rank == 0 else torch.empty_like(value, device=like.device)
        )
        dist.broadcast(whole, 0)
        return whole

    def shard(self, value: Tensor, like: Tensor) -> Tensor:
        """Return this rank's shard of a value that the first rank holds, sharded as `like`.

        A value with a shape unlike `like` is not sharded: each rank gets all of the value.
        """
        whole = value if self.rank == 0 else torch.empty_like(value, device="cpu")
        if is_shard(like) and like.shape == whole.shape:
            from torch.distributed.tensor import distribute_tensor

            return distribute_tensor(whole, _on_cpu(self.size), like.placements)
        dist.broadcast(whole, 0)
        return whole

    def empty_shard(self, shape: Tensor, like: Tensor) -> "DTensor":
        """Return an empty shard of the shape of `like` and the type of `shape`."""
        assert is_shard(like)
        assert like.shape == shape.shape
        local = torch.empty(like.to_local().shape, dtype=shape.dtype)
        return _share(local, like, _on_cpu(self.size))

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Return the whole tensor on the first rank's CPU, and the shape alone on other ranks."""
        if is_shard(tensor):
            tensor = tensor.full_tensor()
        return tensor.detach().to("cpu" if self.rank == 0 else "meta")


def is_shard(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is a shard of a rank.

    torch.distributed.tensor takes half a second of imports, that only sharded training needs: no
    shard exists before the module is loaded.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _share(local: Tensor, like: "DTensor", mesh: DeviceMesh) -> "DTensor":
    """Return a local tensor as a shard with the placements of `like`, on `mesh`."""
    from torch.distributed.tensor import DTensor

    shape, stride = like.shape, like.stride()
    return DTensor.from_local(
        local, mesh, like.placements, run_check=False, shape=shape, stride=stride
    )


@cache
def _on_cpu(size: int) -> DeviceMesh:
    """Return the CPU mesh of all ranks."""
    return init_device_mesh("cpu", (size,))


SINGLE_PROCESS = World()
"""This process alone."""


class Sharded(nn.Module):
    """A module with a sharded `model`: one FSDP unit per block, and one for the rest."""

    def __init__(self, module: nn.Module, model: nn.Module, device: str) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        super().__init__()
        self._model = [model]  # lists hide both from `parameters`
        self._plain = [_without_content(model)]
        mesh = init_device_mesh(device, (dist.get_world_size(),))
        lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
        units = [block for part in lists for block in part]
        for unit in (*units, model):
            fully_shard(unit, mesh=mesh)
        if hasattr(model, "hidden"):  # losses and decoding call `hidden` rather than `forward`
            register_fsdp_forward_method(model, "hidden")
        # the buffers of gathered weights are allocated at first use; allocated by a decoder under
        # inference_mode, training could not write to them
        for unit in (*units, model):
            assert isinstance(unit, FSDPModule)
            unit.unshard()
            unit.reshard()
        self.module = module

    def forward(self, *batch: Tensor) -> Any:
        """Run the module on this rank's rows."""
        return self.module(*batch)

    def unshard(self, world: World) -> None:
        """Turn the model on the first rank back into a plain model with the present weights.

        `fully_shard` changes a model for good, so the object takes over the attributes of a copy
        from before sharding; all references to the model stay valid.
        """
        (model,), (plain,) = self._model, self._plain
        world.reshard(model)
        weights = {
            name: world.full_tensor(parameter) for name, parameter in model.named_parameters()
        }
        if world.rank == 0:
            device = next(model.parameters()).device
            plain.load_state_dict(weights, assign=True)
            plain.to(device)
            model.__class__ = type(plain)
            model.__dict__ = plain.__dict__


def _without_content(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the meta device, without copying weights."""
    assert not list(model.buffers()), "buffers would be lost"
    empty: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, empty)


def is_lost(error: BaseException) -> bool:
    """Return whether a collective raised the error because another rank is gone."""
    # gloo's errors are plain RuntimeErrors
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError | LostRankError) or "gloo" in str(error)
    )


@contextmanager
def join(device: str, *, shard: bool = False) -> Iterator[World]:
    """Join the process group of torchrun's variables; without them, run alone.

    The backend is Gloo on the CPU and NCCL on CUDA, with the device of the local rank. Raises
    LostRankError if another rank dies.
    """
    if "RANK" not in os.environ:
        yield SINGLE_PROCESS
        return
    here: torch.device | None = None
    if device == "cuda":
        here = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(here)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            timeout=COLLECTIVE_TIMEOUT,
            device_id=here,
        )
        size = dist.get_world_size()
        yield World(dist.get_rank(), size, shard and size > 1)
    except RuntimeError as error:
        if is_lost(error):
            raise LostRankError(str(error).strip().splitlines()[0]) from error
        raise
    dist.destroy_process_group()
