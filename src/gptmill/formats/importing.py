"""Import: pretrained weights from any form they are found in, to a checkpoint folder of ours.

Forms: a Hugging Face folder, an id on its hub at a pinned revision, OpenAI's TensorFlow folder,
the book's `.pth`, a GGUF file. Every tensor's name and shape is checked before one is read, and
the hash of each file that was read is in the record.
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
    save_causal_lm,
    save_classifier,
)
from gptmill.checkpoint.hf_config import SpecialIds, read_config, read_config_file
from gptmill.checkpoint.layouts import BOOK, OPENAI, Layout
from gptmill.checkpoint.mapping import check, meta_model, read_state
from gptmill.checkpoint.weights import Tensors, open_folder, weight_files
from gptmill.files import atomic_folder, sha256
from gptmill.formats.book import open_book
from gptmill.formats.gguf import open_gguf
from gptmill.formats.tensorflow import (
    checkpoint_files,
    is_checkpoint,
    open_checkpoint,
    read_hparams,
)
from gptmill.model.gpt import GPT, GPTConfig
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
    """What was read and written."""

    form: SourceFormat
    config: GPTConfig
    n_classes: int | None
    n_tensors: int
    """How many tensors the source held, constants included."""
    n_parameters: int
    files: Mapping[str, str]
    """The SHA-256 of each file that was read, by its name."""
    revision: str | None


@dataclass(frozen=True)
class _Source:
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
    """Read a model from `source` and write it to the folder `out`, which is whole or absent.

    `source` is a path, or an id on the hub with its `revision`, a whole commit hash.
    `tokenizer` is a folder with one, in place of the source's own; `otherwise` is one for a
    source without. `n_heads` is for a book's file of a width that GPT-2 does not have. Weights
    are rounded to `dtype`. Without `classifiers`, a model that is one is refused.
    """
    path = _place(source, revision)
    found = _open(path, n_heads)
    if found.n_classes is not None and not classifiers:
        raise ValueError(f"{source} is a classifier; allowed here is a language model")
    given = tokenizer or (otherwise if found.tokenizer is None else None)
    known = _tokenizer(found, source, given)
    _check(found)
    model = meta_model(found.config, found.n_classes)
    n_tensors = len(found.tensors.shapes)
    files = {file.name: sha256(file) for file in found.files}
    state = read_state(
        found.layout, found.config, found.tensors, n_classes=found.n_classes, dtype=dtype
    )
    model.load_state_dict(state, assign=True)
    ids = found.ids if given is None else None
    with atomic_folder(out) as folder:
        if isinstance(model, GPT):
            template = found.chat_template
            save_causal_lm(folder, model, known, chat_template=template, dtype=dtype, ids=ids)
        else:
            names = found.class_names
            save_classifier(folder, model, known, class_names=names, dtype=dtype, ids=ids)
    return Imported(
        form=found.form,
        config=found.config,
        n_classes=found.n_classes,
        n_tensors=n_tensors,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        files=files,
        revision=revision,
    )


def check_model(path: Path) -> GPTConfig:
    """Check the names and shapes of a model in any form, of which no tensor is read.

    Raises ValueError as `import_model` would.
    """
    found = _open(path, None)
    _check(found)
    return found.config


def _check(found: _Source) -> None:
    check(
        found.layout,
        found.config,
        found.tensors,
        n_classes=found.n_classes,
        asks="config.json asks for" if found.form == "hugging face" else "expected is",
    )


# Where the source lies, and what it is.


def _place(source: str, revision: str | None) -> Path:
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise ValueError(f"{source} is a path here; a revision is for an id on the hub only")
        return path
    if not HUB_ID.fullmatch(source):
        raise ValueError(
            f"{source}: there is no such file or folder, nor is it an id on the hub, owner/name"
        )
    if revision is None or not REVISION.fullmatch(revision):
        raise ValueError(
            f"{source}: no such path, and for an id on the hub revision is {revision!r}; allowed "
            "is a whole commit hash of 40 digits, so that the same weights come each time"
        )
    return _downloaded(source, revision)


def _downloaded(source: str, revision: str) -> Path:
    """Fetch a snapshot of the hub into its cache; what is there already is not fetched again."""
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
        path = _only_file(path)
    if path.is_dir():
        return _open_tensorflow(path) if is_checkpoint(path) else _open_hugging_face(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        return _open_gguf(path)
    if path.suffix in PICKLES:
        return _open_book(path, n_heads)
    raise ValueError(
        f"{path} is none of the known forms; allowed are a Hugging Face folder, OpenAI's "
        f"TensorFlow folder, a book's file ({', '.join(PICKLES)}) and a GGUF file"
    )


def _only_file(folder: Path) -> Path:
    """Return the one file that is a model by itself in a folder that else describes none."""
    if (folder / "config.json").exists() or is_checkpoint(folder):
        return folder
    alone = [path for path in folder.iterdir() if path.suffix in (".gguf", ".pth")]
    return alone[0] if len(alone) == 1 else folder


def _open_hugging_face(folder: Path) -> _Source:
    config = read_config(folder)
    given = read_config_file(folder / "config.json")
    tensors = open_folder(folder)
    names: list[str] = read_class_names(folder) if "score.weight" in tensors.shapes else []
    files = [folder / "config.json", *weight_files(folder), *_tokenizer_files(folder)]
    ids = [given.get(f"{role}_token_id") for role in ("bos", "eos", "pad")]
    bos, eos, pad = (index if isinstance(index, int) else None for index in ids)
    return _Source(
        form="hugging face",
        layout=layout_of(config),
        config=config,
        tensors=tensors,
        files=files,
        tokenizer=_tokenizer_of(folder),
        chat_template=read_chat_template(folder),
        n_classes=len(names) or None,
        class_names=names,
        ids=None if bos is None or eos is None or pad is None else SpecialIds(bos, eos, pad),
    )


def _open_tensorflow(folder: Path) -> _Source:
    files = [folder / "hparams.json", *checkpoint_files(folder), *_tokenizer_files(folder)]
    config, tensors = read_hparams(folder), open_checkpoint(folder)
    return _Source("tensorflow", OPENAI, config, tensors, files, _tokenizer_of(folder))


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
    known = Tokenizer.from_gguf(file.fields)
    return _Source(
        form="gguf",
        layout=file.layout,
        config=file.config,
        tensors=file.tensors,
        files=[path],
        tokenizer=known,
        chat_template=known.chat_template,
    )


# The tokenizer beside the weights.


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def _tokenizer_of(folder: Path) -> Tokenizer | None:
    """Read the tokenizer of a folder, if it has one: OpenAI calls GPT-2's two files otherwise."""
    if (folder / "encoder.json").is_file() and (folder / "vocab.bpe").is_file():
        return Tokenizer.from_bpe_files(folder / "vocab.bpe", folder / "encoder.json")
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
        return Tokenizer.from_folder(folder)
    return None


def _tokenizer(found: _Source, source: str, given: Path | None) -> Tokenizer:
    known = found.tokenizer if given is None else _tokenizer_of(given)
    if known is None:
        where = source if given is None else str(given)
        raise ValueError(
            f"{where} has no tokenizer; give a folder that has one, with a tokenizer.json, or "
            "GPT-2's vocab.json and merges.txt, or its encoder.json and vocab.bpe"
        )
    if known.n_vocab > found.config.vocab_size:
        raise ValueError(
            f"{source}: the weights know {found.config.vocab_size} ids, the tokenizer has "
            f"{known.n_vocab}; give the tokenizer that the weights were trained with"
        )
    return known
