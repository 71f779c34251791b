"""The gradients of one step: in parts that fit into memory, on one device or many."""

from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from gptmill.device import Device
from gptmill.model.gpt import Block
from gptmill.model.objectives import Batch, Objective
from gptmill.training.distributed import World
from gptmill.training.loader import LoadedBatch


class Gradients:
    """Leaves in a model the gradients of a step's mean loss over all its targets.

    Dropout is a function of (seed, step, rank) and not of what was drawn before.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, *, device: Device, world: World, seed: int
    ) -> None:
        for part in model.modules():
            if isinstance(part, Block):
                part.recompute = device.recompute
        self.forward = world.wrap(_Forward(model, objective), model, device.device)
        # for each shape by itself (a last micro-batch has another): what was compiled before it, in
        # this process or in one that was killed, is then of no matter
        compiled = torch.compile(self.forward, dynamic=False) if device.compile else self.forward
        self._compiled = compiled
        self._model = model
        self._objective = objective
        self._device = device
        self._world = world
        self._seed = seed

    def backward(
        self, loaded: LoadedBatch, step: int, micro_batch: int | None
    ) -> tuple[float, int | None]:
        """Add a step's gradients to the model's; return its loss, and rows that fit together.

        With `micro_batch` None all rows go through at once. Where memory runs out the step
        begins anew with half as many: the sum of the parts is the same step. Raises ValueError
        where one row is too much, and with several ranks, of which none can go back alone: the
        others wait for its gradients, or, sharded, for its share of the weights.
        """
        while True:
            torch.manual_seed(_mixed(self._seed, step, self._world.rank))
            try:
                total = self._accumulate(loaded, micro_batch or loaded.rows)
                return self._world.sum(total).item(), micro_batch
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                micro_batch = self._halve(micro_batch or loaded.rows, str(error).strip())
            # after the handler, whose error still holds what did not fit
            self._zero_grad()

    def warm_up(self, loaded: LoadedBatch, micro_batch: int | None) -> int | None:
        """Go through a step whose gradients are for nothing; return rows that fit on every rank.

        DDP sums gradients in the order in which its first step finds them ready, and only then:
        in another order three ranks' sums round otherwise, and a run that goes on would differ.
        Before that, each rank sees by itself whether its rows fit, and all take half as many
        where one of them has no room.
        """
        while True:
            rows = micro_batch or loaded.rows
            what = self._out_of_memory_message(loaded, rows)
            self._zero_grad()
            if not self._world.any_rank(what is not None):
                break
            if rows == 1:
                raise _one_row_too_large(what or "on another rank")
            micro_batch = rows // 2
        self.backward(loaded, loaded.index, micro_batch)
        return micro_batch

    def _out_of_memory_message(self, loaded: LoadedBatch, rows: int) -> str | None:
        """Say what is wrong with so many rows at a time on this rank, whatever the others do."""
        try:
            self._accumulate(loaded, rows, alone=True)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            return str(error).strip()
        return None

    def _zero_grad(self) -> None:
        self._model.zero_grad(set_to_none=True)
        if self._device.device == "cuda":
            torch.cuda.empty_cache()

    def _accumulate(self, loaded: LoadedBatch, rows: int, *, alone: bool = False) -> Tensor:
        """Add the gradients of all ranks, or of this one alone; return this one's loss."""
        parts = range(0, loaded.rows, rows)
        total = torch.zeros((), device=self._device.device)
        for start in parts:
            micro = tuple(tensor[start : start + rows] for tensor in loaded.batch)
            scale = self._world.size  # the ranks' gradients are averaged
            if not len(micro[0]):  # this share is the smaller one: the ranks go through together
                micro, scale = tuple(tensor[:1] for tensor in loaded.batch), 0
            prepared = self._on_device(self._objective.prepare(micro))
            together = start == parts[-1] and not alone
            with nullcontext() if together else self._world.no_sync(self.forward):
                with self._device.autocast():
                    value = self._compiled(*prepared) / loaded.count
                (value * scale).backward()
            if scale:
                total += value.detach()
        return total

    def _on_device(self, batch: Batch) -> Batch:
        return tuple(tensor.to(self._device.device, non_blocking=True) for tensor in batch)

    def _halve(self, rows: int, error: str) -> int:
        """Return half as many rows. Raises ValueError where that is no way out."""
        first = error.splitlines()[0]
        if self._world.size > 1:
            raise ValueError(
                f"memory ran out on rank {self._world.rank} with {rows} rows at a time: set "
                f"runtime.micro_batch below that ({first})"
            ) from None
        if rows == 1:
            raise _one_row_too_large(error) from None
        return rows // 2


class _Forward(nn.Module):
    """Model and loss as one module: what is compiled, and what is wrapped for many devices."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.loss = objective.loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, batch)


def _out_of_memory(error: RuntimeError) -> bool:
    # on the CPU torch has no class of its own for it
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _one_row_too_large(error: str) -> ValueError:
    return ValueError(
        "memory ran out with one row at a time: shorten the context, take a smaller model "
        f"or a machine with more memory ({error.splitlines()[0]})"
    )


def _mixed(*numbers: int) -> int:
    """Mix numbers into a seed: neighbouring seeds must not share a step's randomness."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
