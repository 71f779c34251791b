"""config.json of a Llama, read and written, rotary scalings included."""

from collections.abc import Mapping
from typing import Any

from gptmill.checkpoint.config_fields import (
    read_flag,
    read_number,
    read_size,
    read_sizes,
    refuse_variants,
)
from gptmill.device import check_choice
from gptmill.model.gpt import GPTConfig, Llama
from gptmill.model.rope import RopeScaling

# GPTConfig's names and those of config.json.
NAMES = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "emb_dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}
# Variants that the model does not compute; the first value is the meaning of a missing key.
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0, None),
}
# The keys of a rotary scaling: our name, the name in config.json, the meaning of a missing key.
SCALED = {
    "linear": {},
    "yarn": {"beta_fast": ("beta_fast", 32.0), "beta_slow": ("beta_slow", 1.0)},
    "llama3": {"beta_fast": ("high_freq_factor", 4.0), "beta_slow": ("low_freq_factor", 1.0)},
}
# Variants of YaRN that are not computed.
SCALING_FIXED: dict[str, tuple[Any, ...]] = {
    "mscale": (None,),
    "mscale_all_dim": (None,),
    "truncate": (True,),
    "partial_rotary_factor": (1.0, None),
}


def read(content: Mapping[str, Any]) -> GPTConfig:
    """Return the shape that a config.json asks for; raise ValueError for an unknown variant."""
    refuse_variants(content, FIXED)
    sizes = read_sizes(content, NAMES)
    kv_heads = read_size(content, "num_key_value_heads", sizes["n_heads"])
    theta, scaling = _rope(content, sizes["context_length"])
    config = GPTConfig(
        **sizes,
        drop_rate=read_number(content, "attention_dropout", 0.0),
        qkv_bias=False,
        tie_weights=read_flag(content, "tie_word_embeddings", default=False),
        norm_eps=read_number(content, "rms_norm_eps", 1e-6),
        llama=Llama(n_kv_heads=kv_heads, rope_theta=theta, rope_scaling=scaling),
    )
    if content.get("head_dim") not in (None, config.head_dim):
        raise ValueError(
            f"head_dim is {content['head_dim']!r}; allowed is hidden_size / num_attention_heads, "
            f"{config.head_dim}"
        )
    return config


def _rope(content: Mapping[str, Any], context_length: int) -> tuple[float, RopeScaling | None]:
    """Return base and scaling from `rope_parameters`, or the older `rope_scaling`."""
    rope = content.get("rope_scaling") or content.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_parameters is {rope!r}; allowed is an object")
    theta = read_number(rope, "rope_theta", read_number(content, "rope_theta", 10_000.0))
    kind: Any = rope.get("rope_type", rope.get("type", "default"))
    refuse_variants(rope, SCALING_FIXED)
    if kind == "default":
        return theta, None
    check_choice("rope_type", kind, ["default", *SCALED])
    name = "original_max_position_embeddings"
    original = read_size(content, name, read_size(rope, name, context_length))
    attention = rope.get("attention_factor")
    return theta, RopeScaling(
        kind=kind,
        factor=read_number(rope, "factor", context_length / original),
        original_context_length=original,
        attention_factor=None if attention is None else read_number(rope, "attention_factor"),
        **{
            ours: read_number(rope, theirs, default)
            for ours, (theirs, default) in SCALED[kind].items()
        },
    )


def write(config: GPTConfig) -> dict[str, Any]:
    """Return the keys of config.json that only a Llama has."""
    llama = config.llama
    assert llama is not None
    scaling = llama.rope_scaling
    rope = {"rope_type": "default"} if scaling is None else _as_rope(scaling)
    content = {
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
        "model_type": "llama",
        "intermediate_size": config.ff_dim,
        "num_key_value_heads": llama.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
        "attention_dropout": config.drop_rate,
        "mlp_bias": False,
        "rope_parameters": {**rope, "rope_theta": llama.rope_theta},
        # for tools older than transformers 5
        "rope_theta": llama.rope_theta,
        "rope_scaling": None if scaling is None else rope,
    }
    if scaling is not None and scaling.kind == "linear":  # has no key inside `rope_parameters`
        content["original_max_position_embeddings"] = scaling.original_context_length
    return content


def _as_rope(scaling: RopeScaling) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return rope
    rope["original_max_position_embeddings"] = scaling.original_context_length
    for ours, (theirs, _) in SCALED[scaling.kind].items():
        rope[theirs] = getattr(scaling, ours)
    if scaling.attention_factor is not None:
        rope["attention_factor"] = scaling.attention_factor
    return rope
