"""Perplexity of texts of any length, by sliding windows.

A window is the N ids that the model reads at once, N the context length; the window predicts the id
after each of the N ids. The first window begins at the text's first id, each further window
`stride` ids later. Of a further window's N predictions only the last `stride` count, because
earlier windows have already made the rest. Every id but the text's first is therefore predicted
exactly once, from at least N - stride + 1 and at most N preceding ids (fewer only at the text's
beginning). With a stride of 1 each prediction has all N ids; with a stride of N windows do not
overlap and a single pass reads each id once, as in the stage `evaluate`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gptmill.model.gpt import GPT
from gptmill.tokenizer.tokenizer import Tokenizer

TOKENS_AT_ONCE = 2048  # ids in a batch of windows
LOGITS_AT_ONCE = 512  # predictions scored together; bounds the memory of the logits


@dataclass(frozen=True)
class Perplexity:
    """A model's loss and perplexity on a text."""

    loss: float
    """Mean of -ln p over the predicted ids, in nats."""
    perplexity: float | None
    """e to the power of the loss; None above the largest double."""
    bits_per_byte: float
    """Total of -log2 p, divided by the UTF-8 bytes of the predicted ids."""
    tokens: int
    """Number of predicted ids: all ids of the text but the first."""


def measure(
    model: GPT, tokenizer: Tokenizer, text: str, *, context_length: int, stride: int
) -> Perplexity:
    """Return a text's perplexity under a model in eval mode.

    Raises ValueError where the window does not fit the model, the stride would leave out ids,
    the text has fewer than two ids, or the loss is not finite.
    """
    _check(model, context_length=context_length, stride=stride)
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise ValueError(
            f"the text has {len(ids)} tokens: at least 2 are needed, the first predicts the next"
        )
    nats = sliding_window_nats(model, ids, context_length=context_length, stride=stride)
    size = len(text.encode("utf-8")) - len(tokenizer.token_bytes(ids[0]))
    loss = nats / (len(ids) - 1)
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss}: the model's weights are not finite numbers")
    return Perplexity(loss, _exp(loss), nats / math.log(2) / size, len(ids) - 1)


@torch.inference_mode()
def sliding_window_nats(
    model: GPT, ids: Sequence[int], *, context_length: int, stride: int
) -> float:
    """Sum -ln p over all ids but the first.

    Logits are in float32, and the sum is in double precision.
    """
    device = model.transformer.wte.weight.device
    total = 0.0
    for rows in _batches(list(windows(len(ids), context_length, stride)), context_length):
        inputs = torch.tensor([ids[begin:end] for begin, end, _ in rows])  # (B, T)
        targets = torch.tensor([ids[begin + 1 : end + 1] for begin, end, _ in rows])  # (B, T)
        hidden = model.hidden(inputs.to(device))  # (B, T, C)
        new_hidden = torch.cat([hidden[row, -new:] for row, (_, _, new) in enumerate(rows)])
        target_ids = torch.cat([targets[row, -new:] for row, (_, _, new) in enumerate(rows)])
        for start in range(0, len(target_ids), LOGITS_AT_ONCE):
            chunk = slice(start, start + LOGITS_AT_ONCE)
            logits = model.logits(new_hidden[chunk]).float()  # (K, V)
            losses = F.cross_entropy(logits, target_ids[chunk].to(device), reduction="none")  # (K,)
            total += float(losses.double().sum())
    return total


def windows(n_ids: int, context_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield the windows over `n_ids` ids of a text.

    A window is the first input, the end of the inputs, and the number of new targets.
    """
    begin, predicted = 0, 0
    while predicted < n_ids - 1:
        end = min(begin + context_length, n_ids - 1)
        yield begin, end, end - predicted
        begin, predicted = begin + stride, end


def _batches(
    rows: list[tuple[int, int, int]], context_length: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Yield batches of windows of equal length.

    Only the last window of a text can be shorter than the context.
    """
    whole = [row for row in rows if row[1] - row[0] == context_length]
    n_rows = max(1, TOKENS_AT_ONCE // context_length)
    for start in range(0, len(whole), n_rows):
        yield whole[start : start + n_rows]
    if len(whole) < len(rows):
        yield rows[len(whole) :]


def _check(model: GPT, *, context_length: int, stride: int) -> None:
    most = model.config.context_length
    if not 1 <= context_length <= most:
        raise ValueError(f"context_length is {context_length}: allowed is 1 to the model's {most}")
    if not 1 <= stride <= context_length:
        raise ValueError(
            f"stride is {stride}: allowed is 1 to the context length, {context_length}; "
            "a longer stride would leave tokens out"
        )


def _exp(loss: float) -> float | None:
    try:
        return math.exp(loss)
    except OverflowError:
        return None
