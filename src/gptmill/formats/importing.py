"""Import of pretrained weights in any supported format.

Formats: a Hugging Face folder, a Hugging Face Hub id at a pinned revision, OpenAI's TensorFlow
folder, the book's `.pth` file, a GGUF file. The result is a checkpoint folder. The names and shapes
of all tensors are checked before the first tensor is read, and the record holds the SHA-256 of
each source file.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from gptmill.checkpoint.checkpoint import (
    layout_of,
    read_class_names,
    read_special_ids,
    save_causal_lm,
    save_classifier,
    special_ids,
)
from gptmill.checkpoint.hf_config import SpecialIds, read_config
from gptmill.checkpoint.layouts import BOOK, OPENAI, Layout
from gptmill.checkpoint.mapping import check, meta_model, read_state
from gptmill.checkpoint.weights import Tensors, open_folder, weight_files
from gptmill.files import atomic_folder, refuse_lfs_pointer, sha256
from gptmill.formats.book import open_book
from gptmill.formats.gguf import open_gguf
from gptmill.formats.gguf_file import MAGIC
from gptmill.formats.tensorflow import (
    checkpoint_files,
    is_checkpoint,
    open_checkpoint,
    read_hparams,
)
from gptmill.model.gpt import GPT, GPTConfig
from gptmill.tokenizer.gguf import read_end_ids
from gptmill.tokenizer.huggingface import read_chat_template
from gptmill.tokenizer.tokenizer import Tokenizer

SourceFormat = Literal["hugging face", "tensorflow", "book", "gguf"]
PICKLES = (".pth", ".pt", ".bin")
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
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
REVISION = re.compile(r"[0-9a-f]{40}")
HUB_FILES = ("*.safetensors", "*.bin", "*.json", "merges.txt", "vocab.bpe", "*.jinja")


@dataclass(frozen=True)
class Imported:
    """Summary of an import."""

    form: SourceFormat
    config: GPTConfig
    n_classes: int | None
    n_tensors: int
    """Number of tensors in the source, including constants."""
    n_parameters: int
    files: Mapping[str, str]
    """SHA-256 of each source file, by file name."""
    revision: str | None


@dataclass(frozen=True)
class _Source:
    """An opened model whose tensors have not been read."""

    form: SourceFormat
    layout: Layout
    config: GPTConfig
    tensors: Tensors
    files: Sequence[Path]
    tokenizer: Tokenizer | None
    chat_template: str | None = None
    n_classes: int | None = None
    class_names: Sequence[str] = ()
    ids: SpecialIds | None = None


def import_model(
    source: str,
    out: Path,
    *,
    tokenizer: Path | None = None,
    otherwise: Path | None = None,
    revision: str | None = None,
    n_heads: int | None = None,
    dtype: torch.dtype = torch.float32,
    classifiers: bool = True,
) -> Imported:
    """Load a model from `source` and save it to `out`.

    The checkpoint folder `out` is written completely or not at all. `source` is a path, or a
    Hugging Face Hub id with `revision`, a full commit hash. The folder `tokenizer` replaces the
    tokenizer of the source; the folder `otherwise` serves a source without a tokenizer. `n_heads`
    is for a book file with an embedding width that GPT-2 does not have. Weights are rounded to
    `dtype`. Raises ValueError for an invalid source, and for a classifier if `classifiers` is
    False.
    """
    path = _resolve(source, revision)
    opened = _open(path, n_heads)
    if opened.n_classes is not None and not classifiers:
        raise ValueError(f"{source} is a classifier; allowed is a language model")
    tokenizer_folder = tokenizer or (otherwise if opened.tokenizer is None else None)
    chosen_tokenizer = _choose_tokenizer(opened, source, tokenizer_folder)
    _check(opened)
    model = meta_model(opened.config, opened.n_classes)
    n_tensors = len(opened.tensors.shapes)
    files = {file.name: sha256(file) for file in opened.files}
    state = read_state(
        opened.layout, opened.config, opened.tensors, n_classes=opened.n_classes, dtype=dtype
    )
    model.load_state_dict(state, assign=True)
    ids = opened.ids if tokenizer_folder is None else None
    with atomic_folder(out) as folder:
        if isinstance(model, GPT):
            template = opened.chat_template
            save_causal_lm(
                folder, model, chosen_tokenizer, chat_template=template, dtype=dtype, ids=ids
            )
        else:
            names = opened.class_names
            save_classifier(
                folder, model, chosen_tokenizer, class_names=names, dtype=dtype, ids=ids
            )
    return Imported(
        form=opened.form,
        config=opened.config,
        n_classes=opened.n_classes,
        n_tensors=n_tensors,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        files=files,
        revision=revision,
    )


def check_model(path: Path) -> GPTConfig:
    """Check a model's tensor names and shapes without reading tensors.

    The model may be in any supported format. Raises ValueError as `import_model` would.
    """
    source = _open(path, None)
    _check(source)
    return source.config


def _check(source: _Source) -> None:
    check(
        source.layout,
        source.config,
        source.tensors,
        n_classes=source.n_classes,
        asks="config.json requires" if source.form == "hugging face" else "expected",
    )


# Locate the source and detect the format.


def _resolve(source: str, revision: str | None) -> Path:
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise ValueError(
                f"{source} is a local path; a revision is for a Hugging Face Hub id only"
            )
        return path
    if not HUB_ID.fullmatch(source):
        raise ValueError(
            f"{source}: no such file or folder, and not a Hugging Face Hub id (owner/name)"
        )
    if revision is None or not REVISION.fullmatch(revision):
        raise ValueError(
            f"{source}: no such path, and for a Hugging Face Hub id revision is {revision!r}; "
            "allowed is a full commit hash of 40 hex digits, to get the same weights each time"
        )
    return _fetch(source, revision)


def _fetch(source: str, revision: str) -> Path:
    """Fetch a snapshot from the Hub, reusing files already cached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        folder = snapshot_download(
            source, revision=revision, allow_patterns=list(HUB_FILES), endpoint=endpoint
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{source} at {revision} cannot be fetched from {endpoint}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return Path(folder)


def _open(path: Path, n_heads: int | None) -> _Source:
    if path.is_dir():
        path = _find_model(path)
    if path.is_dir():
        return _open_tensorflow(path) if is_checkpoint(path) else _open_hugging_face(path)
    with path.open("rb") as file:
        start = file.read(100)
    refuse_lfs_pointer(path, start)
    if start.startswith(MAGIC):
        return _open_gguf(path)
    if path.suffix in PICKLES:
        return _open_book(path, n_heads)
    raise ValueError(
        f"{path} has an unknown format; allowed are a Hugging Face folder, OpenAI's "
        f"TensorFlow folder, a book file ({', '.join(PICKLES)}) and a GGUF file"
    )


def _find_model(folder: Path) -> Path:
    """Return a folder's only model file, or the folder itself.

    A folder with a config.json or a TensorFlow checkpoint is a model by itself.
    """
    if (folder / "config.json").exists() or is_checkpoint(folder):
        return folder
    models = [path for path in folder.iterdir() if path.suffix in (".gguf", ".pth")]
    return models[0] if len(models) == 1 else folder


def _open_hugging_face(folder: Path) -> _Source:
    config = read_config(folder)
    tensors = open_folder(folder)
    names: list[str] = read_class_names(folder) if "score.weight" in tensors.shapes else []
    files = [folder / "config.json", *weight_files(folder), *_tokenizer_files(folder)]
    tokenizer = _read_tokenizer(folder)
    return _Source(
        form="hugging face",
        layout=layout_of(config),
        config=config,
        tensors=tensors,
        files=files,
        tokenizer=tokenizer,
        chat_template=read_chat_template(folder),
        n_classes=len(names) or None,
        class_names=names,
        ids=None if tokenizer is None else read_special_ids(folder, tokenizer),
    )


def _open_tensorflow(folder: Path) -> _Source:
    files = [folder / "hparams.json", *checkpoint_files(folder), *_tokenizer_files(folder)]
    config, tensors = read_hparams(folder), open_checkpoint(folder)
    return _Source("tensorflow", OPENAI, config, tensors, files, _read_tokenizer(folder))


def _open_book(path: Path, n_heads: int | None) -> _Source:
    config, tensors, n_classes = open_book(path, n_heads=n_heads)
    return _Source(
        form="book",
        layout=BOOK,
        config=config,
        tensors=tensors,
        files=[path],
        tokenizer=None,
        n_classes=n_classes,
        class_names=[f"LABEL_{index}" for index in range(n_classes or 0)],
    )


def _open_gguf(path: Path) -> _Source:
    file = open_gguf(path)
    try:
        tokenizer = Tokenizer.from_gguf(file.fields)
        ends = read_end_ids(file.fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return _Source(
        form="gguf",
        layout=file.layout,
        config=file.config,
        tensors=file.tensors,
        files=[path],
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        ids=special_ids(tokenizer, ends),
    )


# The tokenizer beside the weights.


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def _read_tokenizer(folder: Path) -> Tokenizer | None:
    """Load the tokenizer of a folder, or return None.

    OpenAI's names for the two files of GPT-2's tokenizer are encoder.json and vocab.bpe.
    """
    if (folder / "encoder.json").is_file() and (folder / "vocab.bpe").is_file():
        return Tokenizer.from_bpe_files(folder / "vocab.bpe", folder / "encoder.json")
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
        return Tokenizer.from_folder(folder)
    return None


def _choose_tokenizer(opened: _Source, source: str, folder: Path | None) -> Tokenizer:
    """Return the tokenizer from `folder` if given, otherwise the source's.

    Raises ValueError where the tokenizer is missing or has more ids than the weights.
    """
    tokenizer = opened.tokenizer if folder is None else _read_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(
            f"{source if folder is None else folder} has no tokenizer; give a folder with a "
            "tokenizer.json, GPT-2's vocab.json and merges.txt, or OpenAI's encoder.json and "
            "vocab.bpe"
        )
    if tokenizer.n_vocab > opened.config.vocab_size:
        raise ValueError(
            f"{source}: the weights have {opened.config.vocab_size} ids, but the tokenizer has "
            f"{tokenizer.n_vocab}; give the tokenizer used to train the weights"
        )
    return tokenizer
