"""Layouts: how each kind of file names and stores the tensors of a model. One table a layout.

The tables are read by gptmill/mapping.py, in both directions. `N` in a name stands for the number
of a block. A tensor of ours may be several in a file, one behind the other in its rows.
"""

from dataclasses import dataclass
from typing import Literal

Stored = Literal["plain", "transposed", "kernel", "interleaved"]
"""How a file keeps the rows: as `nn.Linear` does, (out, in); as (in, out); as (1, in, out), a
convolution's kernel; or (out, in) with the two halves of each head's rows interleaved, so that
rotary positions turn neighbours."""


@dataclass(frozen=True)
class FileTensor:
    """One tensor of a file: its name and how it is stored."""

    name: str
    stored: Stored = "plain"


@dataclass(frozen=True)
class TensorRow:
    """One tensor of ours and the tensors of a file that make it up."""

    ours: str
    parts: tuple[FileTensor, ...]


@dataclass(frozen=True)
class Layout:
    """One kind of file."""

    name: str
    rows: tuple[TensorRow, ...]
    body: str = ""
    """A prefix of names that a file without a head leaves out."""
    ignored: tuple[str, ...] = ()
    """Ends of names of constants that some files carry."""
    zero_biases: bool = False
    """Queries, keys and values have a bias in the file also where the model has none."""
    own_head: bool = False
    """The head is in the file also where it is the token embedding."""


def _row(ours: str, *names: str, stored: Stored = "plain") -> TensorRow:
    return TensorRow(ours, tuple(FileTensor(name, stored) for name in names))


HUGGING_FACE_GPT2 = Layout(
    name="Hugging Face's GPT-2",
    body="transformer.",
    # Causal masks, which old checkpoints carry.
    ignored=(".attn.bias", ".attn.masked_bias"),
    zero_biases=True,
    rows=(
        _row("transformer.wte.weight", "transformer.wte.weight"),
        _row("transformer.wpe.weight", "transformer.wpe.weight"),
        _row("transformer.h.N.ln_1.weight", "transformer.h.N.ln_1.weight"),
        _row("transformer.h.N.ln_1.bias", "transformer.h.N.ln_1.bias"),
        _row(
            "transformer.h.N.attn.c_attn.weight",
            "transformer.h.N.attn.c_attn.weight",
            stored="transposed",
        ),
        _row("transformer.h.N.attn.c_attn.bias", "transformer.h.N.attn.c_attn.bias"),
        _row(
            "transformer.h.N.attn.c_proj.weight",
            "transformer.h.N.attn.c_proj.weight",
            stored="transposed",
        ),
        _row("transformer.h.N.attn.c_proj.bias", "transformer.h.N.attn.c_proj.bias"),
        _row("transformer.h.N.ln_2.weight", "transformer.h.N.ln_2.weight"),
        _row("transformer.h.N.ln_2.bias", "transformer.h.N.ln_2.bias"),
        _row(
            "transformer.h.N.mlp.c_fc.weight",
            "transformer.h.N.mlp.c_fc.weight",
            stored="transposed",
        ),
        _row("transformer.h.N.mlp.c_fc.bias", "transformer.h.N.mlp.c_fc.bias"),
        _row(
            "transformer.h.N.mlp.c_proj.weight",
            "transformer.h.N.mlp.c_proj.weight",
            stored="transposed",
        ),
        _row("transformer.h.N.mlp.c_proj.bias", "transformer.h.N.mlp.c_proj.bias"),
        _row("transformer.ln_f.weight", "transformer.ln_f.weight"),
        _row("transformer.ln_f.bias", "transformer.ln_f.bias"),
        _row("lm_head.weight", "lm_head.weight"),
        _row("score.weight", "score.weight"),
    ),
)

