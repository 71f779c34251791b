"""Models for decoding: unchanged layers with weights in faster formats.

Decoding a new id reads every weight once, and memory bandwidth is the limit. Weights are therefore
stored in fewer bytes, and on a CPU in the blocked layout that oneDNN reads at full bandwidth
(oneDNN reads plain rows at about half the bandwidth, and MKL at a third on an AMD Zen 5).
Activations between the layers, norms and embeddings are unchanged.

- fp32: the original values, in the blocked layout.
- bf16: weights rounded to bfloat16, and the inputs multiplied with the weights too.
  The KV cache is in bfloat16, also with int8 weights.
- int8: weights rounded to 255 steps of the largest weight of each output channel (absmax,
  symmetric), and the inputs rounded to bfloat16. Activations are not quantized, and no
  calibration is needed.

Both bf16 and int8 round logits to bfloat16 too, where ids with nearly equal scores tie: the logits
of the likeliest ids are computed again with the head's original weights.

Letters: N outputs, K inputs, M rows of the input, C embedding width, V vocabulary, S shortlist.
"""

import copy
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptmill.device import check_choice
from gptmill.model.gpt import GPT

WeightFormat = Literal["fp32", "bf16", "int8"]

INT8_LIMIT = 127
INT8_WIDTH = 32  # torch's int8 kernel (2.13) reads past the end unless the width is a multiple
INT8_ROWS = 16  # with more rows, unpacking the weights once for oneDNN is faster
SHORTLIST = 64  # ids with logits computed again, exactly


def quantize(model: GPT, kind: WeightFormat) -> GPT:
    """Return a model copy with weights of format `kind`.

    The copy is for decoding and cannot be trained or saved. Tensors that are not quantized are
    shared with `model`. A tied head becomes a separate layer, and the tied embedding keeps the
    original values. Raises ValueError for an unknown format.
    """
    check_choice("kind", kind, get_args(WeightFormat))
    assert not model.training, "a quantized model cannot be trained"
    quantized = _converted(model, kind)
    assert isinstance(quantized, GPT)
    weight = model.head_weight.detach()
    head = _layer(weight, None, kind)
    quantized.lm_head = head if kind == "fp32" else ShortlistHead(head, weight)
    quantized.cache_dtype = None if kind == "fp32" else torch.bfloat16
    return quantized


def packed(model: nn.Module) -> nn.Module:
    """Return a copy of a classifier for predictions, with linear layers in the blocked layout.

    Predictions are in fp32, on a CPU at up to twice the speed. The copy cannot be trained or saved.
    """
    return _converted(model, "fp32").eval()


def _converted(module: nn.Module, kind: WeightFormat) -> nn.Module:
    """Copy the module tree with converted linear layers.

    All remaining parameters are shared with `module`. The head is left out.
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
    """Return whether oneDNN packs the weight on this machine."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """A linear layer with weights in oneDNN's blocks, CPU only.

    The weights (N, K) are packed as inductor packs frozen weights, without a compiler.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.dtype = weight.dtype
        # 1: the most frequent number of input rows
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
        self.bias = None if bias is None else bias.to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., K) to (..., N), in x's dtype."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self.dtype), self.packed, self.bias, "none", [], ""
        )
        return out.to(x.dtype)


class CastLinear(nn.Module):
    """A linear layer computed in the dtype of the weights.

    The weights have shape (N, K).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else bias.to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., K) to (..., N), in x's dtype."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, scaled per output.

    The weights have shape (N, K).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        largest = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-30)  # (N, 1)
        # The scale is rounded before the division: a scale rounded afterwards would put an error
        # into the whole channel.
        scales = (largest / INT8_LIMIT).bfloat16()
        steps = (weight.float() / scales.float()).round().clamp(-INT8_LIMIT, INT8_LIMIT)
        self.weight = steps.to(torch.int8).contiguous()
        self.scales = scales.flatten()  # (N,)
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., K) to (..., N), in x's dtype."""
        rows = x.reshape(-1, x.size(-1)).bfloat16()  # (M, K)
        if rows.is_cpu and len(rows) <= INT8_ROWS and rows.size(-1) % INT8_WIDTH == 0:
            out: Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scales)
        else:
            out = F.linear(rows, self.weight.bfloat16()) * self.scales
        out = out.to(x.dtype).view(*x.shape[:-1], -1)  # (..., N)
        return out if self.bias is None else out + self.bias


class ShortlistHead(nn.Module):
    """A low-precision head with exact logits for the likeliest ids.

    The head has shape (V, C). In bfloat16 a logit of 16 to 32 has steps of 1/8, and a greedy choice
    among ids with closer logits would depend on the ids' numbers.
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
