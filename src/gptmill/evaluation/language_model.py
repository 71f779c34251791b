"""Losses of language models, per token and per byte.

Losses per byte are comparable across vocabularies.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from gptmill.model.gpt import GPT
from gptmill.model.objectives import IGNORE
from gptmill.tokenizer.tokenizer import Tokenizer

Ids = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def cut(ids: Ids, *, length: int, limit: int) -> tuple[Ids, Ids]:
    """Cut a text into windows that do not overlap.

    Every id but the first is a target. Returns inputs and targets, both (W, length) int64; targets
    past the end of the text are IGNORE. A `limit` above 0 keeps at most `limit` windows, evenly
    spaced.
    """
    starts = np.arange(0, len(ids) - 1, length)
    if 0 < limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(np.int64)]
    positions = starts[:, None] + np.arange(length)  # (W, length)
    last = len(ids) - 1
    inputs = np.asarray(ids[np.minimum(positions, last)], dtype=np.int64)
    targets = np.asarray(ids[np.minimum(positions + 1, last)], dtype=np.int64)
    return inputs, np.where(positions + 1 > last, IGNORE, targets)


@torch.inference_mode()
def token_nats(model: GPT, inputs: Ids, targets: Ids, *, batch_size: int, device: str) -> Floats:
    """Return -ln p of every target that is not IGNORE.

    Shapes: inputs (W, T), targets (W, T) -> (N,), row by row. Computed in float32 on every
    device, to make scores from different machines comparable.
    """
    model = model.to(device).eval()
    losses = []
    for start in range(0, len(inputs), batch_size):
        rows = slice(start, start + batch_size)
        logits = model(torch.from_numpy(inputs[rows]).to(device))  # (B, T, V)
        target_ids = torch.from_numpy(targets[rows]).to(device)  # (B, T)
        nats = F.cross_entropy(logits.flatten(0, 1), target_ids.flatten(), reduction="none")
        losses.append(nats[target_ids.flatten() != IGNORE].double().cpu().numpy())
    return np.concatenate(losses)


def token_sizes(tokenizer: Tokenizer) -> Counts:
    """Return the number of text bytes of each id, (V,).

    Special tokens count as zero bytes.
    """
    sizes = np.array([len(tokenizer.token_bytes(index)) for index in range(tokenizer.n_vocab)])
    sizes[list(tokenizer.special_ids.values())] = 0
    return sizes


def bits_per_byte(nats_per_token: float, *, tokens: int, size: int) -> float:
    """Return the bits spent on each byte of a text.

    The text has `size` bytes, spelled by `tokens` ids. Bits per byte compare models with different
    vocabularies; nats per token do not.
    """
    return nats_per_token / math.log(2) * tokens / size
