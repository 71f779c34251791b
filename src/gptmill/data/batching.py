"""Rows of token ids of any length, put into padded batches.

Rows of like length share a batch, so that little of it is padding. Which rows these are is a
pure function of (seed, epoch): a step's batch does not depend on what ran before.
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
"""Rows are sorted by length within pools of so many batches: random enough, little padding."""


def pad(rows: Sequence[Sequence[int] | Ids], value: int) -> Tensor:
    """Return rows as one tensor (B, T), T the longest row, filled up on the right."""
    out = np.full((len(rows), max(len(row) for row in rows)), value, dtype=np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)


@dataclass(frozen=True)
class RowOrder:
    """The rows of each training step; every epoch has each row once, in an order of its own."""

    lengths: Indices
    batch_size: int
    seed: int
    _epochs: dict[int, list[Indices]] = field(default_factory=dict, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch; the smallest holds what is left over."""
        return -(-len(self.lengths) // self.batch_size)

    def rows(self, step: int) -> Indices:
        """Return the indices of the rows in the batch of `step`, which counts from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._epoch(epoch)
        return self._epochs[epoch][place]

    def _epoch(self, epoch: int) -> list[Indices]:
        generator = np.random.default_rng([self.seed, epoch])
        rows = generator.permutation(len(self.lengths))
        pool = self.batch_size * BATCHES_IN_A_POOL
        pools = [rows[start : start + pool] for start in range(0, len(rows), pool)]
        # A stable sort leaves rows of one length in their random order.
        sorted_rows = [part[np.argsort(self.lengths[part], kind="stable")] for part in pools]
        order = np.concatenate(sorted_rows)
        batches = [
            order[start : start + self.batch_size]
            for start in range(0, len(order), self.batch_size)
        ]
        return [batches[index] for index in generator.permutation(len(batches))]


def by_length(lengths: Sequence[int] | Indices, batch_size: int) -> list[Indices]:
    """Return all row indices in batches from short to long, for work in which order is free."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
