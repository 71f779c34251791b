"""The windows of one part of a text, with their tokens: batches by number, and their documents."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from gptmill.data.token_file import TokenFile
from gptmill.data.windows import WindowIndex


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
