"""Raw text documents, read from files and split by hash.

Each file is a document, read whole and checked. A hash of the text assigns the document to
the training or the validation part.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptmill.records import files_below

BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Document:
    """A text and its file's path below the input folder."""

    name: str
    text: str


def read_documents(folder: Path) -> list[Document]:
    """Read every .txt file below `folder`, sorted by name.

    Line ends become newlines and byte order marks are removed, to get the same text from
    files of every operating system. Raises ValueError, naming the file, if a file is empty,
    binary or not UTF-8, and if the folder has no .txt file.
    """
    paths = [path for path in files_below(folder) if path.suffix == ".txt"]
    if not paths:
        raise ValueError(f"{folder} has no .txt file: add UTF-8 .txt files, a document per file")
    return [Document(path.relative_to(folder).as_posix(), _read(path)) for path in paths]


def split_documents(
    documents: Sequence[Document], validation_fraction: float
) -> tuple[list[Document], list[Document]]:
    """Split the documents into a training and a validation part.

    A hash of the text puts each document at a position between 0 and 1, and positions below
    the fraction belong to validation: adding or renaming files moves no existing document,
    and equal texts stay together. Each part holds at least one document: if a part would be
    empty, the document nearest to the fraction goes there.

    Raises ValueError if all documents have the same text.
    """
    positions = [_hash_position(document.text) for document in documents]
    distinct = sorted(set(positions))
    if len(distinct) < 2:
        raise ValueError(
            f"{len(documents)} document(s) with {len(distinct)} distinct text(s) cannot be split "
            "into a training and a validation part: give at least 2 files with different texts"
        )
    # the highest validation position, leaving at least one text above for training
    below = [position for position in distinct[:-1] if position < validation_fraction]
    last = max(below, default=distinct[0])
    train = [
        document for document, position in zip(documents, positions, strict=True) if position > last
    ]
    validation = [
        document
        for document, position in zip(documents, positions, strict=True)
        if position <= last
    ]
    return train, validation


def _read(path: Path) -> str:
    content = path.read_bytes()
    if b"\0" in content:
        raise ValueError(
            f"{path} is not plain text: NUL byte at offset {content.index(0)}; save the file as "
            "UTF-8 text or remove it"
        )
    # invalid bytes decode to lone surrogates, impossible in valid UTF-8
    text = content.decode("utf-8", errors="surrogateescape")
    invalid = next((index for index, char in enumerate(text) if "\udc80" <= char <= "\udcff"), None)
    if invalid is not None:
        offset = len(text[:invalid].encode("utf-8"))
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{content[offset]:02x} at offset {offset}; convert "
            f"the file, for example with `iconv -f latin1 -t utf-8`, or remove it"
        )
    text = text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise ValueError(f"{path} is empty: add text or remove the file")
    return text


def _hash_position(text: str) -> float:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
