"""One process or many: `torch.distributed` as torchrun starts it, and what the loop asks of it.

Every rank makes the same batch of the same step and takes its own rows of it. So the number of
counted targets is known to all without a word, and the order of the data does not depend on
how many ranks there are: a training may go on with more of them, or fewer.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gptmill.objectives import Batch


@dataclass(frozen=True)
class World:
    """The processes that train one model together, and which of them this is."""

    rank: int = 0
    size: int = 1

    def share(self, batch: Batch) -> Batch:
        """Return this rank's rows of a batch, as even a share as there is."""
        rows = len(batch[0])
        start, end = rows * self.rank // self.size, rows * (self.rank + 1) // self.size
        return tuple(tensor[start:end] for tensor in batch)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module whose gradients come out averaged over the ranks."""
        return module if self.size == 1 else DistributedDataParallel(module)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which a wrapped module's gradients only add up, rank by rank."""
        if isinstance(module, DistributedDataParallel):
            waiting: AbstractContextManager[None] = module.no_sync()
            return waiting
        return nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of the ranks' values."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


SOLO = World()
"""This process alone."""


@contextmanager
def join(device: str) -> Iterator[World]:
    """Join the group that torchrun's variables describe; without them, be alone.

    Gloo on the CPU, NCCL on CUDA, where each process takes the device of its local rank.
    """
    if "RANK" not in os.environ:
        yield SOLO
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
