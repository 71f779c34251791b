"""LoRA: train a low-rank addition to frozen matrices (https://arxiv.org/abs/2106.09685).

A layer computes `W x + alpha / rank * B A x`. B is zero at the start, so training starts at
the base model. After training, the product can be added to W, at no further cost.

An adapter is saved in PEFT's layout: `PeftModel.from_pretrained` loads the adapter on the base
model. Where Hugging Face's Llama splits a fused matrix into several matrices, all parts share A,
and the rows of B are divided among the parts.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptmill.device import release_freed_memory
from gptmill.model.gpt import GPT, GPTClassifier

Target = Literal["c_attn", "c_proj", "c_fc"]


@dataclass(frozen=True)
class LoRAConfig:
    """Size, scale, dropout and target matrices of the low-rank addition.

    `c_proj` is a matrix in both halves of a block.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    rank: int
    alpha: float
    dropout: float
    targets: tuple[Target, ...]

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank} but must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha} but must be above 0 and finite")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout} but must be in [0, 1)")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"targets are {list(self.targets)}; name at least one of c_attn, c_proj,"
                " c_fc, and each once"
            )


class LoRALinear(nn.Module):
    """A frozen linear layer with a trained low-rank addition."""

    def __init__(self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator | None):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout
        self.lora_A = nn.Linear(base.in_features, config.rank, bias=False)
        self.lora_B = nn.Linear(config.rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B.weight)
        self.to(base.weight.device)  # drawn on the CPU: equal on every device

    def forward(self, x: Tensor) -> Tensor:
        """Return the base output plus the low-rank output."""
        low = self.lora_A(F.dropout(x, self.dropout, self.training))  # (..., rank)
        out: Tensor = self.base(x) + self.scale * self.lora_B(low)
        return out

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain linear layer with the same output.

        The low-rank product is added to the base in place.
        """
        self.base.weight += self.scale * (self.lora_B.weight @ self.lora_A.weight)
        return self.base


def add_lora(
    model: GPT | GPTClassifier, config: LoRAConfig, *, generator: torch.Generator | None = None
) -> None:
    """Freeze the model and add LoRA layers in place.

    Each target matrix gets a low-rank addition. The new head of a classifier stays fully trainable.
    """
    model.requires_grad_(False)
    if isinstance(model, GPTClassifier):
        model.score.requires_grad_(True)
    for parent, name, layer in list(_children(model)):
        if name in config.targets:
            assert isinstance(layer, nn.Linear), f"{name} is no plain linear layer"
            setattr(parent, name, LoRALinear(layer, config, generator).train(layer.training))


def merge(model: GPT | GPTClassifier) -> None:
    """Merge each low-rank product into the base matrix, in place.

    The result is a plain model without LoRA layers.
    """
    for parent, name, layer in list(_children(model)):
        if isinstance(layer, LoRALinear):
            setattr(parent, name, layer.merged())


def narrow_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Round frozen linear layers to `dtype`, in place.

    Under autocast to `dtype` results stay the same to the bit, with half the memory and without
    a cast in every forward pass. `restore_frozen` undoes the rounding.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
            layer.to(dtype)
    release_freed_memory()


def restore_frozen(model: nn.Module, load: Callable[[], nn.Module]) -> None:
    """Replace the frozen linear weights by those of the model that `load` returns.

    `load` returns the model from before LoRA, on the same device.
    """
    frozen = {
        name.removesuffix(".base"): layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad
    }
    for layer in frozen.values():
        layer.to("meta")  # free the memory before loading
    release_freed_memory()
    base = load()
    for name, layer in frozen.items():
        original = base.get_submodule(name)
        assert isinstance(original, nn.Linear)
        layer.weight, layer.bias = original.weight, original.bias


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            yield parent, name, child
