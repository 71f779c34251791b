"""Beam search: the likeliest continuation among many that are extended side by side.

The same candidates, scores and end as Hugging Face's beam search with its defaults: a finished
beam's score is its log probability over a power of its length, the stop id counted, and the search
ends once no beam that goes on could beat the worst of the finished ones at its present length.

Letters: B beams, V vocabulary.
"""

from collections.abc import Collection, Sequence

import torch

from gptmill.generation.cached_batch import CachedBatch, CachedSequence
from gptmill.generation.sampling import GenerationConfig, penalised
from gptmill.model.gpt import GPT

Candidate = tuple[float, int, int]  # log probability so far, beam, id


@torch.inference_mode()
def beam_search(
    model: GPT, prompt: Sequence[int], config: GenerationConfig, *, stop_ids: Collection[int]
) -> list[int]:
    """Return the ids that continue a prompt, without the stop id."""
    batch: CachedBatch[CachedSequence] = CachedBatch(
        model, config.beams, len(prompt) + config.max_new_tokens
    )
    batch.join([CachedSequence(list(prompt))])
    scores = [0.0]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, config.max_new_tokens + 1):
        likeliest = _extended(batch, scores, config, n_kept=config.beams * (1 + len(stop_ids)))
        ends = [new in stop_ids or length == config.max_new_tokens for _, _, new in likeliest]
        for (score, beam, new), end in list(zip(likeliest, ends, strict=True))[: config.beams]:
            if end:
                ids = [*batch.rows[beam].ids[len(prompt) :], new]
                finished.append((score / length**config.length_penalty, ids))
        finished = sorted(finished, key=lambda found: -found[0])[: config.beams]
        going = [found for found, end in zip(likeliest, ends, strict=True) if not end]
        going = going[: config.beams]
        if not going or _decided(going[0][0], finished, length, config):
            break
        scores = [score for score, _, _ in going]
        _go_on(batch, going)
    best = finished[0][1]
    return best[:-1] if best[-1] in stop_ids else best


def _extended(
    batch: CachedBatch[CachedSequence],
    scores: Sequence[float],
    config: GenerationConfig,
    *,
    n_kept: int,
) -> list[Candidate]:
    """Return the likeliest of all beams with one more id, the best first."""
    found = batch.next_logits().log_softmax(-1)  # (B, V)
    if config.repetition_penalty != 1:
        found = torch.stack(
            [
                penalised(row, reading.ids, config.repetition_penalty)
                for row, reading in zip(found, batch.rows, strict=True)
            ]
        )
    found = found + torch.tensor(scores, device=found.device)[:, None]
    values, places = found.flatten().topk(min(max(2 * config.beams, n_kept), found.numel()))
    n_ids = found.size(-1)
    return [
        (value, place // n_ids, place % n_ids)
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
    ]


def _decided(
    best: float, finished: Sequence[tuple[float, list[int]]], length: int, config: GenerationConfig
) -> bool:
    """Return whether no beam that goes on can still be among the finished ones, by estimate."""
    if len(finished) < config.beams:
        return False
    worst, _ = finished[-1]
    return best / float(length**config.length_penalty) <= worst


def _go_on(batch: CachedBatch[CachedSequence], going: Sequence[Candidate]) -> None:
    """Let the beams be those that go on, each with its new id."""
    rows = batch.rows
    found = [CachedSequence([*rows[beam].ids, new], rows[beam].start) for _, beam, new in going]
    batch.replace(found, [beam for _, beam, _ in going])
