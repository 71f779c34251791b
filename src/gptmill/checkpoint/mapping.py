"""Conversion between file tensors and model tensors, by layout.

Every name and every shape is checked before large data is read. Reading fills each model tensor in
place, a range of rows at a time: besides the model's own weights, memory never holds more than the
file's pages of a single tensor. Memory-mapped reading leaves the values in the file.

Letters: C embedding width, G key-value heads, D width of one head, F width of the feed-forward,
V vocabulary, K classes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from gptmill.checkpoint.layouts import FileTensor, Layout, Stored
from gptmill.checkpoint.weights import (
    Shape,
    Tensors,
    check_finite,
    drop_pages,
    new_tensor,
)
from gptmill.model.gpt import GPT, GPTClassifier, GPTConfig

EMBEDDING = "transformer.wte.weight"
SlotKind = Literal["value", "zeros", "tied"]


@dataclass(frozen=True)
class Slot:
    """A file tensor, holding rows of a model tensor.

    The rows are `start` to `stop`. A tensor that the model lacks is `zeros`, or a copy of the
    embedding: `tied`.
    """

    name: str
    shape: Shape
    stored: Stored
    ours: str
    start: int
    stop: int
    kind: SlotKind


def meta_model(config: GPTConfig, n_classes: int | None = None) -> GPT | GPTClassifier:
    """Build a model on the meta device, without weight memory."""
    with torch.device("meta"):
        return GPT(config) if n_classes is None else GPTClassifier(config, n_classes)


@lru_cache(maxsize=8)
def model_shapes(config: GPTConfig, n_classes: int | None) -> Mapping[str, Shape]:
    """Return the tensor shapes of a model's state dict."""
    state = meta_model(config, n_classes).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def slots(layout: Layout, config: GPTConfig, n_classes: int | None = None) -> list[Slot]:
    """Return the slots of all file tensors in a layout.

    The head of a tied model has a slot too, although most files leave it out. Raises
    ValueError where the layout has no slot for a model tensor.
    """
    shapes = model_shapes(config, n_classes)
    absent = _absent(layout, config, n_classes)
    layout_slots: list[Slot] = []
    for row in layout.rows:
        for layer in range(config.n_layers) if ".N." in row.ours else (0,):
            ours = row.ours.replace(".N.", f".{layer}.")
            if ours in shapes:
                layout_slots += _parts(row.parts, ours, shapes[ours], config, layer, "value")
            elif row.ours in absent:
                shape, kind = absent[row.ours]
                layout_slots += _parts(row.parts, ours, shape, config, layer, kind)
    covered = {slot.ours for slot in layout_slots}
    if shapes.keys() - covered:
        missing = ", ".join(sorted(shapes.keys() - covered)[:3])
        raise ValueError(f"{layout.name} cannot hold {missing}; choose a different format")
    return layout_slots


def _absent(
    layout: Layout, config: GPTConfig, n_classes: int | None
) -> dict[str, tuple[Shape, SlotKind]]:
    """Return tensors that only files hold, with shape and kind.

    The kind is the content required of the tensor: zeros, or a copy of the embedding.
    """
    absent: dict[str, tuple[Shape, SlotKind]] = {}
    if layout.zero_biases and not config.qkv_bias:
        width = config.emb_dim + 2 * config.n_kv_heads * config.head_dim
        absent["transformer.h.N.attn.c_attn.bias"] = ((width,), "zeros")
    if n_classes is not None:
        absent["score.bias"] = ((n_classes,), "zeros")
    elif config.tie_weights:
        absent["lm_head.weight"] = ((config.vocab_size, config.emb_dim), "tied")
    return absent


def _parts(
    parts: tuple[FileTensor, ...],
    ours: str,
    shape: Shape,
    config: GPTConfig,
    layer: int,
    kind: SlotKind,
) -> Iterator[Slot]:
    """Yield a slot for each part of a model tensor."""
    start = 0
    for part, width in zip(parts, _widths(ours, len(parts), shape, config), strict=True):
        name = part.name.replace("N", str(layer))
        stored = _stored_shape((width, *shape[1:]), part.stored)
        yield Slot(name, stored, part.stored, ours, start, start + width, kind)
        start += width
    assert start == shape[0], f"the parts of {ours} do not add up"