HUGGING_FACE_LLAMA = Layout(
    name="Hugging Face's Llama",
    body="model.",
    ignored=(".rotary_emb.inv_freq",),
    rows=(
        _row("transformer.wte.weight", "model.embed_tokens.weight"),
        _row("transformer.h.N.ln_1.weight", "model.layers.N.input_layernorm.weight"),
        _row(
            "transformer.h.N.attn.c_attn.weight",
            "model.layers.N.self_attn.q_proj.weight",
            "model.layers.N.self_attn.k_proj.weight",
            "model.layers.N.self_attn.v_proj.weight",
        ),
        _row("transformer.h.N.attn.c_proj.weight", "model.layers.N.self_attn.o_proj.weight"),
        _row("transformer.h.N.ln_2.weight", "model.layers.N.post_attention_layernorm.weight"),
        _row(
            "transformer.h.N.mlp.c_fc.weight",
            "model.layers.N.mlp.gate_proj.weight",
            "model.layers.N.mlp.up_proj.weight",
        ),
        _row("transformer.h.N.mlp.c_proj.weight", "model.layers.N.mlp.down_proj.weight"),
        _row("transformer.ln_f.weight", "model.norm.weight"),
        _row("lm_head.weight", "lm_head.weight"),
        _row("score.weight", "score.weight"),
    ),
)

# "Build a Large Language Model (From Scratch)", chapters 4 to 7: its GPTModel's state dict.
BOOK = Layout(
    name="the book's GPTModel",
    ignored=(".att.mask",),
    own_head=True,
    rows=(
        _row("transformer.wte.weight", "tok_emb.weight"),
        _row("transformer.wpe.weight", "pos_emb.weight"),
        _row("transformer.h.N.ln_1.weight", "trf_blocks.N.norm1.scale"),
        _row("transformer.h.N.ln_1.bias", "trf_blocks.N.norm1.shift"),
        _row(
            "transformer.h.N.attn.c_attn.weight",
            "trf_blocks.N.att.W_query.weight",
            "trf_blocks.N.att.W_key.weight",
            "trf_blocks.N.att.W_value.weight",
        ),
        _row(
            "transformer.h.N.attn.c_attn.bias",
            "trf_blocks.N.att.W_query.bias",
            "trf_blocks.N.att.W_key.bias",
            "trf_blocks.N.att.W_value.bias",
        ),
        _row("transformer.h.N.attn.c_proj.weight", "trf_blocks.N.att.out_proj.weight"),
        _row("transformer.h.N.attn.c_proj.bias", "trf_blocks.N.att.out_proj.bias"),
        _row("transformer.h.N.ln_2.weight", "trf_blocks.N.norm2.scale"),
        _row("transformer.h.N.ln_2.bias", "trf_blocks.N.norm2.shift"),
        _row("transformer.h.N.mlp.c_fc.weight", "trf_blocks.N.ff.layers.0.weight"),
        _row("transformer.h.N.mlp.c_fc.bias", "trf_blocks.N.ff.layers.0.bias"),
        _row("transformer.h.N.mlp.c_proj.weight", "trf_blocks.N.ff.layers.2.weight"),
        _row("transformer.h.N.mlp.c_proj.bias", "trf_blocks.N.ff.layers.2.bias"),
        _row("transformer.ln_f.weight", "final_norm.scale"),
        _row("transformer.ln_f.bias", "final_norm.shift"),
        _row("lm_head.weight", "out_head.weight"),
        _row("score.weight", "out_head.weight"),
        _row("score.bias", "out_head.bias"),  # the book's classifiers have one
    ),
)

