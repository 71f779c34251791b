"""Checkpoints: Hugging Face folders, ours and everyone's.

A folder holds `model.safetensors`, `config.json`, `generation_config.json` and the tokenizer's
files. Hugging Face's tools open our folders, and we open theirs and the hub's. Names and shapes are
checked before any tensor is read or built; the tables are in layouts.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gptmill.checkpoint.families import family_of
from gptmill.checkpoint.hf_config import (
    SpecialIds,
    read_config,
    read_config_file,
    to_hugging_face,
)
from gptmill.checkpoint.layouts import Layout
from gptmill.checkpoint.mapping import (
    check,
    file_tensors,
    meta_model,
    read_state,
)
from gptmill.checkpoint.weights import SAVED_DTYPES, open_folder, save_safetensors
from gptmill.files import checked, write_json
from gptmill.model.gpt import GPT, GPTClassifier, GPTConfig
from gptmill.tokenizer.huggingface import read_stop_ids
from gptmill.tokenizer.tokenizer import Tokenizer

__all__ = [
    "check_weights",
    "layout_of",
    "load_causal_lm",
    "load_classifier",
    "read_class_names",
    "read_config",
    "read_special_ids",
    "save_causal_lm",
    "save_classifier",
    "special_ids",
]


SINGLE_LABEL = "single_label_classification"


def layout_of(config: GPTConfig) -> Layout:
    """Return Hugging Face's layout of a model."""
    return family_of(config).hugging_face


def save_causal_lm(
    folder: Path,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    chat_template: str | None = None,
    dtype: torch.dtype = torch.float32,
    ids: SpecialIds | None = None,
) -> None:
    """Save a model for `AutoModelForCausalLM`, in a folder that is created if missing.

    Weights are rounded to `dtype`. `ids` replace the tokenizer's special ids in the config.
    """
    ids = special_ids(tokenizer) if ids is None else ids
    _save(folder, model, {"architectures": [family_of(model.config).causal_lm]}, ids, dtype)
    write_json(folder / "generation_config.json", ids.named())
    tokenizer.save(folder, context_length=model.config.context_length, chat_template=chat_template)


