"""Decoding: new ids for a batch of prompts, one position at a time, keys and values kept.

What a prompt continues with depends on the model, the prompt, the config and the seed alone:
each prompt draws from a random stream of its own, and rows of a batch do not see each other.

Letters: B rows, T positions, C embedding width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gptmill.kv_cache import KVCache
from gptmill.model import GPT

__all__ = ["GenerationConfig", "KVCache", "generate"]

ROWS_AT_ONCE = 32  # prompts decoded together; bounds the memory of the cache


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How the next id is chosen: the likeliest at temperature 0, else drawn at random.

    `top_k` keeps the k likeliest ids (0: all), then `top_p` the fewest of them that hold that
    much probability (1.0: all; Holtzman et al. 2020, https://arxiv.org/abs/1904.09751).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}: it must be 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: it must be 0 (all ids) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must be above 0 and at most 1")


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    stop_id: int | None,
    seed: int,
) -> list[list[int]]:
    """Return the ids that continue each prompt, up to `stop_id`, which is not among them.

    The model reads the last `context_length` ids of prompt and continuation, as the book does.
    """
    assert not model.training, "dropout would change what is generated"
    if not all(prompts):
        raise ValueError("a prompt has no ids: it must have at least one, such as <|endoftext|>")
    # Prompts of like length share a batch, so that little of it is padding.
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    rows = [_Row(list(prompt), [], _stream(seed, index)) for index, prompt in enumerate(prompts)]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = [rows[index] for index in by_length[start : start + ROWS_AT_ONCE]]
        _continue(model, batch, config, stop_id=stop_id)
    return [row.new_ids for row in rows]


@dataclass(frozen=True)
class _Row:
    """A prompt, what follows it so far, and the random stream that it draws from."""

    prompt: list[int]
    new_ids: list[int]
    stream: torch.Generator

    def ids(self) -> list[int]:
        return self.prompt + self.new_ids


def _stream(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)


@torch.inference_mode()
def _continue(
    model: GPT, rows: list[_Row], config: GenerationConfig, *, stop_id: int | None
) -> None:
    """Add to each row's new ids until it stops; rows that have stopped leave the batch."""
    longest = max(len(row.prompt) for row in rows) + config.max_new_tokens
    cache = model.new_cache(len(rows), min(longest, model.config.context_length))
    for _ in range(config.max_new_tokens):
        chosen = _choose(_next_logits(model, rows, cache), rows, config)
        going = [place for place, index in enumerate(chosen) if index != stop_id]
        for place in going:
            rows[place].new_ids.append(chosen[place])
        if len(going) < len(rows):
            rows = [rows[place] for place in going]
            cache.select(going)
        if not rows:
            return


def _next_logits(model: GPT, rows: Sequence[_Row], cache: KVCache) -> Tensor:
    """Return logits (B, V) of the id that follows each row.

    Feeds what the cache has not seen: the whole prompts first, then one id at a time. Past the
    context length every position moves at each step, so that nothing stored can be used.
    """
    context = model.config.context_length
    ids = [row.ids() for row in rows]
    if max(map(len, ids)) > context:
        return _last_logits(model, [row[-context:] for row in ids], None)
    unread = [row[seen:] for row, seen in zip(ids, cache.lengths.tolist(), strict=True)]
    logits = _last_logits(model, unread, cache)
    cache.keep_first([len(row) for row in ids])
    return logits


def _last_logits(model: GPT, rows: Sequence[Sequence[int]], cache: KVCache | None) -> Tensor:
    """Pad rows on the right, read them, and return the logits (B, V) at each row's own end."""
    lengths = torch.tensor([len(row) for row in rows])  # (B,)
    padded = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)  # (B, T)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = torch.tensor(row)
    hidden = model.hidden(padded.to(model.head_weight.device), cache)  # (B, T, C)
    return model.logits(hidden[torch.arange(len(rows)), lengths - 1]).float()  # (B, V)


def _choose(logits: Tensor, rows: Sequence[_Row], config: GenerationConfig) -> list[int]:
    """Choose the next id of each row from logits (B, V)."""
    if config.temperature == 0:
        return logits.argmax(-1).tolist()
    probabilities, ids = _candidates(logits, config)  # (B, K)
    sums = probabilities.cumsum(-1)  # (B, K)
    draws = torch.stack([torch.rand(1, generator=row.stream, dtype=sums.dtype) for row in rows])
    places = torch.searchsorted(sums, draws * sums[:, -1:], right=True)  # (B, 1)
    return ids.gather(-1, places).squeeze(-1).tolist()


def _candidates(logits: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Return the probabilities (B, K) of the ids that may be drawn, and the ids.

    Top-k first, then temperature, then top-p, which leaves ids in place at probability 0. In
    double precision on the CPU: a running sum on a GPU is not deterministic.
    """
    n_ids = logits.size(-1)
    n_kept = min(config.top_k or n_ids, n_ids)
    if n_kept < n_ids or config.top_p < 1:
        logits, ids = logits.topk(n_kept)  # (B, K), the likeliest first
    else:
        ids = torch.arange(n_ids, device=logits.device).expand_as(logits)
    logits = logits.cpu().double()
    # Less the largest first, so that the coldest temperature overflows nothing.
    logits = logits - logits.max(-1, keepdim=True).values
    probabilities = (logits / config.temperature).softmax(-1)  # (B, K)
    if config.top_p < 1:
        held_before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(held_before >= config.top_p, 0)
    return probabilities, ids.cpu()
