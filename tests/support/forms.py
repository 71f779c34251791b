"""The forms that weights are found in, made on the spot: random models of any shape, written."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gptmill.formats.crc32c import masked_crc32c
from gptmill.model.gpt import GPT, GPTConfig, Llama
from gptmill.model.rope import RopeScaling


def gpt2_config(**changed: object) -> GPTConfig:
    """Return a GPT-2 of odd sizes."""
    sizes: dict[str, object] = {
        "vocab_size": 317,
        "context_length": 29,
        "emb_dim": 21,
        "n_layers": 2,
        "n_heads": 3,
        "drop_rate": 0.1,
        "qkv_bias": True,
        "tie_weights": True,
    }
    return GPTConfig(**{**sizes, **changed})  # type: ignore[arg-type]


def llama_config(
    *, n_kv_heads: int = 2, scaling: RopeScaling | None = None, **changed: object
) -> GPTConfig:
    """Return a Llama of odd sizes, with fewer key-value heads than heads."""
    sizes: dict[str, object] = {
        "vocab_size": 317,
        "context_length": 40,
        "emb_dim": 24,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 37,
        "drop_rate": 0.0,
        "qkv_bias": False,
        "tie_weights": True,
        "llama": Llama(n_kv_heads=n_kv_heads, rope_theta=1000.0, rope_scaling=scaling),
    }
    return GPTConfig(**{**sizes, **changed})  # type: ignore[arg-type]


YARN = RopeScaling(kind="yarn", factor=4.0, original_context_length=10)
LINEAR = RopeScaling(kind="linear", factor=2.0, original_context_length=20)
LLAMA3 = RopeScaling(
    kind="llama3", factor=8.0, original_context_length=16, beta_fast=4.0, beta_slow=1.0
)


def random_gpt(config: GPTConfig, seed: int = 1) -> GPT:
    """Return a model whose weights, norms and biases too, are large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def some_ids(config: GPTConfig, rows: int = 3) -> Tensor:
    """Return random ids that fill the context (B, T)."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, config.vocab_size, (rows, config.context_length), generator=generator)


def their_gpt2(config: GPTConfig) -> GPT2LMHeadModel:
    """Return transformers' model of this shape, made without any of our code for files."""
    torch.manual_seed(3)
    theirs = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_embd=config.emb_dim,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_inner=config.hidden_dim,
        layer_norm_epsilon=config.norm_eps,
        tie_word_embeddings=config.tie_weights,
        bos_token_id=316,
        eos_token_id=316,
    )
    return _shaken(GPT2LMHeadModel(theirs))


def their_llama(config: GPTConfig) -> LlamaForCausalLM:
    """Return transformers' Llama of this shape."""
    torch.manual_seed(3)
    assert config.llama is not None
    theirs = LlamaConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length,
        hidden_size=config.emb_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        intermediate_size=config.ff_dim,
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tie_weights,
        rope_parameters=their_rope(config.llama),
        bos_token_id=316,
        eos_token_id=316,
    )
    return _shaken(LlamaForCausalLM(theirs))


def their_rope(llama: Llama) -> dict[str, object]:
    """Return rotary positions as transformers' config says them."""
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": llama.rope_theta}
    scaling = llama.rope_scaling
    if scaling is None:
        return rope
    rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        rope["original_max_position_embeddings"] = scaling.original_context_length
    if scaling.kind == "llama3":
        rope |= {"low_freq_factor": scaling.beta_slow, "high_freq_factor": scaling.beta_fast}
    return rope


