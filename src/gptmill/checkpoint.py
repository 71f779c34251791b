"""Checkpoints: a Hugging Face folder, whoever made it.

`model.safetensors`, `config.json`, `generation_config.json` and the tokenizer's files. What is
written opens in Hugging Face's tools, and what they write, or the hub serves for GPT-2, opens
here. Names and shapes are checked before anything big is read or built.

Tensors carry the same names there and here. Two things differ: GPT-2 stores the four matrices
of a block as (in, out), `nn.Linear` as (out, in); and it always has a bias on queries, keys
and values, which is zero for a model without one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from gptmill.files import read_json, write_json
from gptmill.model import GPT, INIT_STD, GPTClassifier, GPTConfig
from gptmill.tokenizer import Tokenizer
from gptmill.weights import Shape, read_shapes, read_tensors

T = TypeVar("T")

# What config.json calls what GPTConfig holds.
CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "emb_dim": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
}
# Variants of GPT-2 that this model does not compute; a folder that asks for one is refused.
FIXED_CONFIG = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASKS = (".attn.bias", ".attn.masked_bias")  # constants that old checkpoints carry


def save_causal_lm(
    folder: Path, model: GPT, tokenizer: Tokenizer, *, chat_template: str | None = None
) -> None:
    """Write a model that `AutoModelForCausalLM` opens; the folder is made where it is missing."""
    config = _hugging_face_config(model.config, tokenizer.eot_id)
    _save(folder, model, {**config, "architectures": ["GPT2LMHeadModel"]})
    end = tokenizer.eot_id
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    write_json(folder / "generation_config.json", ids)
    tokenizer.save(folder, context_length=model.config.context_length, chat_template=chat_template)


def save_classifier(
    folder: Path, model: GPTClassifier, tokenizer: Tokenizer, *, class_names: Sequence[str]
) -> None:
    """Write a model that `AutoModelForSequenceClassification` opens, its classes by name.

    That class finds a row's last real token by looking for the padding id, `<|endoftext|>`:
    rows are padded on the right and never end in a real one.
    """
    assert len(class_names) == model.score.out_features, "one name a class"
    config = _hugging_face_config(model.config, tokenizer.eot_id)
    classes = {
        "architectures": ["GPT2ForSequenceClassification"],
        "problem_type": "single_label_classification",
        "id2label": {str(index): name for index, name in enumerate(class_names)},
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    _save(folder, model, {**config, **classes})
    tokenizer.save(folder, context_length=model.config.context_length)


def read_config(folder: Path) -> GPTConfig:
    """Read the shape of the model in `folder`; raise ValueError where it is no GPT-2 of ours."""
    path = folder / "config.json"
    given = _read_config_file(path)
    for name in CONFIG_NAMES.values():
        if not isinstance(given.get(name), int):
            raise ValueError(f"{path}: {name} is {given.get(name)!r}; allowed is a whole number")
    fixed = {**FIXED_CONFIG, "n_inner": (None, 4 * given["n_embd"])}
    for name, allowed in fixed.items():
        if given.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {name} is {given[name]!r}; allowed is {allowed[0]!r}")
    try:
        return GPTConfig(
            **{ours: given[theirs] for ours, theirs in CONFIG_NAMES.items()},
            drop_rate=given.get("resid_pdrop", 0.1),
            qkv_bias=given.get("qkv_bias", True),
            tie_weights=given.get("tie_word_embeddings", True),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_class_names(folder: Path) -> list[str]:
    """Read the class names of the classifier in `folder`, in the order of its scores."""
    path = folder / "config.json"
    # transformers leaves out the names that it would make up itself.
    names = _read_config_file(path).get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(names, dict) or sorted(names) != sorted(
        str(index) for index in range(len(names))
    ):
        raise ValueError(f"{path}: id2label is {names!r}; allowed is a name for each class id")
    return [names[str(index)] for index in range(len(names))]


def check_weights(folder: Path, *, n_classes: int | None = None) -> GPTConfig:
    """Compare names and shapes of the tensors in `folder` with what its config asks for.

    Returns the config; raises ValueError with the tensors that are missing, unknown or of
    another shape. With `n_classes` the folder must hold a classifier.
    """
    config = read_config(folder)
    given = _named(read_shapes(folder))
    expected = _shapes(_to_file(_skeleton(config, n_classes)))
    if config.tie_weights and "lm_head.weight" in given and n_classes is None:
        expected["lm_head.weight"] = expected["transformer.wte.weight"]
    problems = _problems(given, expected)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError(f"{folder}: {'; '.join(problems[:3])}{more}")
    return config


def load_causal_lm(folder: Path, *, drop_rate: float | None = None) -> GPT:
    """Read the GPT in `folder`, in float32 on the CPU and in eval mode.

    Its dropout in training is that of its config, or `drop_rate` where that is given.
    """
    config = _with_dropout(check_weights(folder), drop_rate)
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(_read_state(folder, config), assign=True)
    return model.eval()


def load_classifier(
    folder: Path, *, drop_rate: float | None = None
) -> tuple[GPTClassifier, list[str]]:
    """Read the classifier in `folder` and its class names, as `load_causal_lm` does."""
    class_names = read_class_names(folder)
    config = _with_dropout(check_weights(folder, n_classes=len(class_names)), drop_rate)
    with torch.device("meta"):
        model = GPTClassifier(config, len(class_names))
    model.load_state_dict(_read_state(folder, config), assign=True)
    return model.eval(), class_names


def _with_dropout(config: GPTConfig, drop_rate: float | None) -> GPTConfig:
    return config if drop_rate is None else replace(config, drop_rate=drop_rate)


def _skeleton(config: GPTConfig, n_classes: int | None) -> GPT | GPTClassifier:
    """Build a model of shapes, without memory for its weights."""
    with torch.device("meta"):
        return GPT(config) if n_classes is None else GPTClassifier(config, n_classes)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _named(found: Mapping[str, T]) -> dict[str, T]:
    """Give tensors their full names and drop the constants: the hub's GPT-2 has bare bodies."""
    heads = ("transformer.", "lm_head.", "score.")
    return {
        name if name.startswith(heads) else f"transformer.{name}": value
        for name, value in found.items()
        if not name.endswith(MASKS)
    }


