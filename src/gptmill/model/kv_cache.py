"""The keys and values that a decoder has already computed, so that each new id costs one position.

Radford et al. 2019 leave this to the implementer; the idea is as old as incremental decoding.

Letters: B rows, L layers, G key-value heads, T new positions, S stored positions, D width of one
head.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor


class Cache(Protocol):
    """What a model needs of a cache while it reads ids (B, T)."""

    def begin(self, n_new: int) -> tuple[Tensor, Tensor | None]:
        """Return the positions, (T,) or (B, T), and which stored ones each may see, or None.

        None: a single new position sees all that is stored, and several are all there is.
        """

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, G, T, D) of one layer and return all stored so far."""

    def end(self) -> None:
        """Count the new positions, after the last layer has stored them."""


class KVCache:
    """Keys and values of up to `n_rows` rows, allocated once for `capacity` positions.

    `lengths` holds how many positions each row in use has stored. Rows of different lengths go
    on by one position at a time. What lies behind a row's end is never read, so that a shorter
    length forgets.
    """

    def __init__(self, n_rows: int, capacity: int, *, like: Tensor, shape: tuple[int, int, int]):
        """Allocate for `shape` = (layers, heads, width of a head) on the device of `like`."""
        n_layers, n_heads, head_dim = shape
        size = (n_layers, n_rows, n_heads, capacity, head_dim)
        self.keys = torch.zeros(size, dtype=like.dtype, device=like.device)  # (L, B, G, S, D)
        self.values = torch.zeros_like(self.keys)  # (L, B, G, S, D)
        self.lengths = [0] * n_rows

        self._places: Tensor | None = None  # (B,) of the new ids where rows differ in length
        self._start = 0  # where they lie where rows do not
        self._used = 0
        self._n_new = 0

    @property
    def capacity(self) -> int:
        """Return how many positions a row can store."""
        return self.keys.size(3)

    def begin(self, n_new: int) -> tuple[Tensor, Tensor | None]:
        """Return positions and mask of the next ids, (T,), (T, S) or (B, 1), (B, 1, 1, S)."""
        device = self.keys.device
        self._n_new, self._used = n_new, max(self.lengths) + n_new
        assert self._used <= self.capacity, f"{self._used} positions > {self.capacity}"
        if min(self.lengths) == max(self.lengths):
            self._places, self._start = None, self.lengths[0]
            positions = torch.arange(self._start, self._used, device=device)  # (T,)
            if n_new == 1 or self._start == 0:
                return positions, None
            return positions, torch.arange(self._used, device=device) <= positions[:, None]
        assert n_new == 1, "rows of different lengths go on by one position at a time"
        self._places = torch.tensor(self.lengths, device=device)  # (B,)
        positions = self._places[:, None]  # (B, 1)
        return positions, (torch.arange(self._used, device=device) <= positions)[:, None, None]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, G, T, D) of one layer and return all stored so far."""
        n_rows, used = len(self.lengths), self._used
        own_keys, own_values = self.keys[layer, :n_rows], self.values[layer, :n_rows]
        if self._places is None:
            own_keys[:, :, self._start : used] = keys
            own_values[:, :, self._start : used] = values
        else:
            rows = torch.arange(n_rows, device=keys.device)
            own_keys[rows, :, self._places] = keys[:, :, 0].to(own_keys.dtype)
            own_values[rows, :, self._places] = values[:, :, 0].to(own_values.dtype)
        return own_keys[:, :, :used], own_values[:, :, :used]  # (B, G, S, D)

    def end(self) -> None:
        """Count the new positions, after the last layer has stored them."""
        self.lengths = [length + self._n_new for length in self.lengths]

    def part(self, first: int, last: int) -> Self:
        """Return rows `first` to `last` (exclusive) as a cache of their own, in the same memory."""
        part = self.__class__.__new__(self.__class__)
        part.keys, part.values = self.keys[:, first:last], self.values[:, first:last]
        part.lengths = self.lengths[first:last]
        return part

    def swap(self, one: int, other: int) -> None:
        """Let two rows change places."""
        used = max(self.lengths[one], self.lengths[other])
        for stored in (self.keys, self.values):
            stored[:, [one, other], :, :used] = stored[:, [other, one], :, :used]
        self.lengths[one], self.lengths[other] = self.lengths[other], self.lengths[one]

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row n become a copy of what row `rows[n]` is, for each n."""
        assert len(rows) <= self.keys.size(1), "a cache does not grow"
        used = max(self.lengths)
        chosen = torch.tensor(rows, device=self.keys.device)
        for stored in (self.keys, self.values):
            stored[:, : len(rows), :, :used] = stored[:, chosen, :, :used]
        self.lengths = [self.lengths[row] for row in rows]


class StaticReading:
    """One more position in each row of a cache, in shapes that never change, for compilers.

    Every row attends over the whole capacity behind a mask, and where its position lies is a
    tensor. Rows that are not in use are read too, and mean nothing.
    """

    def __init__(self, cache: KVCache, positions: Tensor) -> None:
        """Take the position (B,) of each row of the cache."""
        self._cache = cache
        self._positions = positions
        self._rows = torch.arange(len(positions), device=positions.device)

    def begin(self, n_new: int) -> tuple[Tensor, Tensor | None]:
        """Return the positions (B, 1) and a mask (B, 1, 1, S) over the whole capacity."""
        assert n_new == 1, "a static step reads one position"
        stored = torch.arange(self._cache.capacity, device=self._positions.device)  # (S,)
        positions = self._positions[:, None]  # (B, 1)
        return positions, (stored <= positions)[:, None, None]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, G, 1, D) and return those of the whole capacity."""
        own_keys, own_values = self._cache.keys[layer], self._cache.values[layer]
        own_keys[self._rows, :, self._positions] = keys[:, :, 0].to(own_keys.dtype)
        own_values[self._rows, :, self._positions] = values[:, :, 0].to(own_values.dtype)
        return own_keys, own_values  # (B, G, S, D)

    def end(self) -> None:
        """Count nothing: the cache's owner does."""