def _widths(ours: str, n_parts: int, shape: Shape, config: GPTConfig) -> tuple[int, ...]:
    """Return the row counts of a model tensor's parts."""
    if n_parts == 1:
        return (shape[0],)
    if ".c_attn." in ours:
        kv_width = config.n_kv_heads * config.head_dim
        return (config.emb_dim, kv_width, kv_width)
    return (config.ff_dim,) * n_parts


def _stored_shape(shape: Shape, stored: Stored) -> Shape:
    if stored == "transposed":
        return shape[::-1]
    return (1, *shape[::-1]) if stored == "kernel" else shape


# Checking.


def full_names(layout: Layout, names: Mapping[str, object]) -> dict[str, str]:
    """Map full tensor names to the names in a file.

    Constants are left out. A file saved from the body alone, for example GPT-2 on the Hugging Face
    Hub, has names without the body's prefix.
    """
    heads = ("lm_head.", "score.", layout.body)
    return {
        name if not layout.body or name.startswith(heads) else f"{layout.body}{name}": name
        for name in names
        if not name.endswith(layout.ignored)
    }


def check(
    layout: Layout,
    config: GPTConfig,
    tensors: Tensors,
    *,
    n_classes: int | None = None,
    asks: str = "config.json requires",
) -> None:
    """Raise ValueError for missing, unexpected or wrongly shaped tensors."""
    _check_sizes(layout, config, tensors, asks)
    names = full_names(layout, tensors.shapes)
    shapes = {full: tensors.shapes[name] for full, name in names.items()}
    expected = {
        slot.name: slot.shape
        for slot in slots(layout, config, n_classes)
        if slot.kind != "tied" or slot.name in shapes
    }
    problems = _problems(shapes, expected, asks)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError(f"{tensors.where}: {'; '.join(problems[:3])}{more}")


def _check_sizes(layout: Layout, config: GPTConfig, tensors: Tensors, asks: str) -> None:
    """Raise ValueError for sizes beyond the tensors: nothing has been built yet."""
    names = " ".join(full_names(layout, tensors.shapes))
    block = next(part.name for row in layout.rows for part in row.parts if "N" in part.name)
    prefix, _, rest = block.partition("N")
    n_blocks = len(set(re.findall(rf"{re.escape(prefix)}(\d+){re.escape(rest[0])}", names)))
    if config.n_layers > len(tensors.shapes):
        raise ValueError(
            f"{tensors.where}: {asks} {config.n_layers} blocks, and the file has {n_blocks}"
        )
    longest = max((size for shape in tensors.shapes.values() for size in shape), default=0)
    for name in ("vocab_size", "emb_dim", "ff_dim", "context_length"):
        size = getattr(config, name)
        if size > longest and not (name == "context_length" and config.llama):
            raise ValueError(
                f"{tensors.where}: {asks} {name} {size}, and the file's tensors have at most "
                f"{longest} rows or columns"
            )


def _problems(shapes: Mapping[str, Shape], expected: Mapping[str, Shape], asks: str) -> list[str]:
    problems: list[str] = []
    for name in [*expected, *sorted(shapes.keys() - expected.keys())]:
        if name not in shapes:
            problems.append(f"{name} {expected[name]} is missing")
        elif name not in expected:
            problems.append(f"{name} {shapes[name]} is not in this model")
        elif shapes[name] != expected[name]:
            problems.append(f"{name} has shape {shapes[name]}, {asks} {expected[name]}")
    return problems


# Reading and writing.


