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
from typing import Generic, TypeVar

import torch
from torch import Tensor

from gptmill.model.gpt import GPT
from gptmill.model.kv_cache import KVCache, StaticReading

READ_AT_ONCE = 2048  # ids of prompts; bounds the memory of what is computed on the way


@dataclass
class CachedSequence:
    """A row: its ids so far, and the first of those that the model still sees."""

    ids: list[int]
    start: int = 0


S = TypeVar("S", bound=CachedSequence)


class CachedBatch(Generic[S]):
    """Up to `n_rows` rows that share a cache of `capacity` positions each.

    Rows join and leave between two steps; those whose prompts are read come first, `n_ready` of
    them. A prompt is read as a whole, unless `prefill_budget` bounds the ids that a step reads
    beside rows that go on, so that a long prompt does not hold them up. With `compiled`, a step is
    compiled once in shapes that never change, on a GPU as a CUDA graph: worth it where a reader
    lives for many steps.
    """

    def __init__(
        self,
        model: GPT,
        n_rows: int,
        capacity: int,
        *,
        prefill_budget: int | None = None,
        compiled: bool = False,
    ):
        assert not model.training, "dropout would change what is generated"
        self.model = model
        self.n_rows = n_rows
        self.prefill_budget = prefill_budget
        self.rows: list[S] = []
        self.n_ready = 0
        self.device = model.transformer.wte.weight.device
        self.cache = model.new_cache(n_rows, min(capacity, model.config.context_length))
        self.cache.lengths = []
        self._step = _compiled_step(model, self.cache) if compiled else None

    def join(self, rows: Iterable[S]) -> None:
        """Take rows in; they are read at the next step. Rows of one length are read together."""
        context = self.model.config.context_length
        for row in sorted(rows, key=lambda row: len(row.ids)):
            assert len(self.rows) < self.n_rows, "there is no room for another row"
            row.start = max(0, len(row.ids) - context)
            self.rows.append(row)
            self.cache.lengths.append(0)

    def leave(self, row: S) -> None:
        """Let a row go; of the others, those that are ready stay first."""
        place = next(place for place, other in enumerate(self.rows) if other is row)
        if place < self.n_ready:
            self.n_ready -= 1
            self._swap(self.n_ready, place)
            place = self.n_ready
        self._swap(len(self.rows) - 1, place)
        self.rows.pop()
        self.cache.lengths.pop()

    def replace(self, rows: Sequence[S], sources: Sequence[int]) -> None:
        """Let the rows be these, each the one that was at its source with another id behind it."""
        assert self.n_ready == len(self.rows), "rows that are being read have no other id"
        self.cache.reorder(sources)
        self.rows = list(rows)
        self.n_ready = len(rows)

    @torch.inference_mode()
    def next_logits(self) -> Tensor:
        """Read on and return the logits (B, V) of what follows each row that is ready."""
        self._read_what_outgrew_the_context()
        self._read_prompts()
        ready = self.n_ready
        last = torch.tensor([row.ids[-1] for row in self.rows[:ready]], device=self.device)  # (B,)
        if self._step is not None:
            return self._static_step(last)
        part = self.cache.part(0, ready)
        logits: Tensor = self.model(last[:, None], part)[:, -1].float()  # (B, V)
        self.cache.lengths[:ready] = part.lengths
        return logits

    def _read_what_outgrew_the_context(self) -> None:
        context = self.model.config.context_length
        for place, row in enumerate(self.rows[: self.n_ready]):
            if len(row.ids) - row.start > context:
                row.start = len(row.ids) - max(1, context // 2)
                self.cache.lengths[place] = 0
        first = 0
        while first < self.n_ready:
            end, unread = self._together(first, self.n_ready)
            self._read(first, end, unread)
            first = end

    def _read_prompts(self) -> None:
        """Read prompts, those with the least to read first, as much as a step may."""
        room = self.prefill_budget
        while (first := self.n_ready) < len(self.rows):
            places = range(first, len(self.rows))
            self._swap(first, min(places, key=lambda place: self._state(place)[1]))
            end, unread = self._together(first, len(self.rows))
            n_new = unread
            if room is not None and first:
                n_new = min(unread, max(1, room // (end - first)))
                room -= n_new * (end - first)
            self._read(first, end, n_new)
            if n_new < unread:
                return
            self.n_ready = end

    def _together(self, first: int, last: int) -> tuple[int, int]:
        """Return the end of the rows that are read like the first, and how many ids of each."""
        state, end = self._state(first), first + 1
        while end < last and self._state(end) == state:
            end += 1
        return end, state[1]

    def _state(self, place: int) -> tuple[int, int]:
        """Return how many ids of a row are stored, and how many are to be read before its last."""
        row, stored = self.rows[place], self.cache.lengths[place]
        return stored, len(row.ids) - row.start - stored - 1

    def _read(self, first: int, end: int, n_new: int) -> None:
        """Read the next ids of rows that are at the same position, a bounded number at once."""
        if not n_new:
            return
        part = self.cache.part(first, end)
        begins = [row.start + part.lengths[0] for row in self.rows[first:end]]
        rows = zip(self.rows[first:end], begins, strict=True)
        unread = [row.ids[begin : begin + n_new] for row, begin in rows]
        ids = torch.tensor(unread, device=self.device)  # (B, T)
        for chunk in torch.split(ids, max(1, READ_AT_ONCE // len(ids)), dim=1):
            self.model.hidden(chunk, part)
        self.cache.lengths[first:end] = part.lengths

    def _swap(self, one: int, other: int) -> None:
        if one != other:
            self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
            self.cache.swap(one, other)

    def _static_step(self, last: Tensor) -> Tensor:
        """Read one id a row in the compiled step.

        Rows that are not ready are read too, where their own next ids will be stored.
        """
        assert self._step is not None
        ids = torch.zeros(self.n_rows, dtype=torch.long, device=self.device)
        ids[: len(last)] = last
        unused = [0] * (self.n_rows - len(self.rows))
        positions = torch.tensor([*self.cache.lengths, *unused], device=self.device)
        logits = self._step(ids, positions)[: len(last)].float()  # (B, V)
        for place in range(len(last)):
            self.cache.lengths[place] += 1
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
