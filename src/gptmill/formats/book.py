"""State dicts of "Build a Large Language Model (From Scratch)": the `.pth` files of its chapters.

Chapter 5 saves a GPTModel alone or with its optimizer, chapter 6 a classifier, chapter 7 an
assistant. A state dict does not say how many heads its attention has; GPT-2's sizes do.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptmill.checkpoint.weights import (
    Shape,
    Taken,
    Tensors,
    of_dict,
    read_pickle,
)
from gptmill.model.gpt import SIZES, GPTConfig

WRAPPERS = ("_orig_mod.", "module.")  # torch.compile's and data parallel training's
HEAD, HEAD_BIAS = "out_head.weight", "out_head.bias"
EMBEDDING, LAST_SHIFT = "tok_emb.weight", "final_norm.shift"
GPT2_HEAD_DIM = 64


def open_book(path: Path, *, n_heads: int | None) -> tuple[GPTConfig, Tensors, int | None]:
    """Open a book's file: the model's shape, its tensors, and of a classifier its classes.

    Raises ValueError where it is something else, or where the number of heads must be given.
    """
    content, mapped = read_pickle(path)
    state = _state(path, content)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    n_classes = _n_classes(shapes)
    config = _config(path, shapes, n_heads)
    if n_classes is not None:
        _fold_bias(path, state)
    elif not torch.equal(state[HEAD], state[EMBEDDING]):
        config = replace(config, tie_weights=False)
    # Tensors that were made here are no pages of the file.
    made = {name for name in (LAST_SHIFT, HEAD_BIAS) if n_classes is not None}
    whole = of_dict(path, state, mapped=mapped)

    def take(name: str) -> Taken:
        taken = whole.take(name)
        return taken._replace(mapped=taken.mapped and name not in made)

    return config, Tensors(path, whole.shapes, take), n_classes


def _state(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    found = content.get("model_state_dict", content)
    state = dict(found) if isinstance(found, dict) else {}
    for wrapper in WRAPPERS:
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    if any(".lora." in name for name in state):
        raise ValueError(f"{path} holds LoRA layers; merge them into their matrices and save again")
    needed = (EMBEDDING, "pos_emb.weight", "trf_blocks.0.ff.layers.0.weight", HEAD, LAST_SHIFT)
    missing = [name for name in needed if not isinstance(state.get(name), Tensor)]
    if missing:
        raise ValueError(f"{path} is no state dict of the book's GPTModel: {missing[0]} is missing")
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds other things than named tensors; allowed are no others")
    return state


def _n_classes(shapes: dict[str, Shape]) -> int | None:
    """Return how many classes a head has that is no language model's: it has a bias."""
    if HEAD_BIAS in shapes or shapes[HEAD][0] != shapes[EMBEDDING][0]:
        return shapes[HEAD][0]
    return None


def _config(path: Path, shapes: dict[str, Shape], n_heads: int | None) -> GPTConfig:
    blocks = {name.split(".")[1] for name in shapes if name.startswith("trf_blocks.")}
    vocab_size, emb_dim = shapes[EMBEDDING]
    wide = shapes["trf_blocks.0.ff.layers.0.weight"][0]
    try:
        return GPTConfig(
            vocab_size=vocab_size,
            context_length=shapes["pos_emb.weight"][0],
            emb_dim=emb_dim,
            n_layers=len(blocks),
            n_heads=_heads(emb_dim, len(blocks)) if n_heads is None else n_heads,
            hidden_dim=None if wide == 4 * emb_dim else wide,
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
            f"the number of heads is not in the file, and emb_dim {emb_dim} is none of GPT-2's; "
            "say n_heads"
        )
    return emb_dim // GPT2_HEAD_DIM


def _fold_bias(path: Path, state: dict[str, Tensor]) -> None:
    """Move the bias b of a classifier's head W into the shift of the norm before it, in place.

    W (x + W^+ b) = W x + b, with the pseudo-inverse, where the rows of W are independent; then
    Hugging Face's head, which has none, gives the same scores.
    """
    bias = state.get(HEAD_BIAS)
    weight = state[HEAD].double()  # (K, C)
    folded = torch.zeros(weight.shape[1], dtype=torch.float64)
    if bias is not None:
        folded = torch.linalg.pinv(weight) @ bias.double()
        if not torch.allclose(weight @ folded, bias.double(), rtol=1e-6, atol=1e-6):
            raise ValueError(
                f"{path}: the rows of {HEAD} depend on each other, so that its bias cannot be "
                "kept; train the head without one"
            )
    state[LAST_SHIFT] = (state[LAST_SHIFT].double() + folded).to(state[LAST_SHIFT].dtype)
    state[HEAD_BIAS] = torch.zeros(weight.shape[0])
