"""State dicts of "Build a Large Language Model (From Scratch)".

Each `.pth` file belongs to a chapter of the book: chapter 5 saves a GPTModel alone or with its
optimizer, chapter 6 a classifier, chapter 7 an assistant. A state dict does not record the number
of attention heads; it is derived from GPT-2's sizes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptmill.checkpoint.layouts import BOOK
from gptmill.checkpoint.weights import (
    Shape,
    Taken,
    Tensors,
    named_tensors,
    of_dict,
    read_pickle,
)
from gptmill.model.gpt import SIZES, GPTConfig

HEAD, HEAD_BIAS = "out_head.weight", "out_head.bias"
EMBEDDING, LAST_SHIFT = "tok_emb.weight", "final_norm.shift"
# Tensors that determine the config, with their numbers of axes.
NEEDED = {
    EMBEDDING: 2,
    "pos_emb.weight": 2,
    "trf_blocks.0.ff.layers.0.weight": 2,
    HEAD: 2,
    LAST_SHIFT: 1,
}
GPT2_HEAD_DIM = 64


def open_book(path: Path, *, n_heads: int | None) -> tuple[GPTConfig, Tensors, int | None]:
    """Return config, tensors and class count of a book file.

    The class count is None for a language model. Raises ValueError if the file does not hold a
    model of the book, or if `n_heads` must be given.
    """
    content, mapped = read_pickle(path)
    state = _state(path, content)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    n_classes = _n_classes(shapes)
    if n_classes == 1:
        raise ValueError(
            f"{path}: {HEAD} gives a single score; allowed are 2 or more exclusive classes"
        )
    config = _config(path, shapes, n_heads)
    if n_classes is not None:
        _fold_bias(path, state)
    elif not torch.equal(state[HEAD], state[EMBEDDING]):
        config = replace(config, tie_weights=False)
    # Tensors computed by _fold_bias are not pages of the file.
    computed = {name for name in (LAST_SHIFT, HEAD_BIAS) if n_classes is not None}
    tensors = of_dict(path, state, mapped=mapped)

    def take(name: str) -> Taken:
        taken = tensors.take(name)
        return taken._replace(mapped=taken.mapped and name not in computed)

    return config, Tensors(path, tensors.shapes, take), n_classes


def _state(path: Path, content: dict[Any, Any]) -> dict[str, Tensor]:
    state = named_tensors(path, content)
    if any(".lora." in name for name in state):
        raise ValueError(f"{path} holds LoRA layers; merge them into the weights and save again")
    for name, n_axes in NEEDED.items():
        if name not in state or state[name].ndim != n_axes or not state[name].numel():
            problem = "is missing" if name not in state else f"has shape {tuple(state[name].shape)}"
            raise ValueError(f"{path} is not a state dict of the book's GPTModel: {name} {problem}")
    for name, tensor in state.items():
        if not tensor.is_floating_point() and not name.endswith(BOOK.ignored):
            raise ValueError(f"{path}: {name} has type {tensor.dtype}; allowed are float types")
    return state


def _n_classes(shapes: dict[str, Shape]) -> int | None:
    """Return the class count of a classification head, or None.

    A head is a classification head if it has a bias, or a different number of rows than the
    embedding.
    """
    if HEAD_BIAS in shapes or shapes[HEAD][0] != shapes[EMBEDDING][0]:
        return shapes[HEAD][0]
    return None


def _config(path: Path, shapes: dict[str, Shape], n_heads: int | None) -> GPTConfig:
    blocks = {name.split(".")[1] for name in shapes if name.startswith("trf_blocks.")}
    vocab_size, emb_dim = shapes[EMBEDDING]
    ff_dim = shapes["trf_blocks.0.ff.layers.0.weight"][0]
    try:
        return GPTConfig(
            vocab_size=vocab_size,
            context_length=shapes["pos_emb.weight"][0],
            emb_dim=emb_dim,
            n_layers=len(blocks),
            n_heads=_heads(emb_dim, len(blocks)) if n_heads is None else n_heads,
            hidden_dim=None if ff_dim == 4 * emb_dim else ff_dim,
            drop_rate=0.1,
            qkv_bias="trf_blocks.0.att.W_query.bias" in shapes,
            tie_weights=True,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _heads(emb_dim: int, n_layers: int) -> int:
    for size in SIZES.values():
        if (size.emb_dim, size.n_layers) == (emb_dim, n_layers):
            return size.n_heads
    if emb_dim % GPT2_HEAD_DIM:
        raise ValueError(
            f"the number of heads is not in the file, and no GPT-2 size has emb_dim {emb_dim}; "
            "set n_heads"
        )
    return emb_dim // GPT2_HEAD_DIM


def _fold_bias(path: Path, state: dict[str, Tensor]) -> None:
    """Fold the classification head's bias into the last norm's shift.

    For head weights W with linearly independent rows, bias b and the pseudo-inverse W^+:
    W (x + W^+ b) = W x + b. Hugging Face's classification head has no bias, and with the folded
    shift gives the same scores. Changes `state` in place.
    """
    bias = state.get(HEAD_BIAS)
    weight = state[HEAD].double()  # (K, C)
    folded = torch.zeros(weight.shape[1], dtype=torch.float64)
    if bias is not None:
        folded = torch.linalg.pinv(weight) @ bias.double()
        if not torch.allclose(weight @ folded, bias.double(), rtol=1e-6, atol=1e-6):
            raise ValueError(
                f"{path}: the rows of {HEAD} are linearly dependent, and the bias cannot be "
                "folded into the norm before the head; train the head without a bias"
            )
    state[LAST_SHIFT] = (state[LAST_SHIFT].double() + folded).to(state[LAST_SHIFT].dtype)
    state[HEAD_BIAS] = torch.zeros(weight.shape[0])
