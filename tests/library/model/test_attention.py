"""Attention that holds its scores against torch's own, and when which of them is taken."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptmill.model import attention
from gptmill.model.attention import LONGEST, attend, attend_once

SHAPES = [(2, 4, 4, 33, 16), (1, 9, 3, 64, 8), (3, 2, 1, 2, 64)]  # B, H, G, T, D


def parts(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows, n_heads, n_kv_heads, length, width = shape
    generator = torch.Generator().manual_seed(1)
    drawn = [
        torch.randn(n_rows, length, heads, width, generator=generator)
        for heads in (n_heads, n_kv_heads, n_kv_heads)
    ]
    query, key, value = (part.transpose(1, 2).to(dtype).requires_grad_() for part in drawn)
    return query, key, value


def with_gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    upstream = torch.randn(out.shape, generator=generator).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("autocast", [False, True])
def test_held_scores_are_as_near_to_exact_as_torch_itself(
    shape: tuple[int, int, int, int, int], autocast: bool
) -> None:
    inputs = parts(shape)
    exact = tuple(part.detach().double().requires_grad_() for part in inputs)

    def torch_own(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        gqa = key.size(1) < query.size(1)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=gqa)

    expected = with_gradients(torch_own(*exact), exact)
    torchs = with_gradients(torch_own(*inputs), inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = attend(*inputs, mask=None, dropout=0.0)
        assert "_Held" in type(out.grad_fn).__name__
        found = with_gradients(out, inputs)
    for one, other, right in zip(found, torchs, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - right).norm() <= 1.5 * (other - right).norm() + 1e-3 * right.norm()


@pytest.mark.parametrize(
    ("why", "inputs", "dropout"),
    [
        ("fp32", parts(SHAPES[0], torch.float32), 0.0),
        ("dropout", parts(SHAPES[0]), 0.5),
        ("many positions", parts((1, 1, 1, LONGEST + 1, 2)), 0.0),
    ],
)
def test_else_torchs_own_is_taken(
    why: str,
    inputs: tuple[Tensor, Tensor, Tensor],
    dropout: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_Held", None)
    out = attend(*inputs, mask=None, dropout=dropout)
    assert out.shape == inputs[0].shape, why


def test_without_gradients_torchs_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_Held", None)
    inputs = parts(SHAPES[0])
    with torch.no_grad():
        attend(*inputs, mask=None, dropout=0.0)
        query, key, value = inputs
        mask = torch.ones(1, key.size(2), dtype=torch.bool)
        attend(query[:, :, -1:], key, value, mask=mask, dropout=0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("stored", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_single_query_attends_as_in_torch(
    shape: tuple[int, int, int, int, int], masked: bool, stored: torch.dtype, tolerance: float
) -> None:
    query, key, value = (part.detach() for part in parts(shape, torch.float32))
    n_rows, _, n_kv_heads, length, _ = shape
    query, key, value = query[:, :, -1:], key.to(stored), value.to(stored)
    ends = torch.arange(1, n_rows + 1)[:, None, None, None]  # each row has another length
    mask = torch.arange(length) < ends if masked else None  # (B, 1, 1, S)
    expected = F.scaled_dot_product_attention(
        query,
        key.to(query.dtype),
        value.to(query.dtype),
        attn_mask=mask,
        enable_gqa=n_kv_heads < query.size(1),
    )
    found = attend_once(query, key, value, mask=mask)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
