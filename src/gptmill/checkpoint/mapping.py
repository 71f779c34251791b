"""Tensors of a file to those of a model and back, by a layout's table.

Every name and every shape is accounted for before anything big is read. Reading fills each
tensor of the model in place, rows by rows, so that beside the model's own weights there is never
more in memory than the file's pages of one tensor; or it leaves the values where they are.

Letters: C embedding width, G key-value heads, D width of one head, F width of the feed-forward,
V vocabulary, K classes.
"""

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
    drop_pages,
    new_tensor,
)
from gptmill.model.gpt import GPT, GPTClassifier, GPTConfig

EMBEDDING = "transformer.wte.weight"
SlotKind = Literal["value", "zeros", "tied"]


@dataclass(frozen=True)
class Slot:
    """One tensor of a file: the rows `start` to `stop` of a tensor of ours.

    A tensor that the model lacks is `zeros`, or its embedding once more: `tied`.
    """

    name: str
    shape: Shape
    stored: Stored
    ours: str
    start: int
    stop: int
    kind: SlotKind


def meta_model(config: GPTConfig, n_classes: int | None = None) -> GPT | GPTClassifier:
    """Build a model of shapes, without memory for its weights."""
    with torch.device("meta"):
        return GPT(config) if n_classes is None else GPTClassifier(config, n_classes)


@lru_cache(maxsize=8)
def model_shapes(config: GPTConfig, n_classes: int | None) -> Mapping[str, Shape]:
    """Return the shape of each tensor in the state dict of a model."""
    state = meta_model(config, n_classes).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def slots(layout: Layout, config: GPTConfig, n_classes: int | None = None) -> list[Slot]:
    """Return every tensor that a file of this layout holds for a model of this shape.

    The head of a tied model is among them, though most files leave it out.
    """
    shapes = model_shapes(config, n_classes)
    absent = _absent(layout, config, n_classes)
    found: list[Slot] = []
    for row in layout.rows:
        for layer in range(config.n_layers) if ".N." in row.ours else (0,):
            ours = row.ours.replace(".N.", f".{layer}.")
            if ours in shapes:
                found += _parts(row.parts, ours, shapes[ours], config, layer, "value")
            elif row.ours in absent:
                shape, kind = absent[row.ours]
                found += _parts(row.parts, ours, shape, config, layer, kind)
    covered = {slot.ours for slot in found}
    if shapes.keys() - covered:
        lacking = ", ".join(sorted(shapes.keys() - covered)[:3])
        raise ValueError(f"{layout.name} has no place for {lacking}; choose another format")
    return found


def _absent(
    layout: Layout, config: GPTConfig, n_classes: int | None
) -> dict[str, tuple[Shape, SlotKind]]:
    """Return what a file may hold and the model does not, with its shape and what it must be."""
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
    start = 0
    for part, width in zip(parts, _widths(ours, len(parts), shape, config), strict=True):
        name = part.name.replace("N", str(layer))
        stored = _stored_shape((width, *shape[1:]), part.stored)
        yield Slot(name, stored, part.stored, ours, start, start + width, kind)
        start += width
    assert start == shape[0], f"the parts of {ours} do not add up"


