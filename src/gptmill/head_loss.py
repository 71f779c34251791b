"""Cross-entropy of a linear head, with no more passes over its logits than needed.

With 50,257 ids, a small model spends most of a step on (N, V) arrays, and most of that on
moving them through memory. Cross-entropy under autocast makes four of them in fp32; here there
is one, in the precision of the products: logits become probabilities in place, and these the
gradient. It is a custom operator because inductor's own softmax over so long a row takes ten
times as long as torch's on a CPU (280 ms against 27 for 1,024 rows), and would be chosen.

Letters: N targets, C width, V vocabulary, P the vocabulary padded.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGN = 64
"""Rows of logits start on a cache line: the product that writes them is 1.4 times as fast."""

COLUMNS = 4096
"""Logits a product on the CPU: one over all columns takes twice as long as these together."""


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the cross-entropies, nats, of `hidden @ weight.T` against `targets`.

    Shapes (N, C), (V, C), (N,) and (). Under autocast each target's loss is right to about
    0.2 %, by chance up or down, and gradients reach the products in bf16, as autocast's do.
    Without gradients, the plain form in fp32 is taken: it is exact.
    """
    if not torch.is_grad_enabled():
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    loss: Tensor = _head_loss(hidden, weight, targets, dtype)[0]
    return loss


@torch.library.custom_op("gptmill::head_loss", mutates_args=())
def _head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the gradient of the logits (N, P) and the weight (P, C), both in dtype."""
    n_ids, width = weight.shape
    padded = -n_ids % ALIGN + n_ids
    with torch.autocast(hidden.device.type, enabled=False):
        matrix = weight.new_empty(padded, width, dtype=dtype)  # (P, C)
        matrix[:n_ids] = weight
        matrix[n_ids:] = 0
        scores = hidden.new_empty(len(hidden), padded, dtype=dtype)  # (N, P)
        columns = COLUMNS if hidden.device.type == "cpu" else padded
        narrow = hidden.to(dtype)
        for part, rows in zip(
            torch.split(scores, columns, 1), torch.split(matrix, columns), strict=True
        ):
            torch.mm(narrow, rows.T, out=part)
        scores[:, n_ids:] = -torch.inf
        torch.softmax(scores, dim=-1, out=scores)
        places = torch.arange(len(targets), device=targets.device)
        chosen = scores[places, targets].float()  # (N,)
        scores[places, targets] -= 1
    tiny = torch.finfo(torch.float32).tiny  # a probability may round to 0
    return -chosen.clamp_min(tiny).log().sum(), scores, matrix


@_head_loss.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    padded = -weight.size(0) % ALIGN + weight.size(0)
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
        to_weight = (scores[:, :n_ids].T @ scaled).to(hidden.dtype)
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
