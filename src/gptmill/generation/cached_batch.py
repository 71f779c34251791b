"""Batched decoding with a KV cache: prefill, then next-id logits.

The part of a sequence visible to the model depends on lengths alone. Of a prompt longer than the
context, the model reads the last `context_length` ids. A sequence that outgrows the context drops
the older half: the last `context_length // 2` ids are prefilled again from position 0, and
decoding continues after them. GPT-2's positions are learned, and stored keys therefore cannot move
to new positions; prefilling half a context again every half context keeps the result exact and
costs about one additional position per id.

Letters: B sequences, T positions, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from gptmill.model.gpt import GPT
from gptmill.model.kv_cache import KVCache, StaticReading

READ_AT_ONCE = 2048  # ids in a forward pass of prefill; bounds the memory of activations


@dataclass
class CachedSequence:
    """A sequence of ids; the model still sees `ids[start:]`."""

    ids: list[int]
    start: int = 0


S = TypeVar("S", bound=CachedSequence)


class CachedBatch(Generic[S]):
    """A shared KV cache for up to `n_rows` sequences.

    Each sequence has `capacity` positions. Sequences join and leave between two steps; the first
    `n_ready` sequences are ready, with their prompts prefilled. A prompt is prefilled as a whole,
    unless `prefill_budget` bounds the ids prefilled in a step while ready sequences are decoded, to
    keep a long prompt from delaying the ready sequences. With `compiled`, the decoding step is
    compiled once with shapes that never change, on a GPU as a CUDA graph: worth the compile time
    where a batch lives for many steps.
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
        assert not model.training, "dropout would change the generated ids"
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
        """Add sequences, to be prefilled at the next step.

        Sequences of equal length are prefilled together.
        """
        context = self.model.config.context_length
        for row in sorted(rows, key=lambda row: len(row.ids)):
            assert len(self.rows) < self.n_rows, f"the batch already has {self.n_rows} sequences"
            row.start = max(0, len(row.ids) - context)
            self.rows.append(row)
            self.cache.lengths.append(0)

    def leave(self, row: S) -> None:
        """Remove a sequence; ready sequences stay ahead of the rest."""
        index = next(index for index, member in enumerate(self.rows) if member is row)
        if index < self.n_ready:
            self.n_ready -= 1
            self._swap(self.n_ready, index)
            index = self.n_ready
        self._swap(len(self.rows) - 1, index)
        self.rows.pop()
        self.cache.lengths.pop()
        self.cache.release(len(self.rows))

    def replace(self, rows: Sequence[S], sources: Sequence[int]) -> None:
        """Replace all sequences and reorder the cache to match.

        Each sequence `rows[i]` is the former sequence at `sources[i]`, extended by an id.
        """
        assert self.n_ready == len(self.rows), "sequences still in prefill have no new id"
        self.cache.reorder(sources)
        self.rows = list(rows)
        self.n_ready = len(rows)

    @torch.inference_mode()
    def next_logits(self) -> Tensor:
        """Return next-id logits (B, V) of the ready sequences.

        Unread ids are prefilled first.
        """
        self._prefill_overlong()
        self._prefill_prompts()
        ready = self.n_ready
        last = torch.tensor([row.ids[-1] for row in self.rows[:ready]], device=self.device)  # (B,)
        if self._step is not None:
            return self._static_step(last)
        part = self.cache.part(0, ready)
        logits: Tensor = self.model(last[:, None], part)[:, -1].float()  # (B, V)
        self.cache.lengths[:ready] = part.lengths
        return logits

    def _prefill_overlong(self) -> None:
        """Prefill the newer half of sequences longer than the context."""
        context = self.model.config.context_length
        for index, row in enumerate(self.rows[: self.n_ready]):
            if len(row.ids) - row.start > context:
                row.start = len(row.ids) - max(1, context // 2)
                self.cache.lengths[index] = 0
        first = 0
        while first < self.n_ready:
            end, unread = self._group(first, self.n_ready)
            self._prefill(first, end, unread)
            first = end

    def _prefill_prompts(self) -> None:
        """Prefill prompts within the step's budget.

        Prompts with the fewest unread ids come first.
        """
        room = self.prefill_budget
        while (first := self.n_ready) < len(self.rows):
            waiting = range(first, len(self.rows))
            self._swap(first, min(waiting, key=lambda index: self._state(index)[1]))
            end, unread = self._group(first, len(self.rows))
            n_new = unread
            if room is not None and first:
                n_new = min(unread, max(1, room // (end - first)))
                room -= n_new * (end - first)
            self._prefill(first, end, n_new)
            if n_new < unread:
                return
            self.n_ready = end

    def _group(self, first: int, last: int) -> tuple[int, int]:
        """Return a group's end and unread ids per sequence.

        The group holds the sequences from `first` on that are prefilled together.
        """
        state, end = self._state(first), first + 1
        while end < last and self._state(end) == state:
            end += 1
        return end, state[1]

    def _state(self, index: int) -> tuple[int, int]:
        """Return a sequence's numbers of stored and unread ids.

        The last id is not counted as unread: `next_logits` reads the last id.
        """
        row, stored = self.rows[index], self.cache.lengths[index]
        return stored, len(row.ids) - row.start - stored - 1

    def _prefill(self, first: int, end: int, n_new: int) -> None:
        """Prefill the next ids of sequences at the same position.

        READ_AT_ONCE bounds the ids of a forward pass.
        """
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

    def _swap(self, a: int, b: int) -> None:
        if a != b:
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]
            self.cache.swap(a, b)

    def _static_step(self, last: Tensor) -> Tensor:
        """Read an id per sequence in the compiled step.

        Sequences that are not ready are read too, at the positions where their next ids will be
        stored.
        """
        assert self._step is not None
        ids = torch.zeros(self.n_rows, dtype=torch.long, device=self.device)
        ids[: len(last)] = last
        unused = [0] * (self.n_rows - len(self.rows))
        positions = torch.tensor([*self.cache.lengths, *unused], device=self.device)
        logits = self._step(ids, positions)[: len(last)].float()  # (B, V)
        for index in range(len(last)):
            self.cache.lengths[index] += 1
        return logits


def _compiled_step(model: GPT, cache: KVCache) -> Callable[[Tensor, Tensor], Tensor]:
    """Compile a decoding step from ids and positions to logits.

    Shapes: ids (B,), positions (B,), logits (B, V).
    """
    for stored in (*cache.keys, *cache.values):
        # Otherwise a CUDA graph would copy the cache in and out.
        torch._dynamo.mark_static_address(stored)

    def step(ids: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = model(ids[:, None], StaticReading(cache, positions))
        return logits[:, -1]

    mode = "reduce-overhead" if cache.device.type == "cuda" else None
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(
        step, fullgraph=True, dynamic=False, mode=mode
    )
    return compiled
