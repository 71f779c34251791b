"""config.json as Hugging Face has it, for GPT-2 and Llama, and the shape of a model from it.

A config that asks for what this model does not compute is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmill.files import read_json
from gptmill.model.gpt import INIT_STD, GPTConfig, Llama
from gptmill.model.rope import RopeScaling

# What config.json calls what GPTConfig holds.
GPT2_NAMES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "emb_dim": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
}
LLAMA_NAMES = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "emb_dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}
# Variants that this model does not compute. The first value is what a missing key means.
GPT2_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
LLAMA_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0, None),
}
# What a rotary scaling is called there: ours, its own, and what a missing key means.
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


@dataclass(frozen=True)
class SpecialIds:
    """The ids that a config names: of the begin and the end of a text, and of padding."""

    bos: int
    eos: int
    pad: int

    def named(self) -> dict[str, int]:
        """Return them as config.json and generation_config.json name them."""
        return {"bos_token_id": self.bos, "eos_token_id": self.eos, "pad_token_id": self.pad}


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a config.json; raise ValueError where there is none or it is something else."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; a Hugging Face folder has one")
    given = read_json(path)
    if not isinstance(given, dict):
        raise ValueError(f"{path} is not a JSON object")
    return given


def read_config(folder: Path) -> GPTConfig:
    """Read the shape of the model in `folder`; raise ValueError where it is none of ours."""
    path = folder / "config.json"
    given = read_config_file(path)
    family = given.get("model_type", "gpt2")
    if family not in ("gpt2", "llama"):
        raise ValueError(f"{path}: model_type is {family!r}; allowed are 'gpt2' and 'llama'")
    try:
        return _gpt2(given) if family == "gpt2" else _llama(given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _gpt2(given: Mapping[str, Any]) -> GPTConfig:
    _refuse_others(given, GPT2_FIXED)
    wide = given.get("n_inner")
    sizes = _sizes(given, GPT2_NAMES)
    if wide is not None and not _is_whole(wide):
        raise ValueError(f"n_inner is {wide!r}; allowed is a whole number or null")
    return GPTConfig(
        **sizes,
        hidden_dim=None if wide == 4 * sizes["emb_dim"] else wide,
        drop_rate=given.get("resid_pdrop", 0.1),
        qkv_bias=given.get("qkv_bias", True),
        tie_weights=given.get("tie_word_embeddings", True),
        norm_eps=given.get("layer_norm_epsilon", 1e-5),
    )


def _llama(given: Mapping[str, Any]) -> GPTConfig:
    _refuse_others(given, LLAMA_FIXED)
    sizes = _sizes(given, LLAMA_NAMES)
    kv_heads = given.get("num_key_value_heads")
    kv_heads = sizes["n_heads"] if kv_heads is None else kv_heads
    if not _is_whole(kv_heads):
        raise ValueError(f"num_key_value_heads is {kv_heads!r}; allowed is a whole number")
    theta, scaling = _rope(given, sizes["context_length"])
    config = GPTConfig(
        **sizes,
        drop_rate=given.get("attention_dropout", 0.0),
        qkv_bias=False,
        tie_weights=given.get("tie_word_embeddings", False),
        norm_eps=given.get("rms_norm_eps", 1e-6),
        llama=Llama(n_kv_heads=kv_heads, rope_theta=theta, rope_scaling=scaling),
    )
    if given.get("head_dim") not in (None, config.head_dim):
        raise ValueError(
            f"head_dim is {given['head_dim']!r}; allowed is hidden_size / num_attention_heads, "
            f"{config.head_dim}"
        )
    return config


def _sizes(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    for name in names.values():
        if not _is_whole(given.get(name)):
            raise ValueError(f"{name} is {given.get(name)!r}; allowed is a whole number")
    return {ours: given[theirs] for ours, theirs in names.items()}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse_others(given: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]]) -> None:
    for name, allowed in fixed.items():
        if given.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{name} is {given[name]!r}; allowed is {allowed[0]!r}")


def _rope(given: Mapping[str, Any], context_length: int) -> tuple[float, RopeScaling | None]:
    """Return base and scaling: `rope_parameters`, or as it was called before, `rope_scaling`."""
    found = given.get("rope_scaling") or given.get("rope_parameters") or {}
    if not isinstance(found, dict):
        raise ValueError(f"rope_parameters is {found!r}; allowed is an object")
    theta = float(found.get("rope_theta", given.get("rope_theta", 10_000.0)))
    kind = found.get("rope_type", found.get("type", "default"))
    _refuse_others(found, SCALING_FIXED)
    if kind == "default":
        return theta, None
    if kind not in SCALED:
        allowed = ", ".join(["default", *SCALED])
        raise ValueError(f"rope_type is {kind!r}; allowed are {allowed}")
    outside = given.get("original_max_position_embeddings")
    original = outside or found.get("original_max_position_embeddings") or context_length
    factor = found.get("factor")
    return theta, RopeScaling(
        kind=kind,
        factor=float(context_length / original if factor is None else factor),
        original_context_length=original,
        attention_factor=found.get("attention_factor"),
        **{
            ours: float(found.get(theirs) or default)
            for ours, (theirs, default) in SCALED[kind].items()
        },
    )


def to_hugging_face(config: GPTConfig, ids: SpecialIds, dtype: str) -> dict[str, Any]:
    """Return the config.json of a model, but for the class that opens it."""
    own = _as_gpt2(config) if config.llama is None else _as_llama(config, config.llama)
    return {
        **own,
        **ids.named(),
        "initializer_range": INIT_STD,
        "tie_word_embeddings": config.tie_weights,
        "use_cache": True,
        "dtype": dtype,
    }


def _as_gpt2(config: GPTConfig) -> dict[str, Any]:
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.drop_rate)
    return {
        **{theirs: getattr(config, ours) for ours, theirs in GPT2_NAMES.items()},
        **{name: allowed[0] for name, allowed in GPT2_FIXED.items()},
        **dropout,
        "model_type": "gpt2",
        "n_ctx": config.context_length,
        "n_inner": config.hidden_dim,
        "layer_norm_epsilon": config.norm_eps,
        "qkv_bias": config.qkv_bias,
    }


def _as_llama(config: GPTConfig, llama: Llama) -> dict[str, Any]:
    scaling = llama.rope_scaling
    rope = {"rope_type": "default"} if scaling is None else _as_rope(scaling)
    content = {
        **{theirs: getattr(config, ours) for ours, theirs in LLAMA_NAMES.items()},
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
        # The same as tools before transformers 5 read it.
        "rope_theta": llama.rope_theta,
        "rope_scaling": None if scaling is None else rope,
    }
    if scaling is not None and scaling.kind == "linear":  # which has no such key inside
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
