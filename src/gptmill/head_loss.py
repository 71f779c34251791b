"""Cross-entropy of a linear head, with no more passes over its logits than needed.

With 50,257 ids, a small model spends most of a step on (N, V) arrays, and most of that on
moving them through memory. Cross-entropy under autocast makes four of them in fp32; here the
softmax is taken in the precision of the logits and becomes their gradient in place. Gradients
reach the head's matrix products in bf16 either way.

Letters: N targets, C width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of cross-entropies, nats, of `hidden @ weight.T` against `targets`.

    Shapes (N, C), (V, C), (N,) and (). In bf16 each target's loss is right to about 0.2 %,
    by chance up or down. Without gradients, the plain form in fp32 is taken: it is exact.
    """
    if torch.is_grad_enabled():
        loss: Tensor = _HeadLoss.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
        return loss
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        with torch.autocast(kind, enabled=False):
            logits = F.linear(hidden.to(dtype), weight.to(dtype))  # (N, V)
            gradient = torch.softmax(logits, dim=-1)  # (N, V)
            rows = torch.arange(len(targets), device=targets.device)
            chosen = gradient[rows, targets].float()  # (N,)
            gradient[rows, targets] -= 1
        ctx.save_for_backward(hidden, weight, gradient)
        tiny = torch.finfo(torch.float32).tiny  # a probability may round to 0
        return -chosen.clamp_min(tiny).log().sum()

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        scale = upstream[0]
        to_hidden = (gradient @ weight.to(gradient.dtype)).to(hidden.dtype) * scale  # (N, C)
        to_weight = gradient.T @ (hidden * scale).to(gradient.dtype)  # (V, C)
        return to_hidden, to_weight.to(weight.dtype), None
