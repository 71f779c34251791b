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

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptmill.device import check_choice
from gptmill.model.gpt import GPT
from gptmill.model.packing import converted, packed_linear

WeightFormat = Literal["fp32", "bf16", "int8"]

INT8_LIMIT = 127
INT8_WIDTH = 32  # torch's int8 kernel (2.13) reads past the end unless the width is a multiple
INT8_ROWS = 16  # with more rows, unpacking the weights once for oneDNN is faster
SHORTLIST = 64  # ids with logits computed again, exactly


def quantize(model: GPT, kind: WeightFormat, *, consumed: bool = False) -> GPT:
    """Return a model copy with weights of format `kind`.

    The copy is for decoding and cannot be trained or saved. Tensors that are not quantized are
    shared with `model`; if `consumed`, `model` gives up the memory of the others, and computes
    nothing afterwards. A tied head becomes a separate layer, and the tied embedding keeps the
    original values. Raises ValueError for an unknown format.
    """
    check_choice("kind", kind, get_args(WeightFormat))
    assert not model.training, "a quantized model cannot be trained"
    quantized = converted(model, lambda weight, bias: _layer(weight, bias, kind), consumed=consumed)
    assert isinstance(quantized, GPT)
    weight = model.head_weight.detach()
    head = _layer(weight, None, kind)
    quantized.lm_head = head if kind == "fp32" else ShortlistHead(head, weight)
    quantized.cache_dtype = None if kind == "fp32" else torch.bfloat16
    return quantized


def _layer(weight: Tensor, bias: Tensor | None, kind: WeightFormat) -> nn.Module:
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if kind == "int8":
        return Int8Linear(weight, bias)
    return packed_linear(weight.to(torch.float32 if kind == "fp32" else torch.bfloat16), bias)


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
