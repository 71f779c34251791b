"""config.json of a GPT-2, read and written."""

from collections.abc import Mapping
from typing import Any

from gptmill.checkpoint.config_fields import (
    read_flag,
    read_number,
    read_size,
    read_sizes,
    refuse_variants,
)
from gptmill.model.gpt import GPTConfig

# GPTConfig's names and those of config.json.
NAMES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "emb_dim": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
}
# Variants that the model does not compute; the first value is the meaning of a missing key.
FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def read(content: Mapping[str, Any]) -> GPTConfig:
    """Return the shape that a config.json asks for; raise ValueError for an unknown variant."""
    refuse_variants(content, FIXED)
    sizes = read_sizes(content, NAMES)
    usual = 4 * sizes["emb_dim"]
    wide = read_size(content, "n_inner", usual)
    return GPTConfig(
        **sizes,
        hidden_dim=None if wide == usual else wide,
        drop_rate=read_number(content, "resid_pdrop", 0.1),
        qkv_bias=read_flag(content, "qkv_bias", default=True),
        tie_weights=read_flag(content, "tie_word_embeddings", default=True),
        norm_eps=read_number(content, "layer_norm_epsilon", 1e-5),
    )


def write(config: GPTConfig) -> dict[str, Any]:
    """Return the keys of config.json that only a GPT-2 has."""
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.drop_rate)
    return {
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
        **{name: allowed[0] for name, allowed in FIXED.items()},
        **dropout,
        "model_type": "gpt2",
        "n_ctx": config.context_length,
        "n_inner": config.hidden_dim,
        "layer_norm_epsilon": config.norm_eps,
        "qkv_bias": config.qkv_bias,
    }
