"""Scaled dot-product attention: torch's own, and one that trains faster on a CPU.

torch's CPU kernel for training (flash attention, https://arxiv.org/abs/2205.14135) never holds all
scores, and pays for it with products too small for what a CPU multiplies bfloat16 with: forward
and backward of 4 rows of 256 positions and 12 heads take 20 ms, and 7.4 ms with the scores held
(benchmarks/README.md). So they are, where they are few.

Letters: B rows, H heads, G key-value heads, T positions, S stored positions, D width of one head.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 512
"""Positions up to which a CPU holds the scores: beyond, they take much memory and save no time."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, dropout: float
) -> Tensor:
    """Return what each query (B, H, T, D) takes from values (B, G, S, D), by their keys.

    With `mask`, true where a query may see a stored position; without, a single query sees all
    that is stored, and several each see themselves and those before.
    """
    causal = mask is None and query.size(2) > 1
    if causal and dropout == 0 and _holds_scores(query, key, value):
        n_shared = query.size(1) // key.size(1)
        if n_shared > 1:
            key = key.repeat_interleave(n_shared, dim=1)
            value = value.repeat_interleave(n_shared, dim=1)
        held: Tensor = _Held.apply(query, key, value)  # type: ignore[no-untyped-call]
        return held
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        enable_gqa=key.size(1) < query.size(1),
    )


def _holds_scores(query: Tensor, key: Tensor, value: Tensor) -> bool:
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    return (
        learns
        and query.is_cpu
        and query.dtype == torch.bfloat16
        and query.size(2) <= LONGEST
        and not torch.compiler.is_compiling()
    )


class _Held(torch.autograd.Function):
    """Causal attention of (B, H, T, D) that keeps its probabilities for the way back.

    Rows and heads are made one dimension first: on views of one fused array torch would copy
    each transposed key and value, at five times the price.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length, width = query.shape[-2:]
        later = torch.full((length, length), -torch.inf, dtype=query.dtype).triu_(1)
        with torch.autocast("cpu", enabled=False):
            flat = [part.reshape(-1, length, width) for part in (query, key, value)]
            shares = (flat[0] / math.sqrt(width)) @ flat[1].transpose(1, 2)  # (B * H, T, T)
            shares += later  # adding is vectorized, filling by a mask is not
            torch.softmax(shares, dim=-1, out=shares)
            ctx.save_for_backward(*flat, shares)
            return (shares @ flat[2]).view(query.shape)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, shares = ctx.saved_tensors
        shape = upstream.shape
        with torch.autocast("cpu", enabled=False):
            upstream = upstream.reshape(query.shape)
            to_value = shares.transpose(1, 2) @ upstream
            to_shares = upstream @ value.transpose(1, 2)
            to_scores = torch._softmax_backward_data(to_shares, shares, -1, shares.dtype)
            to_scores /= math.sqrt(query.size(-1))
            to_query, to_key = to_scores @ key, to_scores.transpose(1, 2) @ query
            return to_query.view(shape), to_key.view(shape), to_value.view(shape)
