"""Checks of raw data, with the readers of the stages.

Data unusable for a stage is found before the data is pinned.
"""

from collections.abc import Callable
from pathlib import Path

from gptmill.data.documents import read_document
from gptmill.data.questions import read_questions
from gptmill.data.row_files import read_instructions, read_labelled, trim_label
from gptmill.formats.importing import check_model
from gptmill.sources.archive import visible_files
from gptmill.tokenizer.tokenizer import Tokenizer

DOCUMENT = ".txt"
MODEL_FILES = ("config.json", ".safetensors", ".bin", ".gguf", ".pth", ".ckpt.index")


def check_files(folder: Path) -> None:
    """Check every file of a `data/` folder by kind.

    The name of the subfolder is the kind. Raises ValueError with the file, the fault and the
    allowed content.
    """
    checks: dict[str, Callable[[Path], object]] = {
        "instructions": _each(".json", read_instructions),
        "labelled": _each(".csv", _check_labelled),
        "questions": _each(".jsonl", read_questions),
        "text": _each(DOCUMENT, read_document),
        "bpe": _check_vocabulary,
        "weights": _check_weights,
    }
    for name, check in checks.items():
        if (folder / name).is_dir():
            check(folder / name)


def _each(suffix: str, check: Callable[[Path], object]) -> Callable[[Path], None]:
    def check_all(folder: Path) -> None:
        for path in visible_files(folder):
            if path.suffix != suffix:
                raise ValueError(
                    f"{path} is not a {suffix} file; {folder.name} may hold only {suffix} files"
                )
            check(path)

    return check_all


def _check_labelled(path: Path) -> None:
    labels = sorted(set(map(trim_label, read_labelled(path)["label"])))
    if len(labels) < 2:
        raise ValueError(f"{path} has one label ({labels[0]}); a classifier needs two or more")


def _check_vocabulary(folder: Path) -> None:
    Tokenizer.from_bpe_files(folder / "vocab.bpe", folder / "encoder.json")


def _check_weights(folder: Path) -> None:
    """Check every model in `weights/`; at least one must exist."""
    models = {path.parent for path in visible_files(folder) if path.name.endswith(MODEL_FILES)}
    for model in sorted(models or {folder}):
        check_model(model)
