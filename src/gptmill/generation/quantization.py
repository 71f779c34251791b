"""A model laid out for decoding: the same layers with weights that are read faster.

A new id reads every weight once, and what limits that is memory: bytes over bandwidth. So weights
are stored in fewer bytes, and on a CPU in the blocked layout that oneDNN reads at full bandwidth
(plain rows it reads at about half, and MKL at a third on an AMD Zen 5). Activations between the
layers, norms, embeddings and the cache stay as they are.

- fp32: the values that were there, laid out anew.
- bf16: weights rounded to bfloat16, and what is multiplied with them too.
- int8: weights rounded to 255 steps of each output channel's largest (absmax, symmetric), and what
  is multiplied with them to bfloat16. Activations are not quantized, so nothing is calibrated.

Both round logits to bfloat16 too, in which ids of nearly one score tie: those of the likeliest ids
are computed once more with the head's weights as they were.

Letters: N outputs, K inputs, C embedding width, V vocabulary.
"""

import copy
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptmill.model.gpt import GPT

WeightFormat = Literal["fp32", "bf16", "int8"]

INT8_LIMIT = 127
INT8_WIDTH = 32  # torch's int8 kernel reads past the end of other widths than multiples (2.13)
INT8_ROWS = 16  # above so many rows the weights are unpacked once, and oneDNN multiplies faster
SHORTLIST = 64  # ids whose logits are computed once more, exactly


def quantize(model: GPT, kind: WeightFormat) -> GPT:
    """Return a model for decoding that shares what is not quantized with `model`.

    It cannot be trained or saved. A tied head becomes a layer of its own, and the embedding that
    it was tied to keeps its values.
    """
    if kind not in get_args(WeightFormat):
        raise ValueError(f"kind is {kind!r}: allowed are {', '.join(get_args(WeightFormat))}")
    assert not model.training, "a quantized model does not learn"
    quantized = _converted(model, kind)
    assert isinstance(quantized, GPT)
    weight = model.head_weight.detach()
    head = _layer(weight, None, kind)
    quantized.lm_head = head if kind == "fp32" else ShortlistHead(head, weight)
    return quantized


def _converted(module: nn.Module, kind: WeightFormat) -> nn.Module:
    """Return a copy of the tree of modules, with other linear layers and the same parameters.

    The head is left out.
    """
    if isinstance(module, nn.Linear):
        return _layer(module.weight, module.bias, kind)
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    twin._modules = {
        name: None if child is None or name == "lm_head" else _converted(child, kind)
        for name, child in module._modules.items()
    }
    return twin


def _layer(weight: Tensor, bias: Tensor | None, kind: WeightFormat) -> nn.Module:
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if kind == "int8":
        return Int8Linear(weight, bias)
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    if _packs(weight, dtype):
        return PackedLinear(weight.to(dtype), bias)
    return CastLinear(weight.to(dtype), bias)


def _packs(weight: Tensor, dtype: torch.dtype) -> bool:
    """Return whether oneDNN has a layout of its own for such weights here."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """A linear layer whose weights (N, K) lie in the blocks that oneDNN reads; CPU only.

    What inductor does to frozen weights, without a compiler.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.dtype = weight.dtype
        # 1: the rows it will most often be multiplied with
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
        self.bias = None if bias is None else bias.to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., N) of x (..., K), in the type of x."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self.dtype), self.packed, self.bias, "none", [], ""
        )
        return out.to(x.dtype)


class CastLinear(nn.Module):
    """A linear layer that multiplies in the type of its weights (N, K)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else bias.to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., N) of x (..., K), in the type of x."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class Int8Linear(nn.Module):
    """A linear layer with weights (N, K) in int8 and one scale for each output."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        largest = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-30)  # (N, 1)
        # The scale is rounded first, so that its rounding is no error of a whole channel.
        scales = (largest / INT8_LIMIT).bfloat16()
        steps = (weight.float() / scales.float()).round().clamp(-INT8_LIMIT, INT8_LIMIT)
        self.weight = steps.to(torch.int8).contiguous()
        self.scales = scales.flatten()  # (N,)
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., N) of x (..., K), in the type of x."""
        rows = x.reshape(-1, x.size(-1)).bfloat16()  # (M, K)
        if rows.is_cpu and len(rows) <= INT8_ROWS and rows.size(-1) % INT8_WIDTH == 0:
            out: Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scales)
        else:
            out = F.linear(rows, self.weight.bfloat16()) * self.scales
        out = out.to(x.dtype).view(*x.shape[:-1], -1)  # (..., N)
        return out if self.bias is None else out + self.bias


class ShortlistHead(nn.Module):
    """A head (V, C) in few bits that scores the likeliest ids exactly.

    In bfloat16 a logit of 16 to 32 has steps of 1/8, and a greedy choice among ids that are closer
    would be one of their numbers.
    """

    def __init__(self, layer: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (..., V) of x (..., C), in float32."""
        logits: Tensor = self.layer(x).float()
        ids = logits.topk(min(SHORTLIST, logits.size(-1))).indices  # (..., S)
        exact = self.weight[ids].float() @ x.float().unsqueeze(-1)  # (..., S, 1)
        return logits.scatter(-1, ids, exact.squeeze(-1))
