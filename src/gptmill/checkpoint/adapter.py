"""A LoRA adapter as a folder in PEFT's layout, which `PeftModel.from_pretrained` opens on the base.

Where Hugging Face's Llama has several matrices for one of ours, A is theirs in common and the
rows of B are dealt out.
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
    """Write the adapter, and the head of a classifier, as a PEFT folder.

    `base` says where the model under it lies. It ends up in the file: a path of the project or a
    hub name, never one of this machine.
    """
    assert not Path(base).is_absolute()
    tensors = _peft_tensors(model)
    assert tensors, "there is no adapter on this model"
    targets = sorted({name.split(".")[-3] for name in tensors})
    if isinstance(model, GPTClassifier):
        tensors["base_model.model.score.weight"] = model.score.weight
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "adapter_model.safetensors", tensors, torch.float32)
    settings = _peft_config(config, base, targets)
    head = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    language = {"task_type": "CAUSAL_LM", "modules_to_save": None}
    own = head if isinstance(model, GPTClassifier) else language
    # GPT-2's Conv1D holds (in, out); A and B are the same either way.
    stored = {"fan_in_fan_out": family_of(model.config).conv1d}
    write_json(folder / "adapter_config.json", {**settings, **own, **stored})


def _peft_tensors(model: GPT | GPTClassifier) -> dict[str, Tensor]:
    """Return A and B of each matrix that Hugging Face's model has, by PEFT's names."""
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
