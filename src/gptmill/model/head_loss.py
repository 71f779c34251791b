"""Cross-entropy of a linear head with few passes over logits.

With 50,257 ids, a small model spends most of a step on (N, V) arrays, and most of the time goes
into memory traffic. Cross-entropy under autocast allocates four (N, V) arrays in fp32. This module
allocates a single array, in the precision of the products: logits become probabilities in place,
and probabilities become the gradient. The loss is a custom operator because inductor would choose
a softmax that takes ten times as long as PyTorch's own for long rows on a CPU (280 ms against 27 ms
for 1,024 rows).

Where even a single (N, V) array is too large, the full array is never allocated: the forward pass
computes losses and gradients for a part of the rows at a time, as in
https://arxiv.org/abs/2410.10989.

Letters: N targets, C width, V vocabulary, P the vocabulary padded.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGN = 64
"""Rows of logits start on a cache line. The product for the logits is then 1.4 times as fast, and
the product for the weight's gradient 1.6 times as fast."""

COLUMNS = 4096
"""Logits per row in a CPU product: a single product over all columns takes twice as long."""

LARGEST = 2**28
"""Maximum logits in memory at once, half a gigabyte in bf16; more are computed in parts."""

LARGEST_PLAIN = 2**23
"""Maximum logits at once without gradients, with three arrays of them in memory."""


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy of the logits, in nats.

    The logits are `hidden @ weight.T`. Shapes: hidden (N, C), weight (V, C), targets (N,), loss ().
    Under autocast each target's loss is accurate to about 0.2 %, randomly up or down, and
    gradients reach the products in bf16, as usual under autocast. Without gradients, the loss
    is computed in plain fp32, exactly.
    """
    rows = max(1, LARGEST // _padded(weight))
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if not torch.is_grad_enabled():
        largest = min(rows, max(1, LARGEST_PLAIN // _padded(weight)))
        return _plain(hidden, weight.to(dtype), targets, largest)
    if len(hidden) > rows:
        in_parts: Tensor = _head_loss_in_parts(hidden, weight, targets, dtype, rows)[0]
        return in_parts
    loss: Tensor = _head_loss(hidden, weight, targets, dtype)[0]
    return loss


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
    parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    losses = [
        F.cross_entropy(F.linear(part, weight).float(), labels, reduction="sum")
        for part, labels in parts
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _padded(weight: Tensor) -> int:
    """Return P of a weight (V, C)."""
    return -weight.size(0) % ALIGN + weight.size(0)


@torch.library.custom_op("gptmill::head_loss", mutates_args=())
def _head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the logits' gradient and the padded weight.

    The gradient (N, P) and the weight (P, C) are in `dtype`.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        matrix = _matrix(weight, dtype)
        loss, scores = _scored(hidden.to(dtype), matrix, targets, weight.size(0))
    return loss, scores, matrix


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in `dtype`, zero-padded to (P, C)."""
    matrix = weight.new_empty(_padded(weight), weight.size(1), dtype=dtype)
    matrix[: len(weight)] = weight
    matrix[len(weight) :] = 0
    return matrix


def _scored(hidden: Tensor, matrix: Tensor, targets: Tensor, n_ids: int) -> tuple[Tensor, Tensor]:
    """Return the loss of hidden (N, C) and the logits' gradient (N, P)."""
    scores = hidden.new_empty(len(hidden), len(matrix))  # (N, P)
    columns = COLUMNS if hidden.device.type == "cpu" else len(matrix)
    for part, rows in zip(
        torch.split(scores, columns, 1), torch.split(matrix, columns), strict=True
    ):
        torch.mm(hidden, rows.T, out=part)
    scores[:, n_ids:] = -torch.inf
    torch.softmax(scores, dim=-1, out=scores)
    indices = torch.arange(len(targets), device=targets.device)
    chosen = scores[indices, targets].float()  # (N,)
    scores[indices, targets] -= 1
    tiny = torch.finfo(torch.float32).tiny  # a probability may round to 0
    return -chosen.clamp_min(tiny).log().sum(), scores


@_head_loss.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    padded = _padded(weight)
    return (
        hidden.new_empty((), dtype=torch.float32),
        hidden.new_empty(hidden.size(0), padded, dtype=dtype),
        weight.new_empty(padded, weight.size(1), dtype=dtype),
    )


@torch.library.custom_op("gptmill::head_loss_backward", mutates_args=())
def _head_loss_backward(
    upstream: Tensor, hidden: Tensor, scores: Tensor, matrix: Tensor, n_ids: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of hidden (N, C) and weight (V, C).

    Both are in the precision of `hidden`. With `n_ids` 0, for a frozen weight, the second is empty.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        to_hidden = (scores @ matrix).to(hidden.dtype) * upstream  # (N, C)
        scaled = (hidden * upstream).to(scores.dtype)  # (N, C)
        if n_ids:
            to_weight = (scores.T @ scaled)[:n_ids].to(hidden.dtype)
        else:
            to_weight = hidden.new_empty(0, hidden.size(1))
    return to_hidden, to_weight


@_head_loss_backward.register_fake
def _(
    upstream: Tensor, hidden: Tensor, scores: Tensor, matrix: Tensor, n_ids: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), hidden.new_empty(n_ids, hidden.size(1))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, _, _ = inputs
    _, scores, matrix = output
    ctx.mark_non_differentiable(scores, matrix)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, scores, matrix)
    ctx.n_ids = len(weight)


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, None, None]:
    hidden, scores, matrix = ctx.saved_tensors
    learns = ctx.needs_input_grad[1]
    n_ids = ctx.n_ids if learns else 0
    to_hidden, to_weight = _head_loss_backward(upstream, hidden, scores, matrix, n_ids)
    return to_hidden, to_weight if learns else None, None, None


_head_loss.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("gptmill::head_loss_in_parts", mutates_args=())
def _head_loss_in_parts(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and the gradients of hidden and weight.

    The gradients have the shape and precision of hidden (N, C) and weight (V, C).
    """
    n_ids = len(weight)
    loss = hidden.new_zeros((), dtype=torch.float32)
    to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight)
    with torch.autocast(hidden.device.type, enabled=False):
        matrix = _matrix(weight, dtype)  # (P, C)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            narrow = hidden[part].to(dtype)
            value, scores = _scored(narrow, matrix, targets[part], n_ids)
            loss += value
            to_hidden[part] = scores @ matrix
            to_weight += (scores.T @ narrow)[:n_ids]
            del scores  # free the memory before the next part's scores are allocated
    return loss, to_hidden, to_weight


@_head_loss_in_parts.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    loss = hidden.new_empty((), dtype=torch.float32)
    return loss, torch.empty_like(hidden), torch.empty_like(weight)


def _save_gradients(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _scale_gradients(
    ctx: Any, upstream: Tensor, *_: Any
) -> tuple[Tensor, Tensor, None, None, None]:
    to_hidden, to_weight = ctx.saved_tensors
    return to_hidden * upstream, to_weight * upstream, None, None, None


_head_loss_in_parts.register_autograd(_scale_gradients, setup_context=_save_gradients)
