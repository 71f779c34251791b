"""Training windows: where each one starts in a token file, and in which order they are read.

A window is an offset, never a copy: `max_length` ids and, one further, their targets. A batch
is one gather. The order is a pure function of (seed, epoch), so a place in training is a
number.
"""

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gptmill.data.token_file import TokenFile
from gptmill.files import read_json, write_bytes, write_json

WindowRows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WindowConfig:
    """Windows of `max_length` ids, each starting `stride` behind the one before.

    A stride below `max_length` makes windows overlap: ids are seen more often an epoch, and
    memorised sooner.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_length: int
    stride: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")

    @property
    def overlap(self) -> float:
        """Return the share of each window that the next one reads again, 0 where none does."""
        return max(0.0, 1 - self.stride / self.max_length)


@dataclass(frozen=True)
class WindowIndex:
    """The windows of one token file."""

    offsets: WindowRows  # (W,) position of each window's first id
    config: WindowConfig

    def __len__(self) -> int:
        return len(self.offsets)

    @classmethod
    def build(cls, tokens: TokenFile, config: WindowConfig, *, part: str) -> "WindowIndex":
        """Place windows over the whole file, across documents too.

        Raises ValueError, naming `part`, where there is too little text for a single one.
        """
        missing = config.max_length + 1 - len(tokens)
        if missing > 0:
            raise ValueError(
                f"the {part} part has {len(tokens):,} tokens, {missing:,} too few for one window "
                f"of max_length {config.max_length:,} and its targets: add text or lower max_length"
            )
        offsets = np.arange(0, len(tokens) - config.max_length, config.stride, dtype=np.int64)
        return cls(offsets, config)

    @classmethod
    def load(cls, folder: Path, part: str) -> "WindowIndex":
        """Read what `save` wrote."""
        config = WindowConfig(**read_json(folder / f"{part}.json"))
        return cls(np.load(folder / f"{part}.npy", allow_pickle=False), config)

    def save(self, folder: Path, part: str) -> None:
        """Write the offsets as PART.npy, little-endian int64, and the config as PART.json."""
        content = io.BytesIO()
        np.save(content, self.offsets.astype("<i8"), allow_pickle=False)
        write_bytes(folder / f"{part}.npy", content.getvalue())
        write_json(folder / f"{part}.json", asdict(self.config))

    def batch(self, tokens: TokenFile, rows: WindowRows) -> tuple[Tensor, Tensor]:
        """Return the ids (B, T) and targets (B, T), int64, of windows `rows` (B,)."""
        places = self.offsets[rows][:, None] + np.arange(self.config.max_length + 1)
        ids = torch.from_numpy(tokens.ids[places].astype(np.int64))  # (B, T + 1)
        return ids[:, :-1], ids[:, 1:]

    def batches(
        self, tokens: TokenFile, rows: WindowRows, *, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the ids and targets of windows `rows` in their order, `batch_size` at a time."""
        for start in range(0, len(rows), batch_size):
            yield self.batch(tokens, rows[start : start + batch_size])

    def rows_at(self, step: int, *, batch_size: int, seed: int) -> WindowRows:
        """Return the windows (B,) of training step `step`, counted from 0.

        Epochs follow one another without a gap: a batch at a seam takes its rows from both,
        and every window is read equally often.
        """
        places = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs, within = np.divmod(places, len(self))
        return np.array(
            [
                order(len(self), seed, int(epoch))[row]
                for epoch, row in zip(epochs, within, strict=True)
            ]
        )

    def spread(self, count: int) -> WindowRows:
        """Return `count` windows at equal distances over the file, or all if there are fewer."""
        taken = min(count, len(self))
        return np.arange(taken, dtype=np.int64) * len(self) // taken


@lru_cache(maxsize=4)
def order(count: int, seed: int, epoch: int) -> WindowRows:
    """Return the order in which an epoch reads `count` windows: a permutation of (seed, epoch)."""
    shuffled = np.random.default_rng([seed, epoch]).permutation(count).astype(np.int64)
    shuffled.flags.writeable = False  # it is cached: a caller must not change it
    return shuffled
