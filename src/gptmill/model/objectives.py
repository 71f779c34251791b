"""Training objectives: a summed loss and a count of targets.

Objectives return a sum and a count instead of a mean: a step split into micro-batches, or
distributed over several devices, divides by the count of the whole step. The result is the same
for every split.

Letters: B rows of a batch, T positions, N counted targets.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptmill.device import Device
from gptmill.model.gpt import GPT
from gptmill.model.head_loss import head_loss

IGNORE = -100
"""Targets of this value are excluded from the loss."""

Batch = tuple[Tensor, ...]
"""Tensors of one step, rows first; the first tensor holds the model's input ids, (B, T)."""


@dataclass(frozen=True)
class Objective:
    """A summed loss, a target count and batch preparation."""

    loss: Callable[[nn.Module, Batch], Tensor]
    """Sum over the targets of a prepared batch, computed in the device's precision."""
    count: Callable[[Batch], int]
    """Number of targets in a batch."""
    prepare: Callable[[Batch], Batch] = lambda batch: batch
    """Applied to a batch, or to some rows of a batch, before the transfer to the device."""


def language_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the summed next-token loss of a prepared batch.

    The loss is in nats. `drop_ignored` prepares the batch.
    """
    assert isinstance(model, GPT)
    hidden = model.hidden(batch[0]).flatten(0, 1)  # (B * T, C)
    targets = batch[1].flatten()  # (B * T,)
    if len(batch) == 3:
        hidden, targets = hidden.index_select(0, batch[2]), targets[batch[2]]  # (N, C), (N,)
    return head_loss(hidden, model.head_weight, targets)


def drop_ignored(batch: Batch) -> Batch:
    """Add the indices of the counted targets to a batch.

    Returns (ids (B, T), targets (B, T)) and, if any target is `IGNORE`, the flat indices (N,) of
    the counted targets. Ignored targets then cost nothing at the head. The indices are computed on
    the host, to avoid a synchronization with the device in mid-step.
    """
    counted = batch[1].flatten() != IGNORE
    return batch if bool(counted.all()) else (*batch, counted.nonzero().squeeze(1))


LANGUAGE = Objective(
    loss=language_loss, count=lambda batch: int((batch[1] != IGNORE).sum()), prepare=drop_ignored
)
"""Next-token loss. A batch is (ids (B, T), targets (B, T)), `IGNORE` for uncounted targets."""


@torch.no_grad()
def mean_language_loss(model: nn.Module, batches: Iterable[Batch], device: Device) -> float:
    """Return the mean loss over all batches, nats per token.

    Batches are weighted by the number of targets, not equally: the result depends on the batch
    size only through rounding. The caller puts the model in eval mode.
    """
    total, count = 0.0, 0
    for batch in batches:
        count += LANGUAGE.count(batch)
        prepared = tuple(tensor.to(device.device) for tensor in LANGUAGE.prepare(batch))
        with device.autocast():
            total += language_loss(model, prepared).item()
    assert count > 0
    return total / count
