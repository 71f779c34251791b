"""Training windows: start offsets in a token file, reading order.

A window is an offset, never a copy: `max_length` ids, and targets shifted by one position. A
batch is a single gather. The order is a pure function of (seed, epoch), so a position in
training is just a number.
"""

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gptmill.data.token_file import TokenFile
from gptmill.files import read_json, write_bytes, write_json

WindowRows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WindowConfig:
    """The length and stride of windows, in ids.

    Each window of `max_length` ids starts `stride` ids after the previous window. A stride
    below `max_length` makes windows overlap: ids are seen more often per epoch, and memorised
    sooner.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_length: int
    stride: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value} but must be at least 1")

    @property
    def overlap(self) -> float:
        """Return the share of a window repeated in the next.

        The share is 0 for windows without overlap.
        """
        return max(0.0, 1 - self.stride / self.max_length)


@dataclass(frozen=True)
class WindowIndex:
    """The windows of a token file."""

    offsets: WindowRows  # (W,) position of each window's first id
    config: WindowConfig

    def __len__(self) -> int:
        return len(self.offsets)

    @classmethod
    def build(cls, tokens: TokenFile, config: WindowConfig, *, part: str) -> "WindowIndex":
        """Place windows over the whole file, across document boundaries.

        Raises ValueError, naming `part`, if the text is too short for a single window.
        """
        missing = config.max_length + 1 - len(tokens)
        if missing > 0:
            raise ValueError(
                f"the {part} part has {len(tokens):,} tokens, {missing:,} too few for a window of "
                f"max_length {config.max_length:,} with targets: add text or lower max_length"
            )
        offsets = np.arange(0, len(tokens) - config.max_length, config.stride, dtype=np.int64)
        return cls(offsets, config)

    @classmethod
    def load(cls, folder: Path, part: str) -> "WindowIndex":
        """Load an index written by `save`."""
        config = WindowConfig(**read_json(folder / f"{part}.json"))
        return cls(np.load(folder / f"{part}.npy", allow_pickle=False), config)

    def save(self, folder: Path, part: str) -> None:
        """Save the offsets as PART.npy and the config as PART.json.

        The offsets are little-endian int64.
        """
        content = io.BytesIO()
        np.save(content, self.offsets.astype("<i8"), allow_pickle=False)
        write_bytes(folder / f"{part}.npy", content.getvalue())
        write_json(folder / f"{part}.json", asdict(self.config))

    def batch(self, tokens: TokenFile, rows: WindowRows) -> tuple[Tensor, Tensor]:
        """Return the ids and targets of the windows `rows` (B,).

        Both are int64 tensors (B, T).
        """
        positions = self.offsets[rows][:, None] + np.arange(self.config.max_length + 1)
        ids = torch.from_numpy(tokens.ids[positions].astype(np.int64))  # (B, T + 1)
        return ids[:, :-1], ids[:, 1:]

    def batches(
        self, tokens: TokenFile, rows: WindowRows, *, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the ids and targets of windows `rows`, in order.

        Each batch has `batch_size` windows, except for a smaller last batch.
        """
        for start in range(0, len(rows), batch_size):
            yield self.batch(tokens, rows[start : start + batch_size])

    def rows_at(self, step: int, *, batch_size: int, seed: int) -> WindowRows:
        """Return the windows (B,) of training step `step`.

        Steps count from 0. Epochs follow each other without a gap: a batch at a seam takes
        rows from both epochs, and every window is read equally often.
        """
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs, within = np.divmod(positions, len(self))
        return np.array(
            [
                order(len(self), seed, int(epoch))[row]
                for epoch, row in zip(epochs, within, strict=True)
            ]
        )

    def spread(self, count: int) -> WindowRows:
        """Return `count` evenly spaced windows, or all if fewer exist."""
        size = min(count, len(self))
        return np.arange(size, dtype=np.int64) * len(self) // size


@lru_cache(maxsize=4)
def order(count: int, seed: int, epoch: int) -> WindowRows:
    """Return the order of `count` windows in an epoch.

    The order is a permutation, and a pure function of (seed, epoch).
    """
    shuffled = np.random.default_rng([seed, epoch]).permutation(count).astype(np.int64)
    shuffled.flags.writeable = False  # the array is cached: a caller must not change the values
    return shuffled


@dataclass(frozen=True)
class TextWindows:
    """A token file and the index of its windows."""

    tokens: TokenFile
    index: WindowIndex

    @classmethod
    def open(cls, tokenized: Path, sampled: Path, part: str) -> Self:
        """Open a part by the token file in `tokenized` and the index in `sampled`."""
        return cls(TokenFile.open(tokenized / f"{part}.bin"), WindowIndex.load(sampled, part))

    @property
    def length(self) -> int:
        """Return the number of ids in a window, T."""
        return self.index.config.max_length

    def batch(self, number: int, *, batch_size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return the ids and targets of training batch `number`, both (B, T)."""
        rows = self.index.rows_at(number, batch_size=batch_size, seed=seed)
        return self.index.batch(self.tokens, rows)

    def describe(self, number: int, *, batch_size: int, seed: int) -> list[dict[str, Any]]:
        """Return the windows of training batch `number`: their offsets and documents."""
        rows = self.index.rows_at(number, batch_size=batch_size, seed=seed)
        offsets = [int(self.index.offsets[row]) for row in rows]
        return [
            {
                "window": int(row),
                "offset": offset,
                "documents": self.tokens.documents_in(offset, self.length),
            }
            for row, offset in zip(rows, offsets, strict=True)
        ]

    def spread(self, windows: int, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of up to `windows` windows, spread evenly over the part."""
        return self.index.batches(self.tokens, self.index.spread(windows), batch_size=batch_size)