def _shaken(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model.eval()


# The book's state dict, by its chapters' names, from transformers' GPT-2.


def book_state(theirs: GPT2LMHeadModel, *, qkv_bias: bool = True) -> dict[str, Tensor]:
    """Return what the book's `load_weights_into_gpt` makes of GPT-2's weights."""
    body = theirs.transformer
    state = {
        "tok_emb.weight": body.wte.weight,
        "pos_emb.weight": body.wpe.weight,
        "final_norm.scale": body.ln_f.weight,
        "final_norm.shift": body.ln_f.bias,
        "out_head.weight": theirs.lm_head.weight,
    }
    for number, block in enumerate(body.h):
        name = f"trf_blocks.{number}"
        weights = block.attn.c_attn.weight.chunk(3, dim=1)
        biases = block.attn.c_attn.bias.chunk(3)
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            state[f"{name}.att.W_{part}.weight"] = weight.T
            if qkv_bias:
                state[f"{name}.att.W_{part}.bias"] = bias
        length = len(body.wpe.weight)
        state[f"{name}.att.mask"] = torch.triu(torch.ones(length, length), diagonal=1)
        linears = {
            "att.out_proj": block.attn.c_proj,
            "ff.layers.0": block.mlp.c_fc,
            "ff.layers.2": block.mlp.c_proj,
        }
        for theirs_name, layer in linears.items():
            state[f"{name}.{theirs_name}.weight"] = layer.weight.T
            state[f"{name}.{theirs_name}.bias"] = layer.bias
        for theirs_name, norm in (("norm1", block.ln_1), ("norm2", block.ln_2)):
            state[f"{name}.{theirs_name}.scale"] = norm.weight
            state[f"{name}.{theirs_name}.shift"] = norm.bias
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


# OpenAI's TensorFlow folder.


def openai_tensors(theirs: GPT2LMHeadModel) -> dict[str, Tensor]:
    """Return the variables of OpenAI's checkpoints: kernels of convolutions, (1, in, out)."""
    tensors = {
        "model/wte": theirs.transformer.wte.weight,
        "model/wpe": theirs.transformer.wpe.weight,
    }
    for name, tensor in theirs.transformer.state_dict().items():
        parts = name.split(".")
        if parts[0] == "h":
            *path, kind = parts[2:]
            if path[-1].startswith("ln"):
                kind = {"weight": "g", "bias": "b"}[kind]
            else:
                kind, tensor = ("w", tensor[None]) if kind == "weight" else ("b", tensor)
            tensors[f"model/h{parts[1]}/{'/'.join(path)}/{kind}"] = tensor
        elif parts[0] == "ln_f":
            tensors[f"model/ln_f/{'g' if parts[1] == 'weight' else 'b'}"] = tensor
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def write_openai(folder: Path, config: GPTConfig, tensors: dict[str, Tensor]) -> None:
    """Write a TensorFlow checkpoint folder byte by byte, in the form that its savers write."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "n_vocab": config.vocab_size,
        "n_ctx": config.context_length,
        "n_embd": config.emb_dim,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
    }
    (folder / "hparams.json").write_text(json.dumps(sizes))
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    data, rows = bytearray(), [(b"", b"\x08\x01\x1a\x02\x08\x01")]
    for name in sorted(tensors):
        content = tensors[name].numpy().tobytes()
        rows.append((name.encode(), _entry(tensors[name], len(data), content)))
        data += content
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(data)
    (folder / "model.ckpt.index").write_bytes(write_index(rows))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(value) if value else b""


def _entry(tensor: Tensor, offset: int, content: bytes) -> bytes:
    shape = b"".join(_field(2, _field(1, size)) for size in tensor.shape)
    crc = masked_crc32c(np.frombuffer(content, np.uint8)).to_bytes(4, "little")
    where = _field(4, offset) + _field(5, len(content))
    return _field(1, 1) + _field(2, shape) + where + _varint(6 << 3 | 5) + crc


def write_index(rows: list[tuple[bytes, bytes]], rows_a_block: int = 7) -> bytes:
    """Return the index of a TensorFlow checkpoint, in the form that its savers write."""
    out, index = bytearray(), []
    for start in range(0, len(rows), rows_a_block):
        block = rows[start : start + rows_a_block]
        index.append((block[-1][0], _append(out, _block(block))))
    meta = _append(out, _block([]))
    handles = meta + _append(out, _block(index))
    return bytes(out) + handles.ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")


def _block(rows: list[tuple[bytes, bytes]]) -> bytes:
    out, last = bytearray(), b""
    for key, value in rows:
        shared = 0
        while shared < min(len(last), len(key)) and last[shared] == key[shared]:
            shared += 1
        out += _varint(shared) + _varint(len(key) - shared) + _varint(len(value))
        out += key[shared:] + value
        last = key
    return bytes(out) + bytes(4) + (1).to_bytes(4, "little")


def _append(out: bytearray, block: bytes) -> bytes:
    place = _varint(len(out)) + _varint(len(block))
    packed = block + b"\0"
    out += packed + masked_crc32c(np.frombuffer(packed, np.uint8)).to_bytes(4, "little")
    return place
