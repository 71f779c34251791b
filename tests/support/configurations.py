"""The model configurations that every way of loading, decoding and exporting is tested with."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from gptmill.checkpoint.checkpoint import save_causal_lm, save_classifier
from gptmill.model.gpt import GPT, GPTClassifier, GPTConfig
from tests.support.forms import gpt2_config, llama_config, random_gpt
from tests.support.tiny import tiny_tokenizer


class Case(NamedTuple):
    """A model, and the form of its file."""

    config: GPTConfig
    dtype: torch.dtype
    stored_head: bool
    """The file of a tied model has a head too, equal to the embedding."""


def _cases() -> Iterator[tuple[str, Case]]:
    configs = {
        f"{family} {bias}{tied}": make(qkv_bias=has_bias, tie_weights=is_tied)
        for family, make, biases in (
            ("gpt2", gpt2_config, {"bias ": True, "no bias ": False}),
            ("llama", llama_config, {"": False}),
        )
        for bias, has_bias in biases.items()
        for tied, is_tied in {"tied": True, "untied": False}.items()
    }
    for name, config in configs.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for stored_head in (False, True) if config.tie_weights else (False,):
                head = " with a stored head" if stored_head else ""
                yield f"{name}{head} {str(dtype)[6:]}", Case(config, dtype, stored_head)


CASES = dict(_cases())


def save_case(folder: Path, case: Case) -> GPT:
    """Save a random model of the case for `load_causal_lm`, and return the model."""
    model = random_gpt(case.config)
    save_causal_lm(folder, model, tiny_tokenizer(), dtype=case.dtype)
    if case.stored_head:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        embedding = next(name for name in tensors if name.endswith(("wte.weight", "tokens.weight")))
        save_file(tensors | {"lm_head.weight": tensors[embedding].clone()}, path, {"format": "pt"})
    return model


def save_classifier_case(folder: Path, case: Case) -> GPTClassifier:
    """Save a random classifier of the case for `load_classifier`, and return the classifier."""
    model = GPTClassifier.from_gpt(random_gpt(case.config), 2).eval()
    names = ["ham", "spam"]
    save_classifier(folder, model, tiny_tokenizer(), class_names=names, dtype=case.dtype)
    return model
