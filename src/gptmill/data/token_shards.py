"""Shards of a text's ids, written by several processes, on one machine or many.

Shard 3 of 8 has every eighth text file from the fourth on, as a token file in the folder `3-of-8`.
A shard's folder appears complete or not at all, so that a killed process leaves none, and two
processes may write the same shard. All shards together hold the ids of each text file once.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from gptmill.data.documents import Document, text_files, text_pieces
from gptmill.data.token_file import Ids, TokenFile
from gptmill.files import checked, read_json, write_json

Part = tuple[int, npt.NDArray[np.uint32]]  # the index of a document, and ids
PIECE = 2**20  # ids
PLAN = "shards.json"


@dataclass(frozen=True)
class _Plan:
    """The content of `shards.json`."""

    shards: Annotated[int, Field(ge=2)]


class Encoder(Protocol):
    """What a shard needs of a tokenizer."""

    @property
    def eot_id(self) -> int:
        """Return the id between two documents."""

    @property
    def n_vocab(self) -> int:
        """Return the number of ids."""

    @property
    def fingerprint(self) -> str:
        """Return a hash of everything that determines ids."""

    def encode_documents(self, documents: Iterable[Iterable[str]]) -> Iterator[Part]:
        """Yield ids of documents that are given in pieces, in order."""


def files_of_shard(texts: Path, *, shard: int, shards: int) -> list[Path]:
    """Return the text files of a shard, from 0 to `shards` - 1.

    Raises ValueError for fewer than 2 shards, and for more shards than files.
    """
    assert 0 <= shard < shards, f"shard {shard} of {shards}"
    files = text_files(texts)
    if not 2 <= shards <= len(files):
        allowed = f"2 to {len(files)}" if len(files) > 1 else "none, since a file is not divided"
        raise ValueError(
            f"{shards} shards of the {len(files)} text file(s) below {texts}; allowed is {allowed}"
        )
    return files[shard::shards]


def write_shard(texts: Path, folder: Path, encoder: Encoder, *, shard: int, shards: int) -> None:
    """Encode every `shards`-th text file below `texts`; a finished shard stays as it is."""
    place = _place(folder, shard, shards)
    if place.exists():
        return
    files = files_of_shard(texts, shard=shard, shards=shards)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".partial", dir=folder))
    try:
        TokenFile.write_parts(
            partial / "tokens.bin",
            encoder.encode_documents(map(text_pieces, files)),
            names=[path.relative_to(texts).as_posix() for path in files],
            separator=encoder.eot_id,
            vocab_size=encoder.n_vocab,
            fingerprint=encoder.fingerprint,
        )
        _appear(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def begin(folder: Path, shards: int) -> None:
    """Note the number of shards; raise ValueError where another number has begun."""
    if begun(folder) not in (0, shards):
        raise ValueError(
            f"{folder} has begun with {begun(folder)} shards, not {shards}: keep the number, or "
            "remove the folder to start again"
        )
    write_json(folder / PLAN, {"shards": shards})


def begun(folder: Path) -> int:
    """Return the number of shards of a folder; 0 where none has begun."""
    path = folder / PLAN
    if not path.exists():
        return 0
    return int(checked(_Plan, read_json(path), path).shards)


def unfinished(folder: Path, shards: int) -> list[int]:
    """Return the shards that no process has finished."""
    return [shard for shard in range(shards) if not _place(folder, shard, shards).exists()]


def read_shards(
    folder: Path, shards: int, documents: Sequence[Document], fingerprint: str
) -> Iterator[Part]:
    """Yield ids of whole text files from finished shards, in the order of `documents`.

    Raises ValueError for ids of another tokenizer, and for a text that is in no shard.
    """
    ids: dict[str, Ids] = {}
    for shard in range(shards):
        tokens = TokenFile.open(_place(folder, shard, shards) / "tokens.bin")
        if tokens.fingerprint != fingerprint:
            raise ValueError(f"{folder} has ids of another tokenizer: remove the folder")
        ends = [*(tokens.starts[1:] - 1), len(tokens)]  # a separator stands before each start
        for name, start, end in zip(tokens.names, tokens.starts, ends, strict=True):
            ids[name] = tokens.ids[start:end]
    for index, document in enumerate(documents):
        if document.name not in ids:
            raise ValueError(f"{folder} has no ids of {document.name}: remove the folder")
        own = ids[document.name]
        for start in range(0, max(1, len(own)), PIECE):
            yield index, own[start : start + PIECE].astype(np.uint32)


def _place(folder: Path, shard: int, shards: int) -> Path:
    return folder / f"{shard}-of-{shards}"


def _appear(partial: Path, place: Path) -> None:
    """Rename a finished folder, unless another process was first."""
    try:
        partial.rename(place)
    except OSError:
        if not place.exists():
            raise
