"""LoRA: train a low-rank addition to frozen matrices (https://arxiv.org/abs/2106.09685).

A layer computes `W x + alpha / rank * B A x`. B is zero at the start, so training starts at
the base model; afterwards the product can be added to W and costs nothing.

An adapter is saved in PEFT's layout: `PeftModel.from_pretrained` opens it on the base.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from gptmill.files import write_json
from gptmill.model import GPTClassifier

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
    model: GPTClassifier, config: LoRAConfig, *, generator: torch.Generator | None = None
) -> None:
    """Freeze the model but for its head and put a low-rank addition on each target, in place."""
    model.requires_grad_(False)
    model.score.requires_grad_(True)
    for parent, name, layer in list(_children(model)):
        if name in config.targets:
            assert isinstance(layer, nn.Linear), f"{name} is no plain linear layer"
            setattr(parent, name, LoRALinear(layer, config, generator).train(layer.training))


def merge(model: GPTClassifier) -> None:
    """Add each low-rank product to its matrix and leave a plain model, in place."""
    for parent, name, layer in list(_children(model)):
        if isinstance(layer, LoRALinear):
            setattr(parent, name, layer.merged())


def save_adapter(folder: Path, model: GPTClassifier, config: LoRAConfig, *, base: str) -> None:
    """Write adapter and head as a PEFT folder; `base` says where the model under it lies.

    `base` ends up in the file: a path of the project or a hub name, never one of this machine.
    """
    assert not Path(base).is_absolute()
    tensors = {
        f"base_model.model.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if ".lora_" in name or name == "score.weight"
    }
    assert len(tensors) > 1, "there is no adapter on this model"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".adapter_model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", _peft_config(config, base))


def _peft_config(config: LoRAConfig, base: str) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(config.targets),
        "modules_to_save": ["score"],
        "fan_in_fan_out": True,  # GPT-2's Conv1D holds (in, out); A and B are the same either way
        "bias": "none",
        "inference_mode": True,
    }


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            yield parent, name, child
