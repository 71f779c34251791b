"""The model and the tokenizer in a folder of weights, without reading tensors."""

from pathlib import Path

from gptmill.formats.gguf_file import MAGIC, read_gguf
from gptmill.tokenizer.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder looks like an OpenAI checkpoint."""
    return (folder / "hparams.json").is_file() and any(folder.glob("*.index"))


def find_model(folder: Path) -> Path:
    """Return a folder's only model file, or the folder itself.

    A folder with a config.json or a TensorFlow checkpoint is a model by itself.
    """
    if (folder / "config.json").exists() or is_checkpoint(folder):
        return folder
    models = [path for path in folder.iterdir() if path.suffix in (".gguf", ".pth")]
    return models[0] if len(models) == 1 else folder


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the tokenizer's files beside the weights."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Load the tokenizer of a folder, or return None.

    OpenAI's names for the two files of GPT-2's tokenizer are encoder.json and vocab.bpe.
    """
    if (folder / "encoder.json").is_file() and (folder / "vocab.bpe").is_file():
        return Tokenizer.from_bpe_files(folder / "vocab.bpe", folder / "encoder.json")
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
        return Tokenizer.from_folder(folder)
    return None


def tokenizer_of(source: Path) -> Tokenizer:
    """Load the tokenizer of weights in any format; raise ValueError for weights without any."""
    path = find_model(source) if source.is_dir() else source
    tokenizer = gguf_tokenizer(path) if _is_gguf(path) else read_tokenizer(source)
    if tokenizer is None:
        raise ValueError(
            f"{source} has no tokenizer: add the files of the weights' tokenizer beside the "
            "weights, a tokenizer.json, or GPT-2's vocab.json and merges.txt"
        )
    return tokenizer


def _is_gguf(path: Path) -> bool:
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def gguf_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer of a GGUF file; raise ValueError for an unsupported kind."""
    try:
        return Tokenizer.from_gguf(read_gguf(path).fields)
    except ValueError as error:
        named = str(error).startswith(str(path))
        raise ValueError(f"{error}" if named else f"{path}: {error}") from None
