"""Padded batches of variable-length rows of token ids.

Rows of similar length share a batch to keep padding small. The order of the rows is a pure
function of (seed, epoch): a step's batch does not depend on the steps run before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.uint32]
Indices = npt.NDArray[np.int64]

BATCHES_IN_A_POOL = 16
"""Rows are sorted by length within pools of this many batches: random enough, little padding."""


WIDTH_STEP = 16
"""Batches of few different widths save memory: a CPU keeps compiled bf16 kernels for each width."""


def pad(rows: Sequence[Sequence[int] | Ids], value: int, *, limit: int | None = None) -> Tensor:
    """Return the rows as a right-padded tensor (B, T).

    T is the length of the longest row; with a `limit`, the next multiple of 16 up to the limit.
    Shorter rows are filled up with `value`.
    """
    width = max(len(row) for row in rows)
    if limit is not None:
        width = max(width, min(limit, -(-width // WIDTH_STEP) * WIDTH_STEP))
    out = np.full((len(rows), width), value, dtype=np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)


@dataclass(frozen=True)
class RowOrder:
    """The row indices of each training step's batch.

    Every epoch visits each row once and reshuffles the order.
    """

    lengths: Indices
    batch_size: int
    seed: int
    _epochs: dict[int, list[Indices]] = field(default_factory=dict, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch.

        Rows left over after the full batches form a smaller batch.
        """
        return -(-len(self.lengths) // self.batch_size)

    def rows(self, step: int) -> Indices:
        """Return the row indices of batch `step`, counted from 0."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._epoch(epoch)
        return self._epochs[epoch][batch]

    def _epoch(self, epoch: int) -> list[Indices]:
        generator = np.random.default_rng([self.seed, epoch])
        rows = generator.permutation(len(self.lengths))
        pool_size = self.batch_size * BATCHES_IN_A_POOL
        pools = [rows[start : start + pool_size] for start in range(0, len(rows), pool_size)]
        # A stable sort leaves rows of equal length in their random order.
        sorted_rows = [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        order = np.concatenate(sorted_rows)
        batches = [
            order[start : start + self.batch_size]
            for start in range(0, len(order), self.batch_size)
        ]
        return [batches[index] for index in generator.permutation(len(batches))]


def by_length(lengths: Sequence[int] | Indices, batch_size: int) -> list[Indices]:
    """Return all row indices in batches, from short to long.

    Suits work where the order of the rows does not matter.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
