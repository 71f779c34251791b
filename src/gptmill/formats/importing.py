"""Import of pretrained weights in any supported format.

Formats: a Hugging Face folder, a Hugging Face Hub id at a pinned revision, OpenAI's TensorFlow
folder, the book's `.pth` file, a GGUF file. The result is a checkpoint folder. The names and shapes
of all tensors are checked before the first tensor is read, and the record holds the SHA-256 of
each source file.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    open_checkpoint,
    read_hparams,
)
from gptmill.formats.weight_folders import (
    find_model,
    is_checkpoint,
    read_tokenizer,
    tokenizer_files,
)
from gptmill.model.gpt import GPT, GPTClassifier, GPTConfig
from gptmill.tokenizer.gguf import read_end_ids
from gptmill.tokenizer.huggingface import read_chat_template
from gptmill.tokenizer.tokenizer import Tokenizer

SourceFormat = Literal["hugging face", "tensorflow", "book", "gguf"]
PICKLES = (".pth", ".pt", ".bin")
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


@dataclass(frozen=True)
class Loaded:
    """A model in memory, with everything that a checkpoint of the model holds."""

    form: SourceFormat
    model: GPT | GPTClassifier
    tokenizer: Tokenizer
    chat_template: str | None
    ids: SpecialIds | None
    """The special ids of the source; None for the tokenizer's own."""
    class_names: Sequence[str]
    n_tensors: int
    files: Sequence[Path]
    """The files of the source."""


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
    loaded = load_model(
        source,
        tokenizer=tokenizer,
        otherwise=otherwise,
        revision=revision,
        n_heads=n_heads,
        dtype=dtype,
        classifiers=classifiers,
    )
    model = loaded.model
    files = {file.name: sha256(file) for file in loaded.files}
    with atomic_folder(out) as folder:
        if isinstance(model, GPT):
            template = loaded.chat_template
            save_causal_lm(
                folder, model, loaded.tokenizer, chat_template=template, dtype=dtype, ids=loaded.ids
            )
        else:
            names = loaded.class_names
            save_classifier(
                folder, model, loaded.tokenizer, class_names=names, dtype=dtype, ids=loaded.ids
            )
    return Imported(
        form=loaded.form,
        config=model.config,
        n_classes=None if isinstance(model, GPT) else len(loaded.class_names),
        n_tensors=loaded.n_tensors,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        files=files,
        revision=revision,
    )


def load_model(
    source: str,
    *,
    tokenizer: Path | None = None,
    otherwise: Path | None = None,
    revision: str | None = None,
    n_heads: int | None = None,
    dtype: torch.dtype = torch.float32,
    classifiers: bool = True,
    drop_rate: float | None = None,
) -> Loaded:
    """Load a model from `source` into memory; arguments and errors are those of `import_model`.

    `drop_rate` replaces the config's dropout in training.
    """
    opened = _open(_resolve(source, revision), n_heads)
    if opened.n_classes is not None and not classifiers:
        raise ValueError(f"{source} is a classifier; allowed is a language model")
    tokenizer_folder = tokenizer or (otherwise if opened.tokenizer is None else None)
    chosen_tokenizer = _choose_tokenizer(opened, source, tokenizer_folder)
    _check(opened)
    config = opened.config
    model = meta_model(
        config if drop_rate is None else replace(config, drop_rate=drop_rate), opened.n_classes
    )
    n_tensors = len(opened.tensors.shapes)
    state = read_state(
        opened.layout, config, opened.tensors, n_classes=opened.n_classes, dtype=dtype
    )
    model.load_state_dict(state, assign=True)
    return Loaded(
        form=opened.form,
        model=model,
        tokenizer=chosen_tokenizer,
        chat_template=opened.chat_template,
        ids=opened.ids if tokenizer_folder is None else None,
        class_names=opened.class_names,
        n_tensors=n_tensors,
        files=opened.files,
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
        path = find_model(path)
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


def _open_hugging_face(folder: Path) -> _Source:
    config = read_config(folder)
    tensors = open_folder(folder)
    names: list[str] = read_class_names(folder) if "score.weight" in tensors.shapes else []
    files = [folder / "config.json", *weight_files(folder), *tokenizer_files(folder)]
    tokenizer = read_tokenizer(folder)
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
    files = [folder / "hparams.json", *checkpoint_files(folder), *tokenizer_files(folder)]
    config, tensors = read_hparams(folder), open_checkpoint(folder)
    return _Source("tensorflow", OPENAI, config, tensors, files, read_tokenizer(folder))


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


def _choose_tokenizer(opened: _Source, source: str, folder: Path | None) -> Tokenizer:
    """Return the tokenizer from `folder` if given, otherwise the source's.

    Raises ValueError where the tokenizer is missing or has more ids than the weights.
    """
    tokenizer = opened.tokenizer if folder is None else read_tokenizer(folder)
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
