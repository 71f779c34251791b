"""Next-id sampling from logits, as in Hugging Face's processors.

In order: a penalty for ids already present, temperature, top-k, top-p, min-p. The remaining ids
are sampled in double precision on the CPU: a running sum on a GPU is not deterministic.

Letters: B rows, V vocabulary, K ids that may be drawn.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

LIKELIEST = 1024  # ids sorted first for top-p; all ids are sorted where 1024 ids hold too little

REPETITION_PENALTIES = (0.01, 100.0)
"""The least and the largest penalty: beyond them logits overflow."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings for decoding: greedy at temperature 0, sampled otherwise.

    `top_k` keeps the k likeliest ids (0: all). `top_p` then keeps the fewest of the likeliest ids
    with a total probability of `top_p` (1.0: all; Holtzman et al. 2020,
    https://arxiv.org/abs/1904.09751). `min_p` then keeps the ids with at least `min_p` times the
    likeliest id's probability (0.0: all; https://arxiv.org/abs/2407.01082). `repetition_penalty`
    divides the positive logits of ids in prompt and continuation and multiplies the negative
    logits (1.0: off; Keskar et al. 2019, https://arxiv.org/abs/1909.05858). With `beams` above 1
    the continuation comes from a beam search and not from sampling, see beams.py;
    `length_penalty` is the exponent of the length that divides a finished beam's log probability.
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
            raise ValueError(f"max_new_tokens is {self.max_new_tokens} but must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature} but must be 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k} but must be 0 (all ids) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p} but must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p} but must be from 0 to 1")
        least, most = REPETITION_PENALTIES
        if not least <= self.repetition_penalty <= most:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty} but must be from {least} to "
                f"{most:g} (1 is off)"
            )
        if self.beams < 1:
            raise ValueError(f"beams is {self.beams} but must be at least 1")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError(
                f"beams is {self.beams} and temperature {self.temperature}: "
                "a beam search draws nothing, set temperature to 0"
            )
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty is {self.length_penalty} but must be a number")


def choose(
    logits: Tensor,
    configs: Sequence[GenerationConfig],
    seen: Sequence[Collection[int]],
    draws: Sequence[torch.Generator],
) -> list[int]:
    """Choose each row's next id from logits (B, V).

    Each row has a separate config, collection of seen ids and random stream.
    """
    check_finite(logits)
    if all(config.temperature == 0 and config.repetition_penalty == 1 for config in configs):
        return logits.argmax(-1).tolist()
    return [
        _choose_id(*row) for row in zip(logits.float().cpu(), configs, seen, draws, strict=True)
    ]


def check_finite(logits: Tensor) -> None:
    """Raise ValueError for logits that are not numbers: no id would be more than an accident."""
    if not bool(logits.isfinite().all()):
        raise ValueError(
            "the model's logits are not finite numbers: weights are damaged, or too large for "
            "their float type; check the weights with `gptmill score`"
        )


def _choose_id(
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
    """Return logits (V,) with the repetition penalty for seen ids.

    A penalty above 1 makes seen ids less likely.
    """
    ids = torch.tensor(list(set(seen)), device=logits.device)
    seen_logits = logits[ids]
    return logits.index_copy(
        0, ids, torch.where(seen_logits < 0, seen_logits * penalty, seen_logits / penalty)
    )


def candidates(logits: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Return the candidates' probabilities (K,) and ids (K,).

    The probabilities sum to less than 1 where ids were dropped. Top-k may come before
    temperature, as in this function: temperature does not change which ids are the likeliest.
    """
    n_ids = len(logits)
    n_kept = min(config.top_k or n_ids, n_ids)
    if n_kept < n_ids:
        logits, ids = logits.topk(n_kept)  # (K,), the likeliest first
        probabilities = _softmax(logits, config.temperature)
    else:
        probabilities, ids = _softmax(logits, config.temperature), torch.arange(n_ids)
    if config.top_p < 1:
        probabilities, indices = _nucleus(probabilities, config.top_p)
        ids = ids[indices]
    if config.min_p > 0:
        likely = probabilities >= config.min_p * probabilities.max()
        probabilities, ids = probabilities[likely], ids[likely]
    return probabilities, ids


def _softmax(logits: Tensor, temperature: float) -> Tensor:
    """Return probabilities in double precision.

    The largest logit is subtracted first, to avoid overflow at the lowest temperature.
    """
    logits = logits.double()
    return ((logits - logits.max()) / temperature).softmax(0)


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the fewest probabilities that hold `top_p`, and their indices.

    The largest probability comes first.
    """
    for n_sorted in (min(LIKELIEST, len(probabilities)), len(probabilities)):
        largest, indices = probabilities.topk(n_sorted)
        sums = largest.cumsum(0)
        if sums[-1] >= top_p:
            break
    n_kept = 1 + int((sums[:-1] < top_p).sum())  # ids with a sum below `top_p` ahead of them
    return largest[:n_kept], indices[:n_kept]
