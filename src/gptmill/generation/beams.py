"""Beam search: the likeliest of several continuations extended in parallel.

Candidates, scores and the end of the search match Hugging Face's beam search with default
settings: the score of a finished beam is the log probability over a power of the length, with the
stop id counted, and the search ends once no unfinished beam, scored at the present length, could
beat the worst of the finished beams.

Letters: B beams, V vocabulary.
"""

from collections.abc import Collection, Sequence

import torch

from gptmill.generation.cached_batch import CachedBatch, CachedSequence
from gptmill.generation.sampling import GenerationConfig, check_finite, penalised
from gptmill.model.gpt import GPT

Candidate = tuple[float, int, int]  # log probability so far, beam, id


@torch.inference_mode()
def beam_search(
    model: GPT, prompt: Sequence[int], config: GenerationConfig, *, stop_ids: Collection[int]
) -> list[int]:
    """Return a prompt's continuation as ids, without the stop id."""
    batch: CachedBatch[CachedSequence] = CachedBatch(
        model, config.beams, len(prompt) + config.max_new_tokens
    )
    batch.join([CachedSequence(list(prompt))])
    scores = [0.0]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, config.max_new_tokens + 1):
        likeliest = _likeliest_extensions(
            batch, scores, config, n_kept=config.beams * (1 + len(stop_ids))
        )
        ends = [new in stop_ids or length == config.max_new_tokens for _, _, new in likeliest]
        for (score, beam, new), end in list(zip(likeliest, ends, strict=True))[: config.beams]:
            if end:
                ids = [*batch.rows[beam].ids[len(prompt) :], new]
                finished.append((score / length**config.length_penalty, ids))
        finished = sorted(finished, key=lambda hypothesis: -hypothesis[0])[: config.beams]
        unfinished = [candidate for candidate, end in zip(likeliest, ends, strict=True) if not end]
        unfinished = unfinished[: config.beams]
        if not unfinished or _is_decided(unfinished[0][0], finished, length, config):
            break
        scores = [score for score, _, _ in unfinished]
        _advance(batch, unfinished)
    best = finished[0][1]
    return best[:-1] if best[-1] in stop_ids else best


def _likeliest_extensions(
    batch: CachedBatch[CachedSequence],
    scores: Sequence[float],
    config: GenerationConfig,
    *,
    n_kept: int,
) -> list[Candidate]:
    """Return the likeliest one-id extensions of all beams, best first."""
    logits = batch.next_logits()
    check_finite(logits)
    logprobs = logits.log_softmax(-1)  # (B, V)
    if config.repetition_penalty != 1:
        logprobs = torch.stack(
            [
                penalised(row, sequence.ids, config.repetition_penalty)
                for row, sequence in zip(logprobs, batch.rows, strict=True)
            ]
        )
    logprobs = logprobs + torch.tensor(scores, device=logprobs.device)[:, None]
    values, flat_indices = logprobs.flatten().topk(
        min(max(2 * config.beams, n_kept), logprobs.numel())
    )
    n_ids = logprobs.size(-1)
    return [
        (value, flat_index // n_ids, flat_index % n_ids)
        for value, flat_index in zip(values.tolist(), flat_indices.tolist(), strict=True)
    ]


def _is_decided(
    best: float, finished: Sequence[tuple[float, list[int]]], length: int, config: GenerationConfig
) -> bool:
    """Return whether the finished beams can no longer change.

    By estimate, no unfinished beam can then still enter the set of finished beams.
    """
    if len(finished) < config.beams:
        return False
    worst, _ = finished[-1]
    return best / float(length**config.length_penalty) <= worst


def _advance(batch: CachedBatch[CachedSequence], unfinished: Sequence[Candidate]) -> None:
    """Keep the unfinished beams, each extended by a new id."""
    rows = batch.rows
    extended = [
        CachedSequence([*rows[beam].ids, new], rows[beam].start) for _, beam, new in unfinished
    ]
    batch.replace(extended, [beam for _, beam, _ in unfinished])
