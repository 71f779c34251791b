"""GPT classification: padded batches, scores at each row's last token.

Causal attention lets only the last real token see the whole text: the classification head reads
the hidden state of the last token. Padding stands to the right and is seen by no real token, and
therefore never changes a score.

Letters: N rows, B rows of a batch, T positions, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptmill.data.batching import (
    Ids,
    Indices,
    by_length,
    pad,
)
from gptmill.device import check_choice
from gptmill.model.gpt import GPTClassifier
from gptmill.model.objectives import Batch, Objective
from gptmill.model.packing import packed
from gptmill.tokenizer.tokenizer import Tokenizer

Trainable = Literal["head", "last_block", "last_two_blocks", "all"]
Balance = Literal["undersample", "oversample", "none"]

_TRAINED_BLOCKS: dict[Trainable, int] = {"last_block": 1, "last_two_blocks": 2}


@dataclass(frozen=True)
class LabelledRows:
    """Texts as token ids, each with a class index."""

    ids: list[Ids]
    labels: Indices  # (N,)
    n_cut: int
    """Number of texts longer than the context, cut at the end."""
    context_length: int

    @property
    def lengths(self) -> Indices:
        """Return each row's number of ids, (N,)."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)

    def take(self, indices: Indices) -> "LabelledRows":
        """Return the rows at `indices`, in the order of `indices`."""
        return replace(
            self, ids=[self.ids[index] for index in indices], labels=self.labels[indices]
        )


def encode(
    texts: Sequence[str], tokenizer: Tokenizer, context_length: int
) -> tuple[list[Ids], int]:
    """Encode texts, cut to the context; count the cut texts.

    Padding is `<|endoftext|>`, and Hugging Face's classifier finds the end of a row by searching
    for the padding id: no row may contain a real `<|endoftext|>`. The tokenizer reads the word as
    plain text, and therefore no row does. Raises ValueError for an empty text.
    """
    whole = tokenizer.encode_batch(texts)
    rows = [row[:context_length] for row in whole]
    empty = next((index for index, row in enumerate(rows) if len(row) == 0), None)
    if empty is not None:
        raise ValueError(
            f"text {empty + 1} of {len(texts)} is empty; a text must have at least 1 token"
        )
    assert not any(tokenizer.eot_id in row for row in rows)
    return rows, sum(len(row) > context_length for row in whole)


def encode_rows(
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    tokenizer: Tokenizer,
    context_length: int,
    class_names: Sequence[str],
) -> LabelledRows:
    """Encode labelled texts as rows.

    Raises ValueError for a label that is not among the class names.
    """
    unknown = sorted(set(labels) - set(class_names))
    if unknown:
        raise ValueError(f"unknown label {unknown[0]!r}; the classes are {', '.join(class_names)}")
    ids, n_cut = encode(texts, tokenizer, context_length)
    class_id = {name: index for index, name in enumerate(class_names)}
    classes = np.array([class_id[label] for label in labels], dtype=np.int64)
    return LabelledRows(ids, classes, n_cut, context_length)


def balanced(labels: Indices, how: Balance, *, seed: int) -> Indices:
    """Return row indices with equally many rows of each class.

    Undersampling drops rows at random down to the size of the smallest class. Oversampling repeats
    each class up to the size of the largest: the whole class as often as possible, then rows at
    random. The indices are sorted.
    """
    check_choice("balance", how, get_args(Balance))
    if how == "none":
        return np.arange(len(labels))
    generator = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    sizes = [len(rows) for rows in classes]
    size = min(sizes) if how == "undersample" else max(sizes)
    chosen = [
        np.concatenate(
            [np.tile(rows, size // len(rows)), generator.permutation(rows)[: size % len(rows)]]
        )
        for rows in classes
    ]
    return np.sort(np.concatenate(chosen))


def set_trainable(model: GPTClassifier, part: Trainable) -> None:
    """Freeze all parameters except the named part.

    The part is the head; the last blocks, final norm and head; or all.
    """
    check_choice("trainable", part, get_args(Trainable))
    model.requires_grad_(part == "all")
    model.score.requires_grad_(True)
    blocks = _TRAINED_BLOCKS.get(part, 0)
    if blocks:
        model.transformer.ln_f.requires_grad_(True)
        for block in list(model.transformer.h)[-blocks:]:
            block.requires_grad_(True)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable parameters and of all parameters."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def batch(rows: LabelledRows, indices: Indices, *, pad_id: int) -> Batch:
    """Return the rows at `indices` as a padded batch.

    The batch is (ids (B, T), last (B,), labels (B,)).
    """
    chosen = rows.take(indices)
    ids, last = _padded(chosen.ids, pad_id, limit=rows.context_length)
    return ids, last, torch.from_numpy(chosen.labels)


def class_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the sum of a batch's cross-entropies, in nats.

    The batch is (ids (B, T), last (B,), labels (B,)).
    """
    ids, last, labels = batch
    return F.cross_entropy(model(ids, last), labels, reduction="sum")


CLASSES = Objective(loss=class_loss, count=lambda batch: len(batch[0]))
"""Cross-entropy of the classes; each row is a single target."""


@torch.no_grad()
def predict(
    model: nn.Module, rows: Sequence[Ids], *, batch_size: int, pad_id: int, device: str
) -> npt.NDArray[np.float64]:
    """Return class probabilities (N, K), in row order.

    Computed in float32 on every device, as by Hugging Face's class with the saved folder.
    """
    model = packed(model)
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    for chosen in by_length([len(row) for row in rows], batch_size):
        ids, last = _padded([rows[index] for index in chosen], pad_id)
        scores = model(ids.to(device), last.to(device))  # (B, K)
        for index, row in zip(chosen, scores.double().softmax(dim=-1).cpu(), strict=True):
            out[index] = row
    return torch.stack(out).numpy()


def row_losses(probabilities: npt.NDArray[np.float64], labels: Indices) -> npt.NDArray[np.float64]:
    """Return each row's loss (N,) under class probabilities (N, K), in nats."""
    right = probabilities[np.arange(len(labels)), labels]
    # A certain mistake costs much, but not infinity.
    return -np.log(np.maximum(right, np.finfo(np.float64).tiny))


def measure(probabilities: npt.NDArray[np.float64], labels: Indices) -> dict[str, float]:
    """Return loss and accuracy of class probabilities (N, K).

    The loss is in nats.
    """
    hits = probabilities.argmax(axis=1) == labels
    loss = float(row_losses(probabilities, labels).mean())
    return {"val/loss": loss, "val/accuracy": float(hits.mean())}


def _padded(rows: Sequence[Ids], pad_id: int, *, limit: int | None = None) -> tuple[Tensor, Tensor]:
    return pad(rows, pad_id, limit=limit), torch.tensor([len(row) - 1 for row in rows])
