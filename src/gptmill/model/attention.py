"""Scaled dot-product attention, with a faster kernel for CPU training.

PyTorch's CPU kernel for training (flash attention, https://arxiv.org/abs/2205.14135) never holds
all scores. The price is matrix products too small for a CPU's bfloat16 instructions: forward and
backward of 4 rows of 256 positions and 12 heads take 20 ms, and 7.4 ms with all scores held in
memory (benchmarks/README.md). Short sequences on a CPU therefore hold all scores.

On a GPU a single query of a decoding step is two small matrix products: PyTorch's kernel takes
115 microseconds for 1,024 stored positions, since it leaves most of the GPU idle.

Letters: B rows, H heads, G key-value heads, T positions, S stored positions, D width of one head.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 512
"""Maximum positions for held scores: beyond, scores take much memory and save no time."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, dropout: float
) -> Tensor:
    """Return the attended values (B, H, T, D).

    Queries are (B, H, T, D), keys and values (B, G, S, D). `mask` is true where a query may attend
    to a stored position. Without a mask, a single query attends to every stored position, and
    several queries attend causally, each to the same and all earlier positions. Keys and values
    may have fewer bits than the queries.
    """
    if query.is_cuda and query.size(2) == 1 and dropout == 0 and not torch.is_grad_enabled():
        return attend_once(query, key, value, mask=mask)
    key, value = key.to(query.dtype), value.to(query.dtype)
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


def attend_once(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None) -> Tensor:
    """Return the attended values (B, H, 1, D) of a single query.

    The arguments are those of `attend`. Products are computed in the keys' and values' precision,
    probabilities in single precision.
    """
    rows, heads, _, width = query.shape
    # the heads that share a key-value head are the rows of one product
    grouped = (query / math.sqrt(width)).view(rows, key.size(1), -1, width)  # (B, G, H / G, D)
    scores = (grouped.to(key.dtype) @ key.transpose(2, 3)).float()  # (B, G, H / G, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    mixed = scores.softmax(-1).to(value.dtype) @ value  # (B, G, H / G, D)
    return mixed.to(query.dtype).view(rows, heads, 1, width)


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
    """Causal attention that saves the probabilities for the backward pass.

    All tensors are (B, H, T, D). Rows and heads are first merged into a single dimension: on views
    of a fused array, PyTorch would copy each transposed key and value, at five times the cost.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length, width = query.shape[-2:]
        future = torch.full((length, length), -torch.inf, dtype=query.dtype).triu_(1)
        with torch.autocast("cpu", enabled=False):
            flat = [part.reshape(-1, length, width) for part in (query, key, value)]
            scores = (flat[0] / math.sqrt(width)) @ flat[1].transpose(1, 2)  # (B * H, T, T)
            scores += future  # addition is vectorized, filling by a mask is not
            torch.softmax(scores, dim=-1, out=scores)  # scores become probabilities
            ctx.save_for_backward(*flat, scores)
            return (scores @ flat[2]).view(query.shape)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, probs = ctx.saved_tensors
        shape = upstream.shape
        with torch.autocast("cpu", enabled=False):
            upstream = upstream.reshape(query.shape)
            to_value = probs.transpose(1, 2) @ upstream
            to_probs = upstream @ value.transpose(1, 2)
            to_scores = torch._softmax_backward_data(to_probs, probs, -1, probs.dtype)
            to_scores /= math.sqrt(query.size(-1))
            to_query, to_key = to_scores @ key, to_scores.transpose(1, 2) @ query
            return to_query.view(shape), to_key.view(shape), to_value.view(shape)
