"""What the tests of decoding share: prompts, models that do not repeat themselves, a reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gptmill.checkpoint.layouts import HUGGING_FACE_GPT2
from gptmill.checkpoint.mapping import read_state
from gptmill.checkpoint.weights import of_dict
from gptmill.generation.decoder import GenerationConfig
from gptmill.model.gpt import GPT, Llama
from tests.support.tiny import tiny_config, tiny_gpt

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

PROMPTS = [[5, 6, 7], [9], list(range(40, 52)), [5, 6, 7, 8]]
FAMILIES = ["gpt2", "llama"]


def greedy(max_new_tokens: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=max_new_tokens, temperature=0.0, top_k=0, top_p=1.0)


def babbler(context_length: int = 32, family: str = "gpt2") -> GPT:
    """Return a model that does not repeat itself: tied random weights soon would."""
    config = tiny_config(context_length=context_length, tie_weights=False)
    if family == "llama":
        llama = Llama(n_kv_heads=1, rope_theta=100.0)
        config = replace(config, qkv_bias=False, hidden_dim=40, llama=llama)
    return tiny_gpt(config, seed=2)


def theirs_of(*, seed: int, spread: float) -> GPT2LMHeadModel:
    from transformers import GPT2Config, GPT2LMHeadModel  # the GPU tests do without

    torch.manual_seed(seed)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=317,
            n_positions=64,
            n_embd=24,
            n_layer=2,
            n_head=3,
            bos_token_id=316,
            eos_token_id=316,
            tie_word_embeddings=False,
        )
    ).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn(parameter.shape), alpha=spread)
    return theirs


def as_ours(theirs: GPT2LMHeadModel) -> GPT:
    model = GPT(tiny_config(context_length=64, tie_weights=False))
    tensors = of_dict(Path("theirs"), dict(theirs.state_dict()), mapped=False)
    model.load_state_dict(read_state(HUGGING_FACE_GPT2, model.config, tensors))
    return model.eval()