def read_state(
    layout: Layout,
    config: GPTConfig,
    tensors: Tensors,
    *,
    n_classes: int | None = None,
    dtype: torch.dtype = torch.float32,
    mapped: bool = False,
) -> dict[str, Tensor]:
    """Load a model's state dict from checked tensors.

    Each tensor gets memory of its own. With `mapped`, a tensor stored in the model's row order,
    also transposed, stays in the file, and the pages are read on use. Raises ValueError where a
    `zeros` tensor is not zero, or a `tied` tensor differs from the embedding.
    """
    names = full_names(layout, tensors.shapes)
    shapes = model_shapes(config, n_classes)
    state: dict[str, Tensor] = {}
    present = [slot for slot in slots(layout, config, n_classes) if slot.name in names]
    for slot in present:
        tensor, in_file = tensors.take(names[slot.name])
        if not tensor.is_floating_point():
            raise ValueError(
                f"{tensors.where}: {slot.name} has type {tensor.dtype}; allowed are float types"
            )
        if mapped and in_file and _fits(slot, shapes) and tensor.dtype == dtype:
            state[slot.ours] = _model_view(tensor, slot.stored)
            continue
        if slot.kind == "value":
            target = state.get(slot.ours)
            if target is None:
                target = state[slot.ours] = new_tensor(shapes[slot.ours], dtype)
            rows = target[slot.start : slot.stop]
            _fill(rows, tensor, slot.stored, config.head_dim)
            check_finite(rows, tensor, f"{tensors.where}: {slot.name}")
        elif slot.kind == "zeros" and bool(tensor.any()):
            raise ValueError(
                f"{tensors.where}: {slot.name} is not zero, but config.json has no qkv_bias"
            )
        elif slot.kind == "tied" and not torch.equal(tensor.to(dtype), state[EMBEDDING]):
            embedding = next(slot.name for slot in present if slot.ours == EMBEDDING)
            raise ValueError(
                f"{tensors.where}: {slot.name} differs from {embedding}, but config.json "
                "ties them; set tie_word_embeddings to false"
            )
        if in_file:
            drop_pages(tensor)
    assert state.keys() == shapes.keys(), "the tensors were not checked"
    return state


def _fits(slot: Slot, shapes: Mapping[str, Shape]) -> bool:
    """Return whether a file tensor can be used in place.

    It must hold all rows of a model tensor, in the model's order. Tensors that only files hold
    (`zeros`, `tied`) are compared and dropped.
    """
    if slot.kind != "value" or slot.stored == "interleaved":
        return False
    return (slot.start, slot.stop) == (0, shapes[slot.ours][0])


def _model_view(tensor: Tensor, stored: Stored) -> Tensor:
    """View a file tensor with the model's axes."""
    if stored == "transposed":
        return tensor.t()
    return tensor[0].t() if stored == "kernel" else tensor


def _fill(rows: Tensor, tensor: Tensor, stored: Stored, head_dim: int) -> None:
    """Copy a file tensor into rows of a model tensor."""
    if stored == "interleaved":
        width = tensor.shape[1:]
        tensor = tensor.view(-1, head_dim // 2, 2, *width).transpose(1, 2)
        rows = rows.view(-1, 2, head_dim // 2, *width)
    rows.copy_(_model_view(tensor, stored))


def file_tensors(layout: Layout, model: GPT | GPTClassifier) -> dict[str, Tensor]:
    """Return a model's tensors in a layout, views where possible."""
    n_classes = model.score.out_features if isinstance(model, GPTClassifier) else None
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    config = model.config
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = model_shapes(config, n_classes)
    assert shapes == expected, "a model with wrapped or added modules cannot be saved"
    out: dict[str, Tensor] = {}
    for slot in slots(layout, config, n_classes):
        if slot.kind == "value":
            out[slot.name] = _file_form(
                state[slot.ours][slot.start : slot.stop], slot.stored, config.head_dim
            )
        elif slot.kind == "zeros":
            out[slot.name] = state[EMBEDDING].new_zeros(slot.shape)
        elif layout.own_head:
            out[slot.name] = state[EMBEDDING]
    return out


def _file_form(rows: Tensor, stored: Stored, head_dim: int) -> Tensor:
    """Return rows of a model tensor as stored in files."""
    if stored == "transposed":
        return rows.t()
    if stored == "kernel":
        return rows.t()[None]
    if stored == "interleaved":
        return rows.view(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
    return rows