def save_classifier(
    folder: Path,
    model: GPTClassifier,
    tokenizer: Tokenizer,
    *,
    class_names: Sequence[str],
    dtype: torch.dtype = torch.float32,
    ids: SpecialIds | None = None,
) -> None:
    """Save a classifier with class names for `AutoModelForSequenceClassification`.

    Transformers finds the last token of a row by searching for the padding id, `<|endoftext|>`:
    rows are padded on the right and never end in a real `<|endoftext|>`.
    """
    assert len(class_names) == model.score.out_features, "each class needs a name"
    classes = {
        "architectures": [family_of(model.config).classifier],
        "problem_type": SINGLE_LABEL,
        "id2label": {str(index): name for index, name in enumerate(class_names)},
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    _save(folder, model, classes, special_ids(tokenizer) if ids is None else ids, dtype)
    tokenizer.save(folder, context_length=model.config.context_length)


def special_ids(tokenizer: Tokenizer, ends: Iterable[int] = ()) -> SpecialIds:
    """Return the special ids of a tokenizer for config.json, with further `ends` of a text."""
    eos = tuple(dict.fromkeys((tokenizer.eos_id, *ends)))
    return SpecialIds(bos=tokenizer.bos_id, eos=eos, pad=tokenizer.pad_id)


def read_special_ids(folder: Path, tokenizer: Tokenizer) -> SpecialIds:
    """Read the special ids of a folder; the tokenizer's ids stand for missing ids."""
    path = folder / "config.json"
    content = read_config_file(path)
    bos, pad = (
        checked(int | None, content.get(name), f"{path}: {name}")
        for name in ("bos_token_id", "pad_token_id")
    )
    return SpecialIds(
        bos=tokenizer.bos_id if bos is None else bos,
        eos=read_stop_ids(folder) or (tokenizer.eos_id,),
        pad=tokenizer.pad_id if pad is None else pad,
    )


def read_class_names(folder: Path) -> list[str]:
    """Read the class names of the classifier in `folder`, in the order of the scores."""
    path = folder / "config.json"
    content = read_config_file(path)
    # transformers omits its default names.
    names = content.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    checked(dict[str, str], names, f"{path}: id2label")
    if sorted(names) != sorted(str(index) for index in range(len(names))):
        raise ValueError(f"{path}: id2label is {names!r}; allowed is a name for each class id")
    _check_problem(path, content.get("problem_type"), len(names))
    return [names[str(index)] for index in range(len(names))]


def _check_problem(path: Path, problem: Any, n_classes: int) -> None:
    """Raise ValueError unless the scores are of exclusive classes.

    Transformers reads a missing problem_type with a single score as regression.
    """
    inferred = "regression" if n_classes == 1 else SINGLE_LABEL
    problem = inferred if problem is None else problem
    if problem != SINGLE_LABEL or n_classes < 2:
        raise ValueError(
            f"{path}: problem_type is {problem!r} with {n_classes} labels, and the scores are "
            f"not those of exclusive classes; allowed is {SINGLE_LABEL!r} with 2 or more labels: "
            "use transformers for this model"
        )


def check_weights(folder: Path, *, n_classes: int | None = None) -> GPTConfig:
    """Check names and shapes of the tensors in `folder` against config.json; return the config.

    Raises ValueError naming tensors that are missing, unknown or of a wrong shape. With
    `n_classes`, the folder must hold a classifier.
    """
    config = read_config(folder)
    check(layout_of(config), config, open_folder(folder), n_classes=n_classes)
    return config


def load_causal_lm(
    folder: Path,
    *,
    drop_rate: float | None = None,
    dtype: torch.dtype = torch.float32,
    mapped: bool = False,
) -> GPT:
    """Load the GPT in `folder`, in `dtype` on the CPU and in eval mode.

    `drop_rate` replaces the config's dropout in training. A `mapped` model loads at once and reads
    weights from the file on first use: for inference or conversion, not for training. The file must
    not be modified while mapped; replacing the file is harmless.
    """
    model = _load(folder, None, drop_rate=drop_rate, dtype=dtype, mapped=mapped)
    assert isinstance(model, GPT)
    return model


def load_classifier(
    folder: Path,
    *,
    drop_rate: float | None = None,
    dtype: torch.dtype = torch.float32,
    mapped: bool = False,
) -> tuple[GPTClassifier, list[str]]:
    """Load the classifier in `folder` and the class names, as `load_causal_lm` does."""
    class_names = read_class_names(folder)
    n_classes = len(class_names)
    model = _load(folder, n_classes, drop_rate=drop_rate, dtype=dtype, mapped=mapped)
    assert isinstance(model, GPTClassifier)
    return model, class_names


def _load(
    folder: Path,
    n_classes: int | None,
    *,
    drop_rate: float | None,
    dtype: torch.dtype,
    mapped: bool,
) -> GPT | GPTClassifier:
    config = read_config(folder)
    tensors = open_folder(folder)
    check(layout_of(config), config, tensors, n_classes=n_classes)
    state = read_state(
        layout_of(config), config, tensors, n_classes=n_classes, dtype=dtype, mapped=mapped
    )
    model = meta_model(
        config if drop_rate is None else replace(config, drop_rate=drop_rate), n_classes
    )
    model.load_state_dict(state, assign=True)
    return model.eval()


def _save(
    folder: Path,
    model: GPT | GPTClassifier,
    own: Mapping[str, Any],
    ids: SpecialIds,
    dtype: torch.dtype,
) -> None:
    """Save the weights, then the config."""
    name = next((name for name, known in SAVED_DTYPES.items() if known is dtype), None)
    if name is None:
        raise ValueError(f"weights are not saved as {dtype}; allowed are {', '.join(SAVED_DTYPES)}")
    tensors = file_tensors(layout_of(model.config), model)
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "model.safetensors", tensors, dtype)
    write_json(folder / "config.json", {**to_hugging_face(model.config, ids, name), **own})
