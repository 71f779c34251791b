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

    Raises ValueError, naming the file, if a file has no text, and if the folder has no .txt file.
    """
    paths = [path for path in files_below(folder) if path.suffix == ".txt"]
    if not paths:
        raise ValueError(f"{folder} has no .txt file: add UTF-8 .txt files, a document per file")
    return [Document(path.relative_to(folder).as_posix(), read_document(path)) for path in paths]


def read_document(path: Path) -> str:
    """Read a text file; raise ValueError for an empty file and as `decode_text` does."""
    text = decode_text(path.read_bytes(), path)
    if not text.strip():
        raise ValueError(f"{path} is empty; add text or remove the file")
    return text


def decode_text(content: bytes, name: object) -> str:
    r"""Return a file's text without byte order mark, with a newline at each line end.

    Files of every operating system get the same text: `\r\n` and a lone `\r` become newlines,
    and all other characters stay. Raises ValueError with `name` for a file that is binary or not
    UTF-8.
    """
    if b"\0" in content:
        offset = content.index(0)
        raise ValueError(
            f"{name} is not plain text: NUL byte at offset {offset}; save the file as UTF-8 text "
            "or remove it"
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name} is not UTF-8 text (line {line}): byte 0x{content[error.start]:02x} at offset "
            f"{error.start}; convert the file, for example with `iconv -f latin1 -t utf-8`"
        ) from None
    return text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")


def split_documents(
    documents: Sequence[Document], validation_fraction: float
) -> tuple[list[Document], list[Document]]:
    """Split the documents into a training and a validation part.

    A hash of the text puts each document at a position between 0 and 1, and positions below
    the fraction belong to validation: adding or renaming files moves no existing document,
    and equal texts stay together. Each part holds at least one document: if a part would be
    empty, the document nearest to the fraction goes there.

    A single document is cut in two, at the fraction of its characters from the end.

    Raises ValueError if several documents all have the same text.
    """
    if len(documents) == 1:
        return _cut(documents[0], validation_fraction)
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


def _cut(document: Document, validation_fraction: float) -> tuple[list[Document], list[Document]]:
    length = int(len(document.text) * (1 - validation_fraction))
    train, validation = document.text[:length], document.text[length:]
    if not (train.strip() and validation.strip()):
        raise ValueError(
            f"{document.name} is too short to be cut into a training and a validation part: add "
            "text, or a second file"
        )
    return [Document(document.name, train)], [Document(document.name, validation)]


def _hash_position(text: str) -> float:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
