"""LoRA adapters as folders in PEFT's layout, for `PeftModel.from_pretrained` on the base.

Hugging Face's Llama splits our fused matrices: the parts share A and divide the rows of B.
"""

from pathlib import Path

import torch
from torch import Tensor

from gptmill.checkpoint.checkpoint import layout_of
from gptmill.checkpoint.families import family_of
from gptmill.checkpoint.mapping import slots
from gptmill.checkpoint.weights import save_safetensors
from gptmill.files import write_json
from gptmill.model.gpt import GPT, GPTClassifier
from gptmill.model.lora import LoRAConfig, LoRALinear


def save_adapter(
    folder: Path, model: GPT | GPTClassifier, config: LoRAConfig, *, base: str
) -> None:
    """Save the adapter, and the head of a classifier, as a PEFT folder.

    `base` is the base model's path in the project or id on the hub, and is written to the config:
    never a path of this machine.
    """
    assert not Path(base).is_absolute()
    tensors = _peft_tensors(model)
    assert tensors, "the model has no adapter"
    targets = sorted({name.split(".")[-3] for name in tensors})
    if isinstance(model, GPTClassifier):
        tensors["base_model.model.score.weight"] = model.score.weight
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "adapter_model.safetensors", tensors, torch.float32)
    settings = _peft_config(config, base, targets)
    head = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    language = {"task_type": "CAUSAL_LM", "modules_to_save": None}
    own = head if isinstance(model, GPTClassifier) else language
    # GPT-2's Conv1D stores (in, out); A and B are equal in both cases.
    stored = {"fan_in_fan_out": family_of(model.config).conv1d}
    write_json(folder / "adapter_config.json", {**settings, **own, **stored})


def _peft_tensors(model: GPT | GPTClassifier) -> dict[str, Tensor]:
    """Return A and B of each of Hugging Face's matrices, by PEFT's names."""
    n_classes = model.score.out_features if isinstance(model, GPTClassifier) else None
    places = slots(layout_of(model.config), model.config, n_classes)
    tensors: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            for slot in places:
                if slot.ours == f"{name}.weight":
                    module = f"base_model.model.{slot.name.removesuffix('.weight')}"
                    low, high = layer.lora_A.weight, layer.lora_B.weight[slot.start : slot.stop]
                    tensors |= {f"{module}.lora_A.weight": low, f"{module}.lora_B.weight": high}
    return tensors


def _peft_config(config: LoRAConfig, base: str, targets: list[str]) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "bias": "none",
        "inference_mode": True,
    }
