"""Layouts: the names and storage of a model's tensors in each file format, one table each.

mapping.py reads the tables in both directions. `N` in a name stands for the number of a block. One
of our tensors may be several tensors in a file, concatenated by rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Stored = Literal["plain", "transposed", "kernel", "interleaved"]
"""The storage of a matrix: (out, in) as in `nn.Linear`; (in, out); (1, in, out), a convolution's
kernel; or (out, in) with the two halves of each head's rows interleaved, so that rotary positions
rotate neighbouring rows."""


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a file: name and storage."""

    name: str
    stored: Stored = "plain"


@dataclass(frozen=True)
class TensorRow:
    """One of our tensors, and the corresponding tensors of a file."""

    ours: str
    parts: tuple[FileTensor, ...]


@dataclass(frozen=True)
class Layout:
    """A file format."""

    name: str
    rows: tuple[TensorRow, ...]
    body: str = ""
    """A prefix of names, absent in files without a head."""
    ignored: tuple[str, ...] = ()
    """Suffixes of constants in some files."""
    zero_biases: bool = False
    """The file has query, key and value biases even if the model has none."""
    own_head: bool = False
    """The file has a head even if the head is tied to the token embedding."""


Files = str | FileTensor | tuple[str | FileTensor, ...]
"""The tensors of a file for one of ours; a string is a tensor with plain storage."""


def _row(ours: str, files: Files, prefix: str = "") -> TensorRow:
    parts = files if isinstance(files, tuple) else (files,)
    tensors = (FileTensor(part) if isinstance(part, str) else part for part in parts)
    return TensorRow(ours, tuple(FileTensor(prefix + t.name, t.stored) for t in tensors))


def _rows(
    first: Mapping[str, Files], prefix: str, block: Mapping[str, Files], last: Mapping[str, Files]
) -> tuple[TensorRow, ...]:
    """Return the rows of a layout: those before the blocks, of a block, and after the blocks.

    `prefix` stands before the names of a block's tensors in the file, `transformer.h.N.` in ours.
    """
    return (
        *(_row(ours, files) for ours, files in first.items()),
        *(_row(f"transformer.h.N.{ours}", files, prefix) for ours, files in block.items()),
        *(_row(ours, files) for ours, files in last.items()),
    )


HUGGING_FACE_GPT2 = Layout(
    name="Hugging Face's GPT-2",
    body="transformer.",
    # causal masks in old checkpoints
    ignored=(".attn.bias", ".attn.masked_bias"),
    zero_biases=True,
    rows=_rows(
        {
            "transformer.wte.weight": "transformer.wte.weight",
            "transformer.wpe.weight": "transformer.wpe.weight",
        },
        "transformer.h.N.",
        {
            "ln_1.weight": "ln_1.weight",
            "ln_1.bias": "ln_1.bias",
            "attn.c_attn.weight": FileTensor("attn.c_attn.weight", "transposed"),
            "attn.c_attn.bias": "attn.c_attn.bias",
            "attn.c_proj.weight": FileTensor("attn.c_proj.weight", "transposed"),
            "attn.c_proj.bias": "attn.c_proj.bias",
            "ln_2.weight": "ln_2.weight",
            "ln_2.bias": "ln_2.bias",
            "mlp.c_fc.weight": FileTensor("mlp.c_fc.weight", "transposed"),
            "mlp.c_fc.bias": "mlp.c_fc.bias",
            "mlp.c_proj.weight": FileTensor("mlp.c_proj.weight", "transposed"),
            "mlp.c_proj.bias": "mlp.c_proj.bias",
        },
        {
            "transformer.ln_f.weight": "transformer.ln_f.weight",
            "transformer.ln_f.bias": "transformer.ln_f.bias",
            "lm_head.weight": "lm_head.weight",
            "score.weight": "score.weight",
        },
    ),
)

HUGGING_FACE_LLAMA = Layout(
    name="Hugging Face's Llama",
    body="model.",
    ignored=(".rotary_emb.inv_freq",),
    rows=_rows(
        {
            "transformer.wte.weight": "model.embed_tokens.weight",
        },
        "model.layers.N.",
        {
            "ln_1.weight": "input_layernorm.weight",
            "attn.c_attn.weight": (
                "self_attn.q_proj.weight",
                "self_attn.k_proj.weight",
                "self_attn.v_proj.weight",
            ),
            "attn.c_proj.weight": "self_attn.o_proj.weight",
            "ln_2.weight": "post_attention_layernorm.weight",
            "mlp.c_fc.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
            "mlp.c_proj.weight": "mlp.down_proj.weight",
        },
        {
            "transformer.ln_f.weight": "model.norm.weight",
            "lm_head.weight": "lm_head.weight",
            "score.weight": "score.weight",
        },
    ),
)