OPENAI = Layout(
    name="OpenAI's TensorFlow GPT-2",
    zero_biases=True,
    rows=(
        _row("transformer.wte.weight", "model/wte"),
        _row("transformer.wpe.weight", "model/wpe"),
        _row("transformer.h.N.ln_1.weight", "model/hN/ln_1/g"),
        _row("transformer.h.N.ln_1.bias", "model/hN/ln_1/b"),
        _row("transformer.h.N.attn.c_attn.weight", "model/hN/attn/c_attn/w", stored="kernel"),
        _row("transformer.h.N.attn.c_attn.bias", "model/hN/attn/c_attn/b"),
        _row("transformer.h.N.attn.c_proj.weight", "model/hN/attn/c_proj/w", stored="kernel"),
        _row("transformer.h.N.attn.c_proj.bias", "model/hN/attn/c_proj/b"),
        _row("transformer.h.N.ln_2.weight", "model/hN/ln_2/g"),
        _row("transformer.h.N.ln_2.bias", "model/hN/ln_2/b"),
        _row("transformer.h.N.mlp.c_fc.weight", "model/hN/mlp/c_fc/w", stored="kernel"),
        _row("transformer.h.N.mlp.c_fc.bias", "model/hN/mlp/c_fc/b"),
        _row("transformer.h.N.mlp.c_proj.weight", "model/hN/mlp/c_proj/w", stored="kernel"),
        _row("transformer.h.N.mlp.c_proj.bias", "model/hN/mlp/c_proj/b"),
        _row("transformer.ln_f.weight", "model/ln_f/g"),
        _row("transformer.ln_f.bias", "model/ln_f/b"),
    ),
)

GGUF_GPT2 = Layout(
    name="GGUF's gpt2",
    zero_biases=True,
    rows=(
        _row("transformer.wte.weight", "token_embd.weight"),
        _row("transformer.wpe.weight", "position_embd.weight"),
        _row("transformer.h.N.ln_1.weight", "blk.N.attn_norm.weight"),
        _row("transformer.h.N.ln_1.bias", "blk.N.attn_norm.bias"),
        _row("transformer.h.N.attn.c_attn.weight", "blk.N.attn_qkv.weight"),
        _row("transformer.h.N.attn.c_attn.bias", "blk.N.attn_qkv.bias"),
        _row("transformer.h.N.attn.c_proj.weight", "blk.N.attn_output.weight"),
        _row("transformer.h.N.attn.c_proj.bias", "blk.N.attn_output.bias"),
        _row("transformer.h.N.ln_2.weight", "blk.N.ffn_norm.weight"),
        _row("transformer.h.N.ln_2.bias", "blk.N.ffn_norm.bias"),
        _row("transformer.h.N.mlp.c_fc.weight", "blk.N.ffn_up.weight"),
        _row("transformer.h.N.mlp.c_fc.bias", "blk.N.ffn_up.bias"),
        _row("transformer.h.N.mlp.c_proj.weight", "blk.N.ffn_down.weight"),
        _row("transformer.h.N.mlp.c_proj.bias", "blk.N.ffn_down.bias"),
        _row("transformer.ln_f.weight", "output_norm.weight"),
        _row("transformer.ln_f.bias", "output_norm.bias"),
        _row("lm_head.weight", "output.weight"),
    ),
)

GGUF_LLAMA = Layout(
    name="GGUF's llama",
    rows=(
        _row("transformer.wte.weight", "token_embd.weight"),
        _row("transformer.h.N.ln_1.weight", "blk.N.attn_norm.weight"),
        TensorRow(
            "transformer.h.N.attn.c_attn.weight",
            (
                FileTensor("blk.N.attn_q.weight", "interleaved"),
                FileTensor("blk.N.attn_k.weight", "interleaved"),
                FileTensor("blk.N.attn_v.weight"),
            ),
        ),
        _row("transformer.h.N.attn.c_proj.weight", "blk.N.attn_output.weight"),
        _row("transformer.h.N.ln_2.weight", "blk.N.ffn_norm.weight"),
        _row("transformer.h.N.mlp.c_fc.weight", "blk.N.ffn_gate.weight", "blk.N.ffn_up.weight"),
        _row("transformer.h.N.mlp.c_proj.weight", "blk.N.ffn_down.weight"),
        _row("transformer.ln_f.weight", "output_norm.weight"),
        _row("lm_head.weight", "output.weight"),
    ),
)
