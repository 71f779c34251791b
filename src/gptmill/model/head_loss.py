"""Cross-entropy of a linear head, with no more passes over its logits than needed.

With 50,257 ids, a small model spends most of a step on (N, V) arrays, and most of that on
moving them through memory. Cross-entropy under autocast makes four of them in fp32; here there
is one, in the precision of the products: logits become probabilities in place, and these the
gradient. It is a custom operator because inductor's own softmax over so long a row takes ten
times as long as torch's on a CPU (280 ms against 27 for 1,024 rows), and would be chosen.

Where even that one array is too large, it is never made: a part of the rows after the other
gives its loss and its gradients in the forward pass, as in https://arxiv.org/abs/2410.10989.

Letters: N targets, C width, V vocabulary, P the vocabulary padded.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGN = 64
"""Rows of logits start on a cache line: the product that writes them is 1.4 times as fast, and
that of the weight's gradient 1.6 times."""

COLUMNS = 4096
"""Logits a product on the CPU: one over all columns takes twice as long as these together."""


LARGEST = 2**28
"""Logits that are held at once, half a gigabyte in bf16; more are made in parts of so many."""


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the cross-entropies, nats, of `hidden @ weight.T` against `targets`.

    Shapes (N, C), (V, C), (N,) and (). Under autocast each target's loss is right to about
    0.2 %, by chance up or down, and gradients reach the products in bf16, as autocast's do.
    Without gradients, the plain form in fp32 is taken: it is exact.
    """
    rows = max(1, LARGEST // _padded(weight))
    if not torch.is_grad_enabled():
        return _plain(hidden, weight, targets, rows)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if len(hidden) > rows:
        in_parts: Tensor = _head_loss_in_parts(hidden, weight, targets, dtype, rows)[0]
        return in_parts
    loss: Tensor = _head_loss(hidden, weight, targets, dtype)[0]
    return loss


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
    parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    losses = [
        F.cross_entropy(F.linear(part, weight).float(), wanted, reduction="sum")
        for part, wanted in parts
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _padded(weight: Tensor) -> int:
    """Return P of a weight (V, C)."""
    return -weight.size(0) % ALIGN + weight.size(0)


@torch.library.custom_op("gptmill::head_loss", mutates_args=())
def _head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the gradient of the logits (N, P) and the weight (P, C), both in dtype."""
    with torch.autocast(hidden.device.type, enabled=False):
        matrix = _matrix(weight, dtype)
        loss, scores = _scored(hidden.to(dtype), matrix, targets, weight.size(0))
    return loss, scores, matrix


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight with rows of zeros behind it, (P, C), in the products' precision."""
    matrix = weight.new_empty(_padded(weight), weight.size(1), dtype=dtype)
    matrix[: len(weight)] = weight
    matrix[len(weight) :] = 0
    return matrix


def _scored(hidden: Tensor, matrix: Tensor, targets: Tensor, n_ids: int) -> tuple[Tensor, Tensor]:
    """Return the loss of hidden states (N, C), and the gradient of their logits (N, P)."""
    scores = hidden.new_empty(len(hidden), len(matrix))  # (N, P)
    columns = COLUMNS if hidden.device.type == "cpu" else len(matrix)
    for part, rows in zip(
        torch.split(scores, columns, 1), torch.split(matrix, columns), strict=True
    ):
        torch.mm(hidden, rows.T, out=part)
    scores[:, n_ids:] = -torch.inf
    torch.softmax(scores, dim=-1, out=scores)
    places = torch.arange(len(targets), device=targets.device)
    chosen = scores[places, targets].float()  # (N,)
    scores[places, targets] -= 1
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
    """Return the gradients of hidden (N, C) and weight (V, C), in the precision of `hidden`."""
    with torch.autocast(hidden.device.type, enabled=False):
        to_hidden = (scores @ matrix).to(hidden.dtype) * upstream  # (N, C)
        scaled = (hidden * upstream).to(scores.dtype)  # (N, C)
        to_weight = (scores.T @ scaled)[:n_ids].to(hidden.dtype)
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


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor, Tensor, None, None]:
    hidden, scores, matrix = ctx.saved_tensors
    to_hidden, to_weight = _head_loss_backward(upstream, hidden, scores, matrix, ctx.n_ids)
    return to_hidden, to_weight, None, None


_head_loss.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("gptmill::head_loss_in_parts", mutates_args=())
def _head_loss_in_parts(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradients, of hidden (N, C) and weight (V, C), in their precision."""
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
            del scores  # or the next part's would be made beside it
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
