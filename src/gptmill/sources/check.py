"""Raw data as a stage will read it: whatever it could not use is found before it is pinned."""

from collections.abc import Callable
from pathlib import Path

from gptmill.data.splits import read_instructions, read_labelled
from gptmill.formats.importing import check_model
from gptmill.sources.archive import visible_files
from gptmill.tokenizer.tokenizer import Tokenizer

DOCUMENT = ".txt"
MODEL_FILES = ("config.json", ".safetensors", ".bin", ".gguf", ".pth", ".ckpt.index")


def check_files(folder: Path) -> None:
    """Check every file below a `data/` folder by the kind of data its own folder stands for.

    Raises ValueError with the file, what is wrong with it and what is allowed.
    """
    checks: dict[str, Callable[[Path], object]] = {
        "instructions": _each(".json", read_instructions),
        "labelled": _each(".csv", _check_labelled),
        "text": _each(DOCUMENT, check_document),
        "bpe": _check_vocabulary,
        "weights": _check_weights,
    }
    for name, check in checks.items():
        if (folder / name).is_dir():
            check(folder / name)


def check_document(path: Path) -> None:
    """Raise ValueError where a text file is empty, binary or not UTF-8."""
    content = path.read_bytes()
    text = content.decode("utf-8", errors="surrogateescape")
    wrong = next((at for at, char in enumerate(text) if "\udc80" <= char <= "\udcff"), None)
    if "\0" in text:
        raise ValueError(f"{path} is binary, not text: it has a zero byte")
    if wrong is not None:
        line = text.count("\n", 0, wrong) + 1
        raise ValueError(f"{path} is not UTF-8 text (line {line}); save it as UTF-8")
    if not text.strip():
        raise ValueError(f"{path} is empty; a document must have text")


def _each(suffix: str, check: Callable[[Path], object]) -> Callable[[Path], None]:
    def check_all(folder: Path) -> None:
        for path in visible_files(folder):
            if path.suffix != suffix:
                raise ValueError(f"{path} is no {suffix} file; {folder.name} holds nothing else")
            check(path)

    return check_all


def _check_labelled(path: Path) -> None:
    labels = sorted(set(read_labelled(path)["label"]))
    if len(labels) < 2:
        raise ValueError(f"{path} has one label ({labels[0]}); a classifier needs two or more")


def _check_vocabulary(folder: Path) -> None:
    Tokenizer.from_bpe_files(folder / "vocab.bpe", folder / "encoder.json")


def _check_weights(folder: Path) -> None:
    """Check each folder in `weights/` that holds a model, and that at least one does."""
    models = {path.parent for path in visible_files(folder) if path.name.endswith(MODEL_FILES)}
    for found in sorted(models or {folder}):
        check_model(found)