def _widths(ours: str, n_parts: int, shape: Shape, config: GPTConfig) -> tuple[int, ...]:
    """Return how many rows each part of a tensor of ours has."""
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
    """Return each name of a file in full, with the name it has there; constants are left out.

    A body that was saved alone has bare names: the hub's GPT-2 has.
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
    asks: str = "config.json asks for",
) -> None:
    """Raise ValueError with the tensors that are missing, left over or of another shape."""
    names = full_names(layout, tensors.shapes)
    given = {full: tensors.shapes[name] for full, name in names.items()}
    expected = {
        slot.name: slot.shape
        for slot in slots(layout, config, n_classes)
        if slot.kind != "tied" or slot.name in given
    }
    problems = _problems(given, expected, asks)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError(f"{tensors.where}: {'; '.join(problems[:3])}{more}")


def _problems(given: Mapping[str, Shape], expected: Mapping[str, Shape], asks: str) -> list[str]:
    problems: list[str] = []
    for name in [*expected, *sorted(given.keys() - expected.keys())]:
        if name not in given:
            problems.append(f"{name} {expected[name]} is missing")
        elif name not in expected:
            problems.append(f"{name} {given[name]} has no place in this model")
        elif given[name] != expected[name]:
            problems.append(f"{name} is {given[name]}, {asks} {expected[name]}")
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
    """Return the state dict of a model from checked tensors, each in memory of its own.

    With `mapped` a tensor whose values lie in the file as the model wants them, or transposed,
    stays there, and its pages are read when it is used. Raises ValueError where a tensor that the
    model lacks is not what it stands for.
    """
    names = full_names(layout, tensors.shapes)
    shapes = model_shapes(config, n_classes)
    state: dict[str, Tensor] = {}
    wanted = [slot for slot in slots(layout, config, n_classes) if slot.name in names]
    for slot in wanted:
        found, in_file = tensors.take(names[slot.name])
        if mapped and in_file and _fits(slot, shapes[slot.ours]) and found.dtype == dtype:
            state[slot.ours] = _turned(found, slot.stored)
            continue
        if slot.kind == "value":
            whole = state.get(slot.ours)
            if whole is None:
                whole = state[slot.ours] = new_tensor(shapes[slot.ours], dtype)
            _fill(whole[slot.start : slot.stop], found, slot.stored, config.head_dim)
        elif slot.kind == "zeros" and bool(found.any()):
            raise ValueError(
                f"{tensors.where}: {slot.name} is not zero, but config.json has no qkv_bias"
            )
        elif slot.kind == "tied" and not torch.equal(found.to(dtype), state[EMBEDDING]):
            embedding = next(slot.name for slot in wanted if slot.ours == EMBEDDING)
            raise ValueError(
                f"{tensors.where}: {slot.name} differs from {embedding}, but config.json "
                "ties them; set tie_word_embeddings to false there"
            )
        if in_file:
            drop_pages(found)
    assert state.keys() == shapes.keys(), "the tensors were not checked"
    return state


def _fits(slot: Slot, ours: Shape) -> bool:
    """Return whether a tensor of a file is one of ours, whole and in its order."""
    whole = (slot.start, slot.stop) == (0, ours[0])
    return whole and slot.kind == "value" and slot.stored != "interleaved"


def _turned(found: Tensor, stored: Stored) -> Tensor:
    """Return a view of what a file holds with the axes of ours."""
    if stored == "transposed":
        return found.t()
    return found[0].t() if stored == "kernel" else found


def _fill(rows: Tensor, found: Tensor, stored: Stored, head_dim: int) -> None:
    """Write what a file holds into rows of a tensor of ours."""
    if stored == "interleaved":
        width = found.shape[1:]
        found = found.view(-1, head_dim // 2, 2, *width).transpose(1, 2)
        rows = rows.view(-1, 2, head_dim // 2, *width)
    rows.copy_(_turned(found, stored))


def file_tensors(layout: Layout, model: GPT | GPTClassifier) -> dict[str, Tensor]:
    """Return the tensors of a model as a file of this layout holds them, views where it can be."""
    n_classes = model.score.out_features if isinstance(model, GPTClassifier) else None
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    config = model.config
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = model_shapes(config, n_classes)
    assert found == expected, "a model with wrapped or added modules is not saved"
    out: dict[str, Tensor] = {}
    for slot in slots(layout, config, n_classes):
        if slot.kind == "value":
            out[slot.name] = _stored(
                state[slot.ours][slot.start : slot.stop], slot.stored, config.head_dim
            )
        elif slot.kind == "zeros":
            out[slot.name] = state[EMBEDDING].new_zeros(slot.shape)
        elif layout.own_head:
            out[slot.name] = state[EMBEDDING]
    return out


def _stored(rows: Tensor, stored: Stored, head_dim: int) -> Tensor:
    """Return rows of a tensor of ours as a file holds them."""
    if stored == "transposed":
        return rows.t()
    if stored == "kernel":
        return rows.t()[None]
    if stored == "interleaved":
        return rows.view(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
    return rows
