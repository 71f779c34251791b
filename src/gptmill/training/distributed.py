"""One process or many: `torch.distributed` as torchrun starts it, and what the loop asks of it.

Every rank makes the same batch of the same step and takes its own rows of it. So the number of
counted targets is known to all without a word, and the order of the data does not depend on
how many ranks there are: a training may go on with more of them, or fewer.

Each rank holds the whole model and the gradients are averaged (DDP, Li et al. 2020,
https://arxiv.org/abs/2006.15704), or each holds a share of weights, gradients and moments, and
a block's weights are put together when it is computed (FSDP, Zhao et al. 2023,
https://arxiv.org/abs/2304.11277; here its second form, `fully_shard`,
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).

The state of a training is one either way: it may go on sharded or not. Nobody holds a sharded
one whole (shards.py); but every rank draws all weights before they are sharded, and the first
one puts them together at the end, so that its machine's memory must hold the weights in fp32.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gptmill.model.objectives import Batch

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""A rank that lives but answers nothing for so long is given up; a dead one is noticed at once."""

T = TypeVar("T")


class LostRankError(RuntimeError):
    """Another rank is gone, and this one cannot go on without it."""


@dataclass(frozen=True)
class World:
    """The processes that train one model together, and which of them this is."""

    rank: int = 0
    size: int = 1
    sharded: bool = False

    # rows

    def share(self, batch: Batch) -> Batch:
        """Return this rank's rows of a batch, as even a share as there is."""
        rows = len(batch[0])
        assert rows >= self.size, f"{rows} rows cannot be shared out to {self.size} ranks"
        start, end = rows * self.rank // self.size, rows * (self.rank + 1) // self.size
        return tuple(tensor[start:end] for tensor in batch)

    def largest_share(self, rows: int) -> int:
        """Return how many of so many rows the rank with the most has."""
        return -(-rows // self.size)

    # the model

    def wrap(self, module: nn.Module, model: nn.Module, device: str) -> nn.Module:
        """Put `module` on its device; return what leaves averaged gradients in its `model`."""
        if self.sharded:
            return Sharded(module, model, device)
        module.to(device)
        if self.size == 1:
            return module
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def unwrap(self, module: nn.Module) -> None:
        """Undo `wrap`: on the first rank, a model that was sharded is then a plain one again."""
        if isinstance(module, Sharded):
            module.unshard(self)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which a wrapped module's gradients only add up, rank by rank.

        Sharded ones are always reduced: to keep them whole is what there is no memory for.
        """
        if isinstance(module, DistributedDataParallel):
            waiting: AbstractContextManager[None] = module.no_sync()
            return waiting
        return nullcontext()

    def reshard(self, model: nn.Module) -> None:
        """Give back what an evaluation left put together of a sharded model."""
        for part in model.modules() if self.sharded else ():
            if isinstance(part, FSDPModule):
                part.reshard()

    @property
    def reorders(self) -> bool:
        """Return whether the first step settles in which order gradients are summed."""
        return self.size > 1 and not self.sharded

    # numbers

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of the ranks' values."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def broadcast(self, value: Tensor) -> Tensor:
        """Return a value that each rank computed, the same on all to the last bit."""
        if isinstance(value, DTensor):
            return value.full_tensor()
        if self.size > 1:
            dist.broadcast(value, 0)
        return value

    def any_rank_if_sharded(self, *flags: bool) -> tuple[bool, ...]:
        """Return which flags are up on any rank; unsharded ranks keep each to their own."""
        return tuple(map(self.any_rank, flags)) if self.sharded else flags

    def any_rank(self, flag: bool) -> bool:
        """Return whether a flag is up on any rank."""
        if self.size == 1:
            return flag
        raised = torch.tensor(flag, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def broadcast_object(self, value: T) -> T:
        """Return the first rank's value."""
        if self.size == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, 0)
        return told[0]

    # tensors of a state, on the CPU: sharded, each rank has its share; else the first has all

    def to_cpu(self, tensor: Tensor) -> Tensor:
        """Return a copy of what this rank holds of a tensor; behind the first, only its shape.

        Sharded, each rank holds its share, and all of what is not shared out.
        """
        mine = tensor.detach()
        if isinstance(mine, DTensor):
            return _share(mine.to_local().to("cpu", copy=True), mine, _on_cpu(self.size))
        return mine.to("cpu", copy=True) if self.sharded or self.rank == 0 else mine.to("meta")

    def to_device_like(self, value: Tensor, like: Tensor) -> Tensor:
        """Return what is held of a value where the tensor `like` is, on every rank."""
        if self.size == 1:
            return value
        if isinstance(value, DTensor):
            assert isinstance(like, DTensor)
            return _share(value.to_local().to(like.device), value, like.device_mesh)
        if self.sharded:
            return value.to(like.device)
        whole = (
            value.to(like.device) if self.rank == 0 else torch.empty_like(value, device=like.device)
        )
        dist.broadcast(whole, 0)
        return whole

    def shard(self, value: Tensor, like: Tensor) -> Tensor:
        """Return this rank's share, as `like` is shared out, of what the first rank has whole.

        What has another shape than `like` is not shared out: each rank has all of it.
        """
        whole = value if self.rank == 0 else torch.empty_like(value, device="cpu")
        if isinstance(like, DTensor) and like.shape == whole.shape:
            return distribute_tensor(whole, _on_cpu(self.size), like.placements)
        dist.broadcast(whole, 0)
        return whole

    def empty_shard(self, shape: Tensor, like: Tensor) -> DTensor:
        """Return a share like that of `like`, of the type that `shape` has, to be filled."""
        assert isinstance(like, DTensor)
        assert like.shape == shape.shape
        local = torch.empty(like.to_local().shape, dtype=shape.dtype)
        return _share(local, like, _on_cpu(self.size))

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Return all of a tensor on the first rank, on the CPU; behind it, only its shape."""
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        return tensor.detach().to("cpu" if self.rank == 0 else "meta")


def _share(local: Tensor, like: DTensor, mesh: DeviceMesh) -> DTensor:
    """Return a local part as the share of a tensor like another one, on a mesh of its device."""
    shape, stride = like.shape, like.stride()
    return DTensor.from_local(
        local, mesh, like.placements, run_check=False, shape=shape, stride=stride
    )


@cache
def _on_cpu(size: int) -> DeviceMesh:
    """Return all ranks as a mesh whose tensors are on the CPU."""
    return init_device_mesh("cpu", (size,))


SINGLE_PROCESS = World()
"""This process alone."""


class Sharded(nn.Module):
    """A module whose `model` is shared out to the ranks: a unit a block, and one for the rest."""

    def __init__(self, module: nn.Module, model: nn.Module, device: str) -> None:
        super().__init__()
        self._model = [model]  # in lists, which hide them from `parameters`
        self._plain = [_without_content(model)]
        mesh = init_device_mesh(device, (dist.get_world_size(),))
        lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
        units = [block for part in lists for block in part]
        for unit in (*units, model):
            fully_shard(unit, mesh=mesh)
        if hasattr(model, "hidden"):  # losses and decoding call it in place of `forward`
            register_fsdp_forward_method(model, "hidden")
        # the memory in which weights are put together is made at first use, and could not be
        # written in training if that were a decoder's, under inference_mode
        for unit in (*units, model):
            assert isinstance(unit, FSDPModule)
            unit.unshard()
            unit.reshard()
        self.module = module

    def forward(self, *batch: Tensor) -> Any:
        """Run the module on this rank's rows."""
        return self.module(*batch)

    def unshard(self, world: World) -> None:
        """Make the model on the first rank what it was before, with the weights of now.

        `fully_shard` changes a model for good, so the object takes over the inside of a copy
        that was made before; whoever holds it need not know.
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
    """Return a copy of a model on the meta device, without a second copy of its weights."""
    assert not list(model.buffers()), "what is no parameter would be lost"
    empty: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, empty)


def is_lost(error: BaseException) -> bool:
    """Return whether this is what a collective raises when another rank is gone."""
    # gloo's errors have no class of their own
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError | LostRankError) or "gloo" in str(error)
    )


@contextmanager
def join(device: str, *, shard: bool = False) -> Iterator[World]:
    """Join the group that torchrun's variables describe; without them, be alone.

    Gloo on the CPU, NCCL on CUDA, where each process takes the device of its local rank.
    Raises LostRankError where another rank goes.
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
