"""LoRA: train a low-rank addition to frozen matrices (https://arxiv.org/abs/2106.09685).

A layer computes `W x + alpha / rank * B A x`. B is zero at the start, so training starts at
the base model; afterwards the product can be added to W and costs nothing.

An adapter is saved in PEFT's layout: `PeftModel.from_pretrained` opens it on the base. Where
Hugging Face's Llama has several matrices for one of ours, A is theirs in common and the rows of
B are dealt out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptmill.model.gpt import GPT, GPTClassifier

Target = Literal["c_attn", "c_proj", "c_fc"]


@dataclass(frozen=True)
class LoRAConfig:
    """The size of the addition and the matrices it goes to; c_proj is in both halves of a block."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    rank: int
    alpha: float
    dropout: float
    targets: tuple[Target, ...]

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; allowed is 0 up to, not including, 1")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"targets are {list(self.targets)}; name one or more of c_attn, c_proj, c_fc,"
                " each once"
            )


class LoRALinear(nn.Module):
    """A frozen linear layer and its trained low-rank addition."""

    def __init__(self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator | None):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout
        like = base.weight
        self.lora_A = nn.Linear(base.in_features, config.rank, bias=False, device=like.device)
        self.lora_B = nn.Linear(config.rank, base.out_features, bias=False, device=like.device)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output plus the addition's."""
        low = self.lora_A(F.dropout(x, self.dropout, self.training))  # (..., rank)
        out: Tensor = self.base(x) + self.scale * self.lora_B(low)
        return out

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one linear layer that computes the same; the base is changed in place."""
        self.base.weight += self.scale * (self.lora_B.weight @ self.lora_A.weight)
        return self.base


def add_lora(
    model: GPT | GPTClassifier, config: LoRAConfig, *, generator: torch.Generator | None = None
) -> None:
    """Freeze the model and put a low-rank addition on each target, in place.

    The new head of a classifier is trained whole.
    """
    model.requires_grad_(False)
    if isinstance(model, GPTClassifier):
        model.score.requires_grad_(True)
    for parent, name, layer in list(_children(model)):
        if name in config.targets:
            assert isinstance(layer, nn.Linear), f"{name} is no plain linear layer"
            setattr(parent, name, LoRALinear(layer, config, generator).train(layer.training))


def merge(model: GPT | GPTClassifier) -> None:
    """Add each low-rank product to its matrix and leave a plain model, in place."""
    for parent, name, layer in list(_children(model)):
        if isinstance(layer, LoRALinear):
            setattr(parent, name, layer.merged())


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            yield parent, name, child
