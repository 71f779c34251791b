"""GGUF, the file format of llama.cpp, with metadata, tokenizer and tensors in one file.

gguf_file.py parses files, and the `gguf` package dequantizes tensors. This module translates
between metadata and the shape of a model, in both directions.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptmill.checkpoint.config_fields import read_number, read_size, read_sizes
from gptmill.checkpoint.families import FAMILIES, family_of
from gptmill.checkpoint.layouts import Layout
from gptmill.checkpoint.weights import Shape, Taken, Tensors
from gptmill.device import check_choice
from gptmill.formats.gguf_file import GgufTensor, read_gguf
from gptmill.model.gpt import GPTConfig, Llama
from gptmill.model.rope import RopeScaling, frequencies

ROPE_FACTORS = "rope_freqs.weight"  # the divisors of llama3's scaling, one per frequency
HEAD, EMBEDDING = "output.weight", "token_embd.weight"
# The scalings of Llama 3.1, 3.2 and 3.3; a file holds only the resulting divisors.
LLAMA3_FACTORS = (8.0, 32.0)
LLAMA3_CONTEXT = 8192
MAPPED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# GPTConfig's names and the metadata keys, after the name of the architecture.
SIZES = {
    "context_length": "context_length",
    "emb_dim": "embedding_length",
    "n_layers": "block_count",
    "n_heads": "attention.head_count",
    "hidden_dim": "feed_forward_length",
}


@dataclass(frozen=True)
class GgufFile:
    """An open file: metadata, the shape of the model, tensors."""

    fields: Mapping[str, Any]
    config: GPTConfig
    layout: Layout
    tensors: Tensors


def open_gguf(path: Path) -> GgufFile:
    """Open the GGUF file of a GPT-2 or a Llama; raise ValueError for anything else."""
    content = read_gguf(path)

    def take(name: str) -> Taken:
        return _values(content.tensors[name])

    shapes = {name: tensor.shape for name, tensor in content.tensors.items()}
    factors = take(ROPE_FACTORS).tensor if shapes.pop(ROPE_FACTORS, None) else None
    try:
        config = _config(content.fields, shapes, factors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return GgufFile(content.fields, config, family_of(config).gguf, Tensors(path, shapes, take))


def _values(tensor: GgufTensor) -> Taken:
    """Return a tensor: mapped from the file, or dequantized."""
    from gguf import GGMLQuantizationType, dequantize

    kind = GGMLQuantizationType(tensor.kind)
    if kind.name in MAPPED:
        content = torch.from_numpy(tensor.content).view(MAPPED[kind.name])
        return Taken(content.view(tensor.shape), mapped=True)
    values = torch.from_numpy(dequantize(tensor.content, kind))
    return Taken(values.view(tensor.shape), mapped=False)


def _config(
    fields: Mapping[str, Any], shapes: Mapping[str, Shape], factors: Tensor | None
) -> GPTConfig:
    family = str(fields.get("general.architecture"))
    check_choice("architecture", family, FAMILIES)

    sizes = read_sizes(fields, {ours: f"{family}.{theirs}" for ours, theirs in SIZES.items()})
    if len(shapes.get(EMBEDDING, ())) != 2:
        raise ValueError(f"{EMBEDDING} is missing; every model of this family has such a matrix")
    shape = {
        **sizes,
        "vocab_size": shapes[EMBEDDING][0],
        "tie_weights": HEAD not in shapes,
        "norm_eps": read_number(fields, f"{family}.{FAMILIES[family].gguf_norm_eps}"),
    }
    return READERS[family](fields, shape, factors)


def _gpt2(fields: Mapping[str, Any], shape: Mapping[str, Any], factors: Tensor | None) -> GPTConfig:
    usual = shape["hidden_dim"] == 4 * shape["emb_dim"]
    hidden_dim = None if usual else shape["hidden_dim"]
    return GPTConfig(**{**shape, "hidden_dim": hidden_dim}, drop_rate=0.1, qkv_bias=True)


def _llama(
    fields: Mapping[str, Any], shape: Mapping[str, Any], factors: Tensor | None
) -> GPTConfig:
    heads = shape["n_heads"]
    head_dim = shape["emb_dim"] // heads
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if fields.get(f"llama.{name}", head_dim) != head_dim:
            raise ValueError(f"llama.{name} is {fields[f'llama.{name}']}; allowed is {head_dim}")
    theta = read_number(fields, "llama.rope.freq_base", 10_000.0)
    scaling = _scaling(fields, shape["context_length"])
    if factors is not None:
        scaling = _llama3_scaling(factors, head_dim, theta)
    llama = Llama(
        n_kv_heads=read_size(fields, "llama.attention.head_count_kv", heads),
        rope_theta=theta,
        rope_scaling=scaling,
    )
    return GPTConfig(**shape, drop_rate=0.0, qkv_bias=False, llama=llama)


# Readers of the metadata that only one family has.
READERS = {"gpt2": _gpt2, "llama": _llama}


def _scaling(fields: Mapping[str, Any], context_length: int) -> RopeScaling | None:
    """Return the scaling in the metadata, if any."""
    prefix = "llama.rope.scaling."
    kind = fields.get(f"{prefix}type", "none")
    if kind == "none":
        return None
    check_choice("llama.rope.scaling.type", kind, ["none", "linear", "yarn"])
    for name in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        value = fields.get(f"{prefix}{name}", 1.0)
        if value != 1.0:
            raise ValueError(f"{prefix}{name} is {value}; allowed is 1")
    return RopeScaling(
        kind=kind,
        factor=read_number(fields, f"{prefix}factor", 1.0),
        original_context_length=read_size(
            fields, f"{prefix}original_context_length", context_length
        ),
        beta_fast=read_number(fields, f"{prefix}yarn_beta_fast", 32.0),
        beta_slow=read_number(fields, f"{prefix}yarn_beta_slow", 1.0),
    )


def rope_factors(config: GPTConfig) -> Tensor | None:
    """Return the divisors of a llama3 scaling, (D / 2,); None without such a scaling."""
    llama = config.llama
    if llama is None or llama.rope_scaling is None or llama.rope_scaling.kind != "llama3":
        return None
    plain = frequencies(config.head_dim, llama.rope_theta, None)
    return plain / frequencies(config.head_dim, llama.rope_theta, llama.rope_scaling)


def _llama3_scaling(factors: Tensor, head_dim: int, theta: float) -> RopeScaling:
    """Find the scaling with these divisors among the scalings of Llama 3."""
    plain = frequencies(head_dim, theta, None)
    for factor in LLAMA3_FACTORS:
        scaling = RopeScaling(
            kind="llama3",
            factor=factor,
            original_context_length=LLAMA3_CONTEXT,
            beta_fast=4.0,
            beta_slow=1.0,
        )
        scaled = plain / factors.float()
        if torch.allclose(scaled, frequencies(head_dim, theta, scaling), rtol=1e-5, atol=0):
            return scaling
    raise ValueError(
        f"{ROPE_FACTORS} belongs to an unknown scaling; allowed are the scalings of "
        "Llama 3.1 and 3.2: import the Hugging Face folder instead"
    )


def metadata(config: GPTConfig) -> dict[str, int | float | str]:
    """Return the metadata of a model's shape; raise ValueError for a shape without any."""
    family = config.family
    fields: dict[str, int | float | str] = {
        f"{family}.{theirs}": getattr(config, ours) for ours, theirs in SIZES.items()
    }
    fields[f"{family}.feed_forward_length"] = config.ff_dim
    fields[f"{family}.{family_of(config).gguf_norm_eps}"] = config.norm_eps
    return fields if config.llama is None else fields | _llama_metadata(config, config.llama)


def _llama_metadata(config: GPTConfig, llama: Llama) -> dict[str, int | float | str]:
    return {
        "llama.vocab_size": config.vocab_size,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": llama.rope_theta,
        **_scaling_metadata(llama.rope_scaling),
    }


def _scaling_metadata(scaling: RopeScaling | None) -> dict[str, int | float | str]:
    if scaling is None or scaling.kind == "llama3":  # stored as a tensor of divisors
        return {}
    if scaling.kind == "yarn" and not math.isclose(
        scaling.magnitude, 0.1 * math.log(scaling.factor) + 1
    ):
        raise ValueError(
            f"attention_factor is {scaling.attention_factor}; readers of GGUF know none but "
            "0.1 ln(factor) + 1: export in a different format"
        )
    prefix = "llama.rope.scaling"
    out: dict[str, int | float | str] = {
        f"{prefix}.type": scaling.kind,
        f"{prefix}.factor": scaling.factor,
        f"{prefix}.original_context_length": scaling.original_context_length,
    }
    if scaling.kind == "yarn":
        out[f"{prefix}.yarn_beta_fast"] = scaling.beta_fast
        out[f"{prefix}.yarn_beta_slow"] = scaling.beta_slow
    return out
