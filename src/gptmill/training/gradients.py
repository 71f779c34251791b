"""The gradients of a step, in micro-batches that fit into memory, on one device or many."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from gptmill.device import Device
from gptmill.model.gpt import Block
from gptmill.model.objectives import Batch, Objective
from gptmill.training.distributed import World
from gptmill.training.flops import DTYPES
from gptmill.training.loader import LoadedBatch

LINEAR_BYTES = 2**28
"""Maximum bytes of the blocks' linear inputs and outputs in a forward pass on a CPU.

All that a forward pass saves takes 1.5 to 2 times as much memory. Smaller parts take less memory
and more time (benchmarks/README.md); GPUs need all rows at once to be fast.
"""


class Gradients:
    """Computes the gradients of a step's mean loss over all targets.

    Dropout is a function of (seed, step, rank), not of earlier random draws.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, *, device: Device, world: World, seed: int
    ) -> None:
        blocks = [part for part in model.modules() if isinstance(part, Block)]
        for block in blocks:
            block.recompute = device.recompute
        self._position_bytes = _linear_bytes(blocks, device)
        self.forward = world.wrap(_Forward(model, objective), model, device.device)
        # compiled per shape (the last micro-batch may be smaller): earlier compilations, in this
        # process or in a killed one, then make no difference
        compiled = torch.compile(self.forward, dynamic=False) if device.compile else self.forward
        self._compiled = compiled
        self._model = model
        self._objective = objective
        self._device = device
        self._world = world
        self._seed = seed

    def rows(self, loaded: LoadedBatch, micro_batch: int | None) -> int:
        """Return the rows per forward pass, a function of shapes and config alone.

        With `micro_batch` None, a step on a CPU is split into parts of at most LINEAR_BYTES.
        """
        if micro_batch is not None or self._device.device != "cpu":
            return micro_batch or loaded.rows
        row_bytes = self._position_bytes * loaded.batch[0].size(1)
        n_parts = -(-loaded.rows // max(1, LINEAR_BYTES // max(1, row_bytes)))
        return -(-loaded.rows // n_parts)

    def backward(
        self, loaded: LoadedBatch, step: int, micro_batch: int | None
    ) -> tuple[float, int | None]:
        """Add a step's gradients to the model; return the loss and the micro-batch that fits.

        Out of memory, the step restarts with half the rows: the sum of the parts is the same step.
        Raises ValueError if a single row does not fit, and always with several ranks: no rank can
        restart alone, because the rest wait for its gradients or, sharded, for its shard of the
        weights.
        """
        while True:
            torch.manual_seed(_mixed(self._seed, step, self._world.rank))
            try:
                total = self._accumulate(loaded, self.rows(loaded, micro_batch))
                return self._world.sum(total).item(), micro_batch
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                micro_batch = self._halve(self.rows(loaded, micro_batch), str(error).strip())
            # after the handler, because the error still holds the tensors
            self._zero_grad()

    def warm_up(self, loaded: LoadedBatch, micro_batch: int | None) -> int | None:
        """Run a step without using its gradients; return the micro-batch that fits on all ranks.

        DDP fixes its order of summation in its first step. A resumed run must fix the same order,
        because in a different order the sums of three ranks round differently. Each rank first
        tries its rows alone, and all ranks halve the micro-batch if one rank is out of memory.
        """
        while True:
            rows = self.rows(loaded, micro_batch)
            message = self._out_of_memory_message(loaded, rows)
            self._zero_grad()
            if not self._world.any_rank(message is not None):
                break
            if rows == 1:
                raise _one_row_too_large(message or "on another rank")
            micro_batch = rows // 2
        self.backward(loaded, loaded.index, micro_batch)
        return micro_batch

    def _out_of_memory_message(self, loaded: LoadedBatch, rows: int) -> str | None:
        """Return the error of `rows` rows at a time on this rank alone; None if they fit."""
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
        """Add the gradients of all ranks, or of this rank alone; return this rank's loss."""
        parts = range(0, loaded.rows, rows)
        total = torch.zeros((), device=self._device.device)
        with self._weights_cast_once():
            for start in parts:
                micro = tuple(tensor[start : start + rows] for tensor in loaded.batch)
                scale = self._world.size  # the ranks' gradients are averaged
                if not len(micro[0]):  # fewer rows than on other ranks, but all ranks run together
                    micro, scale = tuple(tensor[:1] for tensor in loaded.batch), 0
                prepared = self._on_device(self._objective.prepare(micro))
                together = start == parts[-1] and not alone
                with nullcontext() if together else self._world.no_sync(self.forward):
                    with self._device.autocast():
                        value = self._compiled(*prepared) / loaded.count
                    with torch.autocast(self._device.device, enabled=False):
                        (value * scale).backward()
                if scale:
                    total += value.detach()
        return total

    def _weights_cast_once(self) -> AbstractContextManager[None]:
        """Return the context in which all micro-batches share the casts of the weights.

        Autocast keeps casts until the outermost context ends. The gathered weights of a sharded
        model do not last that long, and with `recompute` no casts are kept.
        """
        kept = not self._world.sharded and not self._device.recompute
        return self._device.autocast() if kept else nullcontext()

    def _on_device(self, batch: Batch) -> Batch:
        return tuple(tensor.to(self._device.device, non_blocking=True) for tensor in batch)

    def _halve(self, rows: int, error: str) -> int:
        """Return half the rows. Raises ValueError for a single row, and with several ranks."""
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
    """Model and loss in one module, to be compiled and wrapped together."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.loss = objective.loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, batch)


def _linear_bytes(blocks: Sequence[Block], device: Device) -> int:
    """Return the bytes of a position's linear inputs and outputs that a forward pass saves."""
    sizes = [block.linear_width for block in blocks]
    saved = max(sizes, default=0) if device.recompute else sum(sizes)
    weights = [p for block in blocks for p in block.parameters() if p.ndim == 2]
    frozen = sum(p.numel() for p in weights if not p.requires_grad)
    if 2 * frozen > sum(p.numel() for p in weights):
        saved *= 2  # frozen weights get no gradients to add up: half the rows cost less time
    return saved * DTYPES[device.precision].itemsize


def _out_of_memory(error: RuntimeError) -> bool:
    # torch has no exception class for the CPU
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _one_row_too_large(error: str) -> ValueError:
    return ValueError(
        "memory ran out with one row at a time: shorten the context, take a smaller model "
        f"or a machine with more memory ({error.splitlines()[0]})"
    )


def _mixed(*numbers: int) -> int:
    """Mix numbers into a seed, so that neighbouring seeds share no randomness."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
