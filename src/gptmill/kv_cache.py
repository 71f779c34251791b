"""The keys and values that a decoder has already computed, so that each new id costs one position.

Radford et al. 2019 leave this to the implementer; the idea is as old as incremental decoding.

Letters: B rows, L layers, H heads, T new positions, S stored positions, D width of one head.
"""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of `n_rows` rows, allocated once for `capacity` positions.

    Rows may differ in length. `lengths` (B,) counts the positions of each row that are real;
    whoever feeds right-padded rows sets it back with `keep_first`, and the next positions
    overwrite what the padding left. A position sees only positions before it, so what lies
    behind a row's end is never read.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor

    def __init__(self, n_rows: int, capacity: int, *, like: Tensor, shape: tuple[int, int, int]):
        """Allocate for `shape` = (layers, heads, width of a head) on the device of `like`."""
        n_layers, n_heads, head_dim = shape
        size = (n_layers, n_rows, n_heads, capacity, head_dim)
        self.keys = torch.zeros(size, dtype=like.dtype, device=like.device)  # (L, B, H, S, D)
        self.values = torch.zeros_like(self.keys)  # (L, B, H, S, D)
        self.lengths = torch.zeros(n_rows, dtype=torch.long, device=like.device)  # (B,)

    @property
    def capacity(self) -> int:
        """Return how many positions a row can hold."""
        return self.keys.size(3)

    def positions(self, n_new: int) -> Tensor:
        """Return the positions that the next `n_new` ids of each row take."""
        return self.lengths[:, None] + torch.arange(n_new, device=self.lengths.device)  # (B, T)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, H, T, D) of one layer and return all stored so far."""
        positions = self.positions(keys.size(2))  # (B, T)
        rows = torch.arange(len(positions), device=positions.device)[:, None]  # (B, 1)
        self.keys[layer][rows, :, positions] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[layer][rows, :, positions] = values.transpose(1, 2).to(self.values.dtype)
        used = int(positions.max()) + 1
        return self.keys[layer, :, :, :used], self.values[layer, :, :, :used]  # (B, H, S, D)

    def mask(self, n_new: int) -> Tensor:
        """Return which stored positions each new one may see: itself and all before it."""
        positions = self.positions(n_new)  # (B, T)
        stored = torch.arange(int(positions.max()) + 1, device=positions.device)  # (S,)
        return (stored <= positions[:, :, None])[:, None]  # (B, 1, T, S)

    def advance(self, n_new: int) -> None:
        """Count `n_new` more positions in every row, after the last layer has stored them."""
        self.lengths = self.lengths + n_new

    def keep_first(self, lengths: Tensor) -> None:
        """Forget what lies behind `lengths` (B,) in each row, as after a right-padded prompt."""
        assert bool((lengths <= self.lengths).all()), "a cache cannot keep what it does not hold"
        self.lengths = lengths.to(self.lengths.device)

    def select(self, rows: Tensor) -> None:
        """Keep only `rows`, in that order: the others have ended."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]
        self.lengths = self.lengths[rows]
