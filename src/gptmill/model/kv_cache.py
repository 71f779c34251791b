"""Cache of computed keys and values for incremental decoding.

With a cache, each new id costs the computation of a single position. Radford et al. 2019 leave
caching to the implementer; the idea is as old as incremental decoding.

Letters: B rows, L layers, G key-value heads, T new positions, S stored positions, D width of one
head.
"""

import math
import mmap
import sys
from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor


class Cache(Protocol):
    """Cache interface for a model reading ids (B, T)."""

    def begin(self, n_new: int) -> tuple[Tensor, Tensor | None]:
        """Return the positions and the attention mask of new ids.

        Positions are (T,) or (B, T). The mask is true where a new position may attend to a stored
        position. With None as the mask, a single new position attends to every stored position,
        and several new positions are the only positions in the cache.
        """

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all stored.

        New keys and values are (B, G, T, D), returned keys and values (B, G, S, D).
        """

    def end(self) -> None:
        """Count the new positions after the last layer's update."""


class KVCache:
    """Keys and values of up to `n_rows` rows.

    Room is reserved once, for `capacity` positions per row; on a CPU only pages with stored
    positions take memory, until `release`. `lengths` holds the number of stored positions of each
    row in use. Rows of different lengths grow by one position at a time.
    Memory behind the end of a row is never read: reducing the length discards positions.
    """

    def __init__(
        self,
        n_rows: int,
        capacity: int,
        *,
        like: Tensor,
        shape: tuple[int, int, int],
        dtype: torch.dtype | None = None,
    ):
        """Reserve memory on the device of `like`, with its dtype or `dtype`.

        `shape` is (layers, heads, width of a head).
        """
        n_layers, n_heads, head_dim = shape
        size = (n_rows, n_heads, capacity, head_dim)
        dtype = like.dtype if dtype is None else dtype
        self._pages: list[mmap.mmap] = []
        # a tensor per layer: a compiler copies the whole of a tensor of which it changes a part
        self.keys = [self._zeros(size, dtype, like.device) for _ in range(n_layers)]  # (B, G, S, D)
        self.values = [self._zeros(size, dtype, like.device) for _ in range(n_layers)]
        self.lengths = [0] * n_rows

        self._row_positions: Tensor | None = None  # (B,) of the new ids if row lengths differ
        self._start = 0  # first new position if all lengths are equal
        self._used = 0
        self._n_new = 0

    @property
    def capacity(self) -> int:
        """Return the number of positions a row can store."""
        return self.keys[0].size(2)

    @property
    def device(self) -> torch.device:
        """Return the device of the keys and values."""
        return self.keys[0].device

    def begin(self, n_new: int) -> tuple[Tensor, Tensor | None]:
        """Return the positions and the attention mask of new ids.

        Rows of equal length: (T,) and (T, S) or None. Different lengths: (B, 1) and (B, 1, 1, S).
        """
        device = self.device
        self._n_new, self._used = n_new, max(self.lengths) + n_new
        assert self._used <= self.capacity, f"{self._used} positions > {self.capacity}"
        if min(self.lengths) == max(self.lengths):
            self._row_positions, self._start = None, self.lengths[0]
            positions = torch.arange(self._start, self._used, device=device)  # (T,)
            if n_new == 1 or self._start == 0:
                return positions, None
            return positions, torch.arange(self._used, device=device) <= positions[:, None]
        assert n_new == 1, "rows of different lengths grow by a single position at a time"
        self._row_positions = torch.tensor(self.lengths, device=device)  # (B,)
        positions = self._row_positions[:, None]  # (B, 1)
        return positions, (torch.arange(self._used, device=device) <= positions)[:, None, None]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all stored.

        New keys and values are (B, G, T, D), returned keys and values (B, G, S, D).
        """
        n_rows, used = len(self.lengths), self._used
        own_keys, own_values = self.keys[layer][:n_rows], self.values[layer][:n_rows]
        if self._row_positions is None:
            own_keys[:, :, self._start : used] = keys
            own_values[:, :, self._start : used] = values
        else:
            rows = torch.arange(n_rows, device=keys.device)
            own_keys[rows, :, self._row_positions] = keys[:, :, 0].to(own_keys.dtype)
            own_values[rows, :, self._row_positions] = values[:, :, 0].to(own_values.dtype)
        return own_keys[:, :, :used], own_values[:, :, :used]  # (B, G, S, D)

    def end(self) -> None:
        """Count the new positions after the last layer's update."""
        self.lengths = [length + self._n_new for length in self.lengths]

    def part(self, first: int, last: int) -> Self:
        """Return a cache of rows `first` to `last` (exclusive).

        The returned cache shares the memory of the keys and values, and counts lengths separately.
        """
        part = self.__class__.__new__(self.__class__)
        part.keys = [stored[first:last] for stored in self.keys]
        part.values = [stored[first:last] for stored in self.values]
        part.lengths = self.lengths[first:last]
        return part

    def release(self, row: int) -> None:
        """Return the memory of an unused row to the system."""
        if sys.platform != "linux":
            return
        start, end = (number * self.keys[0][0].nbytes for number in (row, row + 1))
        first, last = (
            -(-start // mmap.PAGESIZE) * mmap.PAGESIZE,
            end // mmap.PAGESIZE * mmap.PAGESIZE,
        )
        if last > first:
            for pages in self._pages:
                pages.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _zeros(self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return zeros that take memory on a CPU only from their first use on, page by page."""
        if device.type != "cpu" or not math.prod(size):
            return torch.zeros(size, dtype=dtype, device=device)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        pages = mmap.mmap(-1, math.prod(size) * dtype.itemsize, flags=flags)
        if sys.platform == "linux":
            pages.madvise(mmap.MADV_NOHUGEPAGE)
        self._pages.append(pages)
        return torch.frombuffer(pages, dtype=dtype).view(size)

    def swap(self, first: int, second: int) -> None:
        """Swap two rows."""
        used = max(self.lengths[first], self.lengths[second])
        for stored in (*self.keys, *self.values):
            stored[[first, second], :, :used] = stored[[second, first], :, :used]
        self.lengths[first], self.lengths[second] = self.lengths[second], self.lengths[first]

    def reorder(self, rows: Sequence[int]) -> None:
        """Replace each row n by a copy of row `rows[n]`."""
        assert len(rows) <= self.keys[0].size(0), "a cache does not grow"
        used = max(self.lengths)
        chosen = torch.tensor(rows, device=self.device)
        for stored in (*self.keys, *self.values):
            stored[: len(rows), :, :used] = stored[chosen, :, :used]
        self.lengths = [self.lengths[row] for row in rows]


class StaticReading:
    """A decoding step over a cache with static shapes.

    Each row gets one more position. Every row attends over the whole capacity with a mask, and the
    positions are a tensor: no shape ever changes, as compilers require. Unused rows are read too,
    with meaningless results.
    """

    def __init__(self, cache: KVCache, positions: Tensor) -> None:
        """Store the new position (B,) of each row."""
        self._cache = cache
        self._positions = positions
        self._rows = torch.arange(len(positions), device=positions.device)

    def begin(self, n_new: int) -> tuple[Tensor, Tensor | None]:
        """Return the positions and a mask over the whole capacity.

        Positions are (B, 1), the mask is (B, 1, 1, S).
        """
        assert n_new == 1, "a static step reads a single position"
        stored = torch.arange(self._cache.capacity, device=self._positions.device)  # (S,)
        positions = self._positions[:, None]  # (B, 1)
        return positions, (stored <= positions)[:, None, None]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values; return the whole capacity.

        New keys and values are (B, G, 1, D), returned keys and values (B, G, S, D).
        """
        own_keys, own_values = self._cache.keys[layer], self._cache.values[layer]
        own_keys[self._rows, :, self._positions] = keys[:, :, 0].to(own_keys.dtype)
        own_values[self._rows, :, self._positions] = values[:, :, 0].to(own_values.dtype)
        return own_keys, own_values  # (B, G, S, D)

    def end(self) -> None:
        """Do nothing: the cache's owner counts the new positions."""