def _problems(given: Mapping[str, Shape], expected: Mapping[str, Shape]) -> list[str]:
    names = [*expected, *sorted(given.keys() - expected.keys())]
    problems: list[str] = []
    for name in names:
        if name not in given:
            problems.append(f"{name} {expected[name]} is missing")
        elif name not in expected:
            problems.append(f"{name} {given[name]} has no place in this model")
        elif given[name] != expected[name]:
            problems.append(f"{name} is {given[name]}, config.json asks for {expected[name]}")
    return problems


def _to_file(model: GPT | GPTClassifier) -> dict[str, Tensor]:
    """Return the tensors of a model as the file holds them."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensors[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).contiguous()
        if name.endswith("attn.c_attn.weight") and not model.config.qkv_bias:
            tensors[name.replace("weight", "bias")] = torch.zeros_like(tensor[:, 0])
    return tensors


def _read_state(folder: Path, config: GPTConfig) -> dict[str, Tensor]:
    """Return the tensors of a checked folder as the model holds them, in float32."""
    tensors = _named(read_tensors(folder))
    head = tensors.pop("lm_head.weight", None) if config.tie_weights else None
    if head is not None and not torch.equal(head, tensors["transformer.wte.weight"]):
        raise ValueError(
            f"{folder}: lm_head.weight differs from transformer.wte.weight, but config.json "
            "ties them; set tie_word_embeddings to false there"
        )
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.c_attn.bias") and not config.qkv_bias:
            if tensor.any():
                raise ValueError(f"{folder}: {name} is not zero, but config.json has no qkv_bias")
            continue
        state[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).float().contiguous()
    return state


def _save(folder: Path, model: GPT | GPTClassifier, config: Mapping[str, Any]) -> None:
    """Write the weights under a temporary name first, then the config."""
    tensors = {name: tensor.detach().cpu() for name, tensor in _to_file(model).items()}
    n_classes = model.score.out_features if isinstance(model, GPTClassifier) else None
    expected = _shapes(_to_file(_skeleton(model.config, n_classes)))
    assert _shapes(tensors) == expected, "a model with wrapped or added modules is not saved"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".model.safetensors.partial"
    # One key alone: with two the library writes them in random order.
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / "model.safetensors")
    write_json(folder / "config.json", config)


def _hugging_face_config(config: GPTConfig, eot_id: int) -> dict[str, Any]:
    sizes = {theirs: getattr(config, ours) for ours, theirs in CONFIG_NAMES.items()}
    fixed = {name: allowed[0] for name, allowed in FIXED_CONFIG.items()}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.drop_rate)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), eot_id)
    return {
        **sizes,
        **fixed,
        **dropout,
        **ids,
        "n_ctx": config.context_length,
        "n_inner": None,
        "initializer_range": INIT_STD,
        "tie_word_embeddings": config.tie_weights,
        "qkv_bias": config.qkv_bias,
        "use_cache": True,
        "dtype": "float32",
    }


def _read_config_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; a Hugging Face folder has one")
    given = read_json(path)
    if not isinstance(given, dict):
        raise ValueError(f"{path} is not a JSON object")
    return given
