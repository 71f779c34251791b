"""How well a model predicts a text of any length: a window that slides over it.

A window is the N ids that the model reads at once, N the context length; it predicts the id
after each of them. The first window begins at the text's first id, each further one `stride`
ids later, and of its N predictions those count that no window before it has made: the last
`stride` of them. So every id but the text's first is predicted exactly once, from at least
N - stride + 1 and at most N ids before it (fewer only at the text's beginning). With a stride
of 1 each has all N; with a stride of N windows do not overlap and one pass reads each id once,
which is how the stage `evaluate` cuts a text.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gptmill.model.gpt import GPT
from gptmill.tokenizer.tokenizer import Tokenizer

TOKENS_AT_ONCE = 2048  # ids of the windows that are read together
LOGITS_AT_ONCE = 512  # predictions that are scored together; bounds the memory of their logits


@dataclass(frozen=True)
class Perplexity:
    """What a model makes of a text."""

    loss: float
    """Mean of -ln p over the predicted ids, in nats."""
    perplexity: float | None
    """e to the power of the loss; None where that is more than a double holds."""
    bits_per_byte: float
    """All -log2 p over the UTF-8 bytes of what the predicted ids spell."""
    tokens: int
    """How many ids were predicted: all of the text's but the first."""


def measure(
    model: GPT, tokenizer: Tokenizer, text: str, *, context_length: int, stride: int
) -> Perplexity:
    """Return the perplexity of `text` under `model`, which is in eval mode.

    Raises ValueError where the window does not fit the model, the stride would leave out ids,
    the text has fewer than two ids, or the loss is no number.
    """
    _check(model, context_length=context_length, stride=stride)
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise ValueError(
            f"the text has {len(ids)} tokens: at least 2 are needed, the first predicts the next"
        )
    nats = token_nats(model, ids, context_length=context_length, stride=stride)
    size = len(text.encode("utf-8")) - len(tokenizer.token_bytes(ids[0]))
    loss = nats / (len(ids) - 1)
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss}: the model's weights are not finite numbers")
    return Perplexity(loss, _exp(loss), nats / math.log(2) / size, len(ids) - 1)


@torch.inference_mode()
def token_nats(model: GPT, ids: Sequence[int], *, context_length: int, stride: int) -> float:
    """Return the sum of -ln p over all ids but the first, in float32 logits, summed in double."""
    device = model.transformer.wte.weight.device
    total = 0.0
    for rows in _batches(list(windows(len(ids), context_length, stride)), context_length):
        inputs = torch.tensor([ids[begin:end] for begin, end, _ in rows])  # (B, T)
        targets = torch.tensor([ids[begin + 1 : end + 1] for begin, end, _ in rows])  # (B, T)
        hidden = model.hidden(inputs.to(device))  # (B, T, C)
        new_hidden = torch.cat([hidden[row, -new:] for row, (_, _, new) in enumerate(rows)])
        wanted = torch.cat([targets[row, -new:] for row, (_, _, new) in enumerate(rows)])
        for start in range(0, len(wanted), LOGITS_AT_ONCE):
            some = slice(start, start + LOGITS_AT_ONCE)
            logits = model.logits(new_hidden[some]).float()  # (K, V)
            found = F.cross_entropy(logits, wanted[some].to(device), reduction="none")  # (K,)
            total += float(found.double().sum())
    return total


def windows(n_ids: int, context_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield each window's first input, the end of its inputs, and how many targets are new."""
    begin, predicted = 0, 0
    while predicted < n_ids - 1:
        end = min(begin + context_length, n_ids - 1)
        yield begin, end, end - predicted
        begin, predicted = begin + stride, end


def _batches(
    rows: list[tuple[int, int, int]], context_length: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Yield windows of one length together; only the last of a text can be shorter."""
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
            "a longer one would leave tokens out"
        )


def _exp(loss: float) -> float | None:
    try:
        return math.exp(loss)
    except OverflowError:
        return None
