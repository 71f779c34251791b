"""Checks of the paths on the command line.

A model's path must be a checkpoint folder of the right kind; an output path must be free.
"""

from pathlib import Path
from typing import Literal

ModelKind = Literal["language model", "classifier"]

HINTS: dict[ModelKind, str] = {
    "language model": "run a language model with `gptmill generate`, `chat` or `serve`",
    "classifier": "run a classifier with `gptmill classify`",
}


def check_model(folder: Path, expected: ModelKind) -> None:
    """Raise ValueError unless `folder` holds a model of kind `expected`."""
    kind = check_any_model(folder)
    if kind != expected:
        raise ValueError(f"{folder} holds a {kind}, not a {expected}; {HINTS[kind]}")


def check_any_model(folder: Path) -> ModelKind:
    """Return the kind of model in `folder`.

    Raises ValueError where `folder` is not a checkpoint folder.
    """
    if not folder.exists():
        raise ValueError(f"{folder} does not exist; a model is a folder with a config.json")
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is a file: `gptmill import {folder} OUT` makes a model folder of the file"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(_no_model(folder))
    return _kind(folder)


def check_free(path: Path) -> None:
    """Raise ValueError unless `path` is free for output.

    A free path does not exist or is an empty folder: writing replaces nothing. The parent folder
    must exist.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists already; choose a new path or remove the old content")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"{path.resolve().parent} does not exist; create the folder first")


def _kind(folder: Path) -> ModelKind:
    from gptmill.files import checked, read_object

    path = folder / "config.json"
    names = read_object(path).get("architectures")
    listed = checked(list[str] | None, names, f"{path}: architectures") or []
    is_classifier = any(name.endswith("ForSequenceClassification") for name in listed)
    return "classifier" if is_classifier else "language model"


def _no_model(folder: Path) -> str:
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return f"{folder} is not a model: the folder has no config.json"
    from gptmill.files import read_object

    base = read_object(adapter).get("base_model_name_or_path")
    return (
        f"{folder} holds an adapter, which needs its base model, {base}; "
        "merge both first (PEFT's merge_and_unload) and name the folder of the merged model"
    )
