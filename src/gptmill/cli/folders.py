"""What lies at a path: which kind of model, if any; and whether a name is free to write to."""

from pathlib import Path
from typing import Any, Literal

ModelKind = Literal["language model", "classifier"]

HINTS: dict[ModelKind, str] = {
    "language model": "`gptmill generate`, `chat` and `serve` speak with it",
    "classifier": "`gptmill classify` sorts texts with it",
}


def check_model(folder: Path, wanted: ModelKind) -> None:
    """Raise ValueError where `folder` is not a checkpoint folder of the wanted kind."""
    found = check_any_model(folder)
    if found != wanted:
        raise ValueError(f"{folder} holds a {found}, not a {wanted}; {HINTS[found]}")


def check_any_model(folder: Path) -> ModelKind:
    """Return the kind of model in `folder`; raise ValueError where it is no checkpoint folder."""
    if not folder.exists():
        raise ValueError(f"{folder} does not exist; a model is a folder with a config.json")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: `gptmill import {folder} OUT` makes a folder of it")
    if not (folder / "config.json").is_file():
        raise ValueError(_no_model(folder))
    return _kind(folder)


def check_free(path: Path) -> None:
    """Raise ValueError where writing to `path` would replace something, or has no parent."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists already; name a new place, or remove it first")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"{path.resolve().parent} does not exist; make that folder first")


def _kind(folder: Path) -> ModelKind:
    content = _read_object(folder / "config.json")
    names = content.get("architectures") or []
    is_classifier = any(str(name).endswith("ForSequenceClassification") for name in names)
    return "classifier" if is_classifier else "language model"


def _no_model(folder: Path) -> str:
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return f"{folder} is no model: it has no config.json"
    base = _read_object(adapter).get("base_model_name_or_path")
    return (
        f"{folder} holds an adapter, which is no model without its base, {base}; "
        "merge the two first (PEFT's merge_and_unload) and name the folder of the whole model"
    )


def _read_object(path: Path) -> dict[str, Any]:
    from gptmill.files import read_json

    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content
