"""Which id comes next: from logits to a choice, by the definitions of Hugging Face's processors.

In this order: a penalty for ids that are there already, temperature, top-k, top-p, min-p. What
is left is drawn from in double precision on the CPU: a running sum on a GPU is not deterministic.

Letters: B rows, V vocabulary, K ids that may be drawn.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

LIKELIEST = 1024  # sorted first for top-p; all ids only where these do not hold enough


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How the next id is chosen: the likeliest at temperature 0, else drawn at random.

    `top_k` keeps the k likeliest ids (0: all), then `top_p` the fewest of them that hold that
    much probability (1.0: all; Holtzman et al. 2020, https://arxiv.org/abs/1904.09751), then
    `min_p` those that have at least that share of the likeliest one's probability (0.0: all;
    https://arxiv.org/abs/2407.01082). `repetition_penalty` divides the positive logits of ids in
    prompt and continuation and multiplies the negative ones (1.0: off; Keskar et al. 2019,
    https://arxiv.org/abs/1909.05858). With `beams` above 1 the continuation is searched for and
    not drawn, see beams.py; `length_penalty` is the power of the length that a finished beam's
    log probability is divided by.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}: it must be 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: it must be 0 (all ids) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}: it must be from 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}: it must be above 0 (1 is off)"
            )
        if self.beams < 1:
            raise ValueError(f"beams is {self.beams}: it must be at least 1")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError(
                f"beams is {self.beams} and temperature {self.temperature}: "
                "a beam search draws nothing, set temperature to 0"
            )
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty is {self.length_penalty}: it must be a number")


def choose(
    logits: Tensor,
    configs: Sequence[GenerationConfig],
    seen: Sequence[Collection[int]],
    draws: Sequence[torch.Generator],
) -> list[int]:
    """Choose the next id of each row from logits (B, V), by its own config, ids and stream."""
    if all(config.temperature == 0 and config.repetition_penalty == 1 for config in configs):
        return logits.argmax(-1).tolist()
    return [
        _choose_one(*row) for row in zip(logits.float().cpu(), configs, seen, draws, strict=True)
    ]


def _choose_one(
    logits: Tensor, config: GenerationConfig, seen: Collection[int], draws: torch.Generator
) -> int:
    if config.repetition_penalty != 1:
        logits = penalised(logits, seen, config.repetition_penalty)
    if config.temperature == 0:
        return int(logits.argmax())
    probabilities, ids = candidates(logits, config)
    sums = probabilities.cumsum(0)  # (K,)
    draw = torch.rand(1, generator=draws, dtype=sums.dtype) * sums[-1]
    return int(ids[torch.searchsorted(sums, draw, right=True)])


def penalised(logits: Tensor, seen: Collection[int], penalty: float) -> Tensor:
    """Return logits (V,) in which ids that were seen are less likely, for a penalty above 1."""
    ids = torch.tensor(list(set(seen)), device=logits.device)
    found = logits[ids]
    return logits.index_copy(0, ids, torch.where(found < 0, found * penalty, found / penalty))


def candidates(logits: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Return the probabilities (K,) of the ids that may be drawn, and the ids.

    They sum to less than 1 where some were dropped. Top-k can come before temperature, as it
    does here: temperature does not change which ids are the likeliest.
    """
    n_ids = len(logits)
    n_kept = min(config.top_k or n_ids, n_ids)
    if n_kept < n_ids:
        logits, ids = logits.topk(n_kept)  # (K,), the likeliest first
        probabilities = _softmax(logits, config.temperature)
    else:
        probabilities, ids = _softmax(logits, config.temperature), torch.arange(n_ids)
    if config.top_p < 1:
        probabilities, places = _nucleus(probabilities, config.top_p)
        ids = ids[places]
    if config.min_p > 0:
        kept = probabilities >= config.min_p * probabilities.max()
        probabilities, ids = probabilities[kept], ids[kept]
    return probabilities, ids


def _softmax(logits: Tensor, temperature: float) -> Tensor:
    """Return probabilities in double; less the largest first: the coldest overflows nothing."""
    logits = logits.double()
    return ((logits - logits.max()) / temperature).softmax(0)


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the fewest probabilities that hold `top_p`, the largest first, and their places."""
    for n_sorted in (min(LIKELIEST, len(probabilities)), len(probabilities)):
        found, places = probabilities.topk(n_sorted)
        sums = found.cumsum(0)
        if sums[-1] >= top_p:
            break
    n_kept = 1 + int((sums[:-1] < top_p).sum())  # whoever begins before that much is held
    return found[:n_kept], places[:n_kept]
