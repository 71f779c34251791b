"""The keys and values that a decoder has already computed, so that each new id costs one position.

Radford et al. 2019 leave this to the implementer; the idea is as old as incremental decoding.

Letters: B rows, L layers, H heads, T new positions, S stored positions, D width of one head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Keys and values of `n_rows` rows, allocated once for `capacity` positions.

    Rows may differ in length. `lengths` (B,) counts the positions of each row that are real;
    whoever feeds right-padded rows sets it back with `keep_first`, and the next positions
    overwrite what the padding left. A position sees only positions before it, so what lies
    behind a row's end is never read.
    """

    def __init__(self, n_rows: int, capacity: int, *, like: Tensor, shape: tuple[int, int, int]):
        """Allocate for `shape` = (layers, heads, width of a head) on the device of `like`."""
        n_layers, n_heads, head_dim = shape
        size = (n_layers, n_rows, n_heads, capacity, head_dim)
        self.keys = torch.zeros(size, dtype=like.dtype, device=like.device)  # (L, B, H, S, D)
        self.values = torch.zeros_like(self.keys)  # (L, B, H, S, D)
        self.lengths = torch.zeros(n_rows, dtype=torch.long, device=like.device)  # (B,)

        self._positions = self.lengths[:, None]  # (B, T), of the ids that are being read
        self._used = 0

    def begin(self, n_new: int) -> tuple[Tensor, Tensor]:
        """Return the positions (B, T) of the next ids and which stored ones each may see.

        That mask is (B, 1, T, S): a position sees itself and all before it.
        """
        device = self.lengths.device
        self._positions = self.lengths[:, None] + torch.arange(n_new, device=device)  # (B, T)
        self._used = int(self._positions.max()) + 1
        stored = torch.arange(self._used, device=device)  # (S,)
        return self._positions, (stored <= self._positions[:, :, None])[:, None]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, H, T, D) of one layer and return all stored so far."""
        rows = torch.arange(len(keys), device=keys.device)[:, None]  # (B, 1)
        self.keys[layer][rows, :, self._positions] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[layer][rows, :, self._positions] = values.transpose(1, 2).to(self.keys.dtype)
        used = self._used
        return self.keys[layer, :, :, :used], self.values[layer, :, :, :used]  # (B, H, S, D)

    def end(self) -> None:
        """Count the new positions, after the last layer has stored them."""
        self.lengths = self._positions[:, -1] + 1

    def keep_first(self, lengths: Sequence[int]) -> None:
        """Forget what lies behind `lengths` (B,) in each row, as after a right-padded prompt."""
        kept = torch.tensor(lengths, device=self.lengths.device)
        assert bool((kept <= self.lengths).all()), "a cache cannot keep what it does not hold"
        self.lengths = kept

    def select(self, rows: Sequence[int]) -> None:
        """Keep only `rows`, in that order: the others have ended."""
        chosen = torch.tensor(rows, dtype=torch.long, device=self.lengths.device)
        self.keys = self.keys[:, chosen]
        self.values = self.values[:, chosen]
        self.lengths = self.lengths[chosen]
