"""Rows of ids read by a model through a cache: whatever is unread, then the logits of what follows.

What a model reads of a row is a rule of lengths alone. A prompt that is longer than the context is
read from its last `context_length` ids. A row that outgrows the context forgets its older half:
its last `context_length // 2` ids are read anew from position 0, and it goes on from there. GPT-2's
positions are learned ones, so that stored keys cannot move; reading half a context anew every half
context keeps the result exact and costs about one more position an id.

Letters: B rows, T positions, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

import torch
from torch import Tensor

from gptmill.kv_cache import KVCache, StaticReading
from gptmill.model import GPT

READ_AT_ONCE = 2048  # ids of prompts; bounds the memory of what is computed on the way


@dataclass
class Reading:
    """A row: its ids so far, and the first of those that the model still sees."""

    ids: list[int]
    start: int = 0


Row = TypeVar("Row", bound=Reading)


class Reader(Generic[Row]):
    """Up to `n_rows` rows that share a cache of `capacity` positions each.

    Rows join and leave between two steps. With `compiled`, a step is compiled once in shapes that
    never change, on a GPU as a CUDA graph: worth it where a reader lives for many steps.
    """

    def __init__(self, model: GPT, n_rows: int, capacity: int, *, compiled: bool = False):
        assert not model.training, "dropout would change what is generated"
        self.model = model
        self.n_rows = n_rows
        self.rows: list[Row] = []
        self.device = model.transformer.wte.weight.device
        self.cache = model.new_cache(n_rows, min(capacity, model.config.context_length))
        self.cache.lengths = []
        self._step = _compiled_step(model, self.cache) if compiled else None

    def join(self, rows: Iterable[Row]) -> None:
        """Take rows in; they are read at the next step. Rows of one length are read together."""
        context = self.model.config.context_length
        for row in sorted(rows, key=lambda row: len(row.ids)):
            assert len(self.rows) < self.n_rows, "there is no room for another row"
            row.start = max(0, len(row.ids) - context)
            self.rows.append(row)
            self.cache.lengths.append(0)

    def leave(self, row: Row) -> None:
        """Let a row go; the last one takes its place."""
        place = next(place for place, other in enumerate(self.rows) if other is row)
        self.cache.remove(place)
        self.rows[place] = self.rows[-1]
        self.rows.pop()

    @torch.inference_mode()
    def next_logits(self) -> Tensor:
        """Read all that is unread and return the logits (B, V) of what follows each row."""
        context = self.model.config.context_length
        for place, row in enumerate(self.rows):
            if len(row.ids) - row.start > context:
                row.start = len(row.ids) - max(1, context // 2)
                self.cache.lengths[place] = 0
        self._read_all_but_the_last()
        last = torch.tensor([row.ids[-1] for row in self.rows], device=self.device)  # (B,)
        if self._step is not None:
            return self._static_step(last)
        logits: Tensor = self.model(last[:, None], self.cache)[:, -1].float()  # (B, V)
        return logits

    def _read_all_but_the_last(self) -> None:
        """Read rows that have more than one unread id; neighbours of one length together."""
        unread = [
            row.ids[row.start + seen : -1]
            for row, seen in zip(self.rows, self.cache.lengths, strict=True)
        ]
        first = 0
        for length, group in groupby(unread, key=len):
            ids = list(group)
            if length:
                self._read(ids, first)
            first += len(ids)

    def _read(self, rows: Sequence[list[int]], first: int) -> None:
        """Read ids of equal number for the rows from `first` on, a bounded number at once."""
        assert not any(self.cache.lengths[first : first + len(rows)]), "rows are read from 0"
        part = self.cache.part(first, first + len(rows))
        ids = torch.tensor(rows, device=self.device)  # (B, T)
        for chunk in torch.split(ids, max(1, READ_AT_ONCE // len(rows)), dim=1):
            self.model.hidden(chunk, part)
        self.cache.lengths[first : first + len(rows)] = part.lengths

    def _static_step(self, last: Tensor) -> Tensor:
        """Read one id a row in the compiled step; rows not in use are read at position 0."""
        assert self._step is not None
        ids = torch.zeros(self.n_rows, dtype=torch.long, device=self.device)
        ids[: len(last)] = last
        unused = [0] * (self.n_rows - len(self.rows))
        positions = torch.tensor([*self.cache.lengths, *unused], device=self.device)
        logits = self._step(ids, positions)[: len(last)].float()  # (B, V)
        self.cache.lengths = [length + 1 for length in self.cache.lengths]
        return logits


def _compiled_step(model: GPT, cache: KVCache) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a compiled function from ids (B,) and their positions (B,) to logits (B, V)."""
    for stored in (cache.keys, cache.values):
        torch._dynamo.mark_static_address(stored)  # else a CUDA graph would copy them in and out

    def step(ids: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = model(ids[:, None], StaticReading(cache, positions))
        return logits[:, -1]

    mode = "reduce-overhead" if cache.keys.is_cuda else None
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(
        step, fullgraph=True, dynamic=False, mode=mode
    )
    return compiled
