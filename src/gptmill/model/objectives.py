"""What training minimises: a sum of losses over targets, and how many targets there are.

A sum and a count, not a mean: a step that is cut into micro-batches, or shared out to several
devices, divides by the count of the whole step and so comes out the same however it was cut.

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
"""A target of this value takes no part in the loss."""

Batch = tuple[Tensor, ...]
"""Tensors of one step, rows first; the first holds the ids that the model reads, (B, T)."""


@dataclass(frozen=True)
class Objective:
    """A loss that adds up over targets, how a batch's targets are counted, and its last touch."""

    loss: Callable[[nn.Module, Batch], Tensor]
    """Sum over the targets of a prepared batch; it runs in the device's precision."""
    count: Callable[[Batch], int]
    """How many targets a batch has."""
    prepare: Callable[[Batch], Batch] = lambda batch: batch
    """Made of a batch, or of some of its rows, before it goes to the device."""


def language_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the sum of next-token losses, nats, of a batch that `kept` prepared."""
    assert isinstance(model, GPT)
    hidden = model.hidden(batch[0]).flatten(0, 1)  # (B * T, C)
    targets = batch[1].flatten()  # (B * T,)
    if len(batch) == 3:
        hidden, targets = hidden.index_select(0, batch[2]), targets[batch[2]]  # (N, C), (N,)
    return head_loss(hidden, model.head_weight, targets)


def drop_ignored(batch: Batch) -> Batch:
    """Return (ids (B, T), targets (B, T)) and, where some are `IGNORE`, the others' places (N,).

    Targets that are left out then cost nothing at the head, and where they are is found on
    the host, so that no device has to be asked in mid-step.
    """
    counted = batch[1].flatten() != IGNORE
    return batch if bool(counted.all()) else (*batch, counted.nonzero().squeeze(1))


LANGUAGE = Objective(
    loss=language_loss, count=lambda batch: int((batch[1] != IGNORE).sum()), prepare=drop_ignored
)
"""The next token's loss; a batch is (ids (B, T), targets (B, T)), `IGNORE` where none counts."""


@torch.no_grad()
def mean_language_loss(model: nn.Module, batches: Iterable[Batch], device: Device) -> float:
    """Return the loss over all targets of the batches together, nats per token.

    Batches weigh by their targets, not equally, so the result depends on their size only by
    rounding. The caller puts the model in eval mode.
    """
    total, count = 0.0, 0
    for batch in batches:
        count += LANGUAGE.count(batch)
        prepared = tuple(tensor.to(device.device) for tensor in LANGUAGE.prepare(batch))
        with device.autocast():
            total += language_loss(model, prepared).item()
    assert count > 0
    return total / count