# "Build a Large Language Model (From Scratch)", chapters 4 to 7: its GPTModel's state dict.
BOOK = Layout(
    name="the book's GPTModel",
    ignored=(".att.mask",),
    own_head=True,
    rows=_rows(
        {
            "transformer.wte.weight": "tok_emb.weight",
            "transformer.wpe.weight": "pos_emb.weight",
        },
        "trf_blocks.N.",
        {
            "ln_1.weight": "norm1.scale",
            "ln_1.bias": "norm1.shift",
            "attn.c_attn.weight": ("att.W_query.weight", "att.W_key.weight", "att.W_value.weight"),
            "attn.c_attn.bias": ("att.W_query.bias", "att.W_key.bias", "att.W_value.bias"),
            "attn.c_proj.weight": "att.out_proj.weight",
            "attn.c_proj.bias": "att.out_proj.bias",
            "ln_2.weight": "norm2.scale",
            "ln_2.bias": "norm2.shift",
            "mlp.c_fc.weight": "ff.layers.0.weight",
            "mlp.c_fc.bias": "ff.layers.0.bias",
            "mlp.c_proj.weight": "ff.layers.2.weight",
            "mlp.c_proj.bias": "ff.layers.2.bias",
        },
        {
            "transformer.ln_f.weight": "final_norm.scale",
            "transformer.ln_f.bias": "final_norm.shift",
            "lm_head.weight": "out_head.weight",
            "score.weight": "out_head.weight",
            "score.bias": "out_head.bias",  # a bias of the book's classifiers
        },
    ),
)

OPENAI = Layout(
    name="OpenAI's TensorFlow GPT-2",
    zero_biases=True,
    rows=_rows(
        {
            "transformer.wte.weight": "model/wte",
            "transformer.wpe.weight": "model/wpe",
        },
        "model/hN/",
        {
            "ln_1.weight": "ln_1/g",
            "ln_1.bias": "ln_1/b",
            "attn.c_attn.weight": FileTensor("attn/c_attn/w", "kernel"),
            "attn.c_attn.bias": "attn/c_attn/b",
            "attn.c_proj.weight": FileTensor("attn/c_proj/w", "kernel"),
            "attn.c_proj.bias": "attn/c_proj/b",
            "ln_2.weight": "ln_2/g",
            "ln_2.bias": "ln_2/b",
            "mlp.c_fc.weight": FileTensor("mlp/c_fc/w", "kernel"),
            "mlp.c_fc.bias": "mlp/c_fc/b",
            "mlp.c_proj.weight": FileTensor("mlp/c_proj/w", "kernel"),
            "mlp.c_proj.bias": "mlp/c_proj/b",
        },
        {
            "transformer.ln_f.weight": "model/ln_f/g",
            "transformer.ln_f.bias": "model/ln_f/b",
        },
    ),
)

GGUF_GPT2 = Layout(
    name="GGUF's gpt2",
    zero_biases=True,
    rows=_rows(
        {
            "transformer.wte.weight": "token_embd.weight",
            "transformer.wpe.weight": "position_embd.weight",
        },
        "blk.N.",
        {
            "ln_1.weight": "attn_norm.weight",
            "ln_1.bias": "attn_norm.bias",
            "attn.c_attn.weight": "attn_qkv.weight",
            "attn.c_attn.bias": "attn_qkv.bias",
            "attn.c_proj.weight": "attn_output.weight",
            "attn.c_proj.bias": "attn_output.bias",
            "ln_2.weight": "ffn_norm.weight",
            "ln_2.bias": "ffn_norm.bias",
            "mlp.c_fc.weight": "ffn_up.weight",
            "mlp.c_fc.bias": "ffn_up.bias",
            "mlp.c_proj.weight": "ffn_down.weight",
            "mlp.c_proj.bias": "ffn_down.bias",
        },
        {
            "transformer.ln_f.weight": "output_norm.weight",
            "transformer.ln_f.bias": "output_norm.bias",
            "lm_head.weight": "output.weight",
        },
    ),
)

GGUF_LLAMA = Layout(
    name="GGUF's llama",
    rows=_rows(
        {
            "transformer.wte.weight": "token_embd.weight",
        },
        "blk.N.",
        {
            "ln_1.weight": "attn_norm.weight",
            "attn.c_attn.weight": (
                FileTensor("attn_q.weight", "interleaved"),
                FileTensor("attn_k.weight", "interleaved"),
                "attn_v.weight",
            ),
            "attn.c_proj.weight": "attn_output.weight",
            "ln_2.weight": "ffn_norm.weight",
            "mlp.c_fc.weight": ("ffn_gate.weight", "ffn_up.weight"),
            "mlp.c_proj.weight": "ffn_down.weight",
        },
        {
            "transformer.ln_f.weight": "output_norm.weight",
            "lm_head.weight": "output.weight",
        },
    ),
)
