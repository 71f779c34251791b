"""Linear layers in the blocked layout that oneDNN reads at full bandwidth on a CPU.

MKL reads plain rows at a third of the bandwidth on an AMD Zen 5, and multiplies at half the speed.

Letters: N outputs, K inputs.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptmill.device import release_freed_memory


def packed(model: nn.Module) -> nn.Module:
    """Return a copy of a classifier for predictions in fp32, with packed linear layers.

    The copy cannot be trained or saved.
    """
    return converted(model, packed_linear).eval()


def converted(
    module: nn.Module,
    layer: Callable[[Tensor, Tensor | None], nn.Module],
    *,
    consumed: bool = False,
) -> nn.Module:
    """Copy the module tree with linear layers made anew by `layer`, from weight and bias.

    All remaining parameters are shared with `module`. The head is left out. If `consumed`, each
    linear layer of `module` gives up its memory: `module` computes nothing afterwards.
    """
    if isinstance(module, nn.Linear):
        made = layer(module.weight, module.bias)
        if consumed:
            module.to("meta")
            release_freed_memory()  # at once: the next layer's memory does not fit the holes
        return made
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    twin._modules = {
        name: None
        if child is None or name == "lm_head"
        else converted(child, layer, consumed=consumed)
        for name, child in module._modules.items()
    }
    return twin


def packed_linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a linear layer of a weight (N, K) in fp32 or bf16, packed where oneDNN can."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    return PackedLinear(weight, bias) if _packs(weight) else CastLinear(weight, bias)


def _packs(weight: Tensor) -> bool:
    """Return whether oneDNN packs the weight on this machine."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return weight.dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
