"""Model families: a row each, with all differences outside of the network.

A new family is a row here, a config reader beside `llama_config.py`, a table of tensor names in
`layouts.py`, the switches of `GPTConfig`, and a parity test.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gptmill.checkpoint import gpt2_config, llama_config
from gptmill.checkpoint.layouts import (
    BOOK,
    GGUF_GPT2,
    GGUF_LLAMA,
    HUGGING_FACE_GPT2,
    HUGGING_FACE_LLAMA,
    Layout,
)
from gptmill.model.gpt import Family, GPTConfig


@dataclass(frozen=True, kw_only=True)
class FamilyTraits:
    """The traits of a family. Its key is Hugging Face's `model_type` and GGUF's architecture."""

    title: str
    """The name on model cards and in messages."""
    causal_lm: str
    """Hugging Face's class of a language model."""
    classifier: str
    """Hugging Face's class of a classifier."""
    read_config: Callable[[Mapping[str, Any]], GPTConfig]
    write_config: Callable[[GPTConfig], dict[str, Any]]
    hugging_face: Layout
    gguf: Layout
    gguf_norm_eps: str
    """The metadata key of the norms' epsilon, after the architecture."""
    conv1d: bool
    """Hugging Face stores the blocks' matrices as (in, out)."""
    book: Layout | None = None
    """The layout in the book's GPTModel, which is a GPT-2."""


FAMILIES: Mapping[Family | str, FamilyTraits] = {
    "gpt2": FamilyTraits(
        title="GPT-2",
        causal_lm="GPT2LMHeadModel",
        classifier="GPT2ForSequenceClassification",
        read_config=gpt2_config.read,
        write_config=gpt2_config.write,
        hugging_face=HUGGING_FACE_GPT2,
        gguf=GGUF_GPT2,
        gguf_norm_eps="attention.layer_norm_epsilon",
        conv1d=True,
        book=BOOK,
    ),
    "llama": FamilyTraits(
        title="Llama",
        causal_lm="LlamaForCausalLM",
        classifier="LlamaForSequenceClassification",
        read_config=llama_config.read,
        write_config=llama_config.write,
        hugging_face=HUGGING_FACE_LLAMA,
        gguf=GGUF_LLAMA,
        gguf_norm_eps="attention.layer_norm_rms_epsilon",
        conv1d=False,
    ),
}


def family_of(config: GPTConfig) -> FamilyTraits:
    """Return the row of a model's family."""
    return FAMILIES[config.family]
