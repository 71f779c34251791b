"""Raw text: one document a file, read whole, checked, and put into a part by its own hash."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Document:
    """A text and its file's name below the folder that was read."""

    name: str
    text: str


def read_documents(folder: Path) -> list[Document]:
    """Read every .txt file below `folder`, in the order of their names.

    Line ends become a newline and a byte order mark goes, so that a text is the same text
    whichever system wrote it. Raises ValueError, naming the file, where one is empty, binary
    or not UTF-8, and where there is none.
    """
    paths = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    if not paths:
        raise ValueError(f"{folder} has no .txt file: put one document a file there, in UTF-8")
    return [Document(path.relative_to(folder).as_posix(), _read(path)) for path in paths]


def split_documents(
    documents: Sequence[Document], validation_fraction: float
) -> tuple[list[Document], list[Document]]:
    """Return the training and the validation part; each holds at least one document.

    A document's place between 0 and 1 is a hash of its text, and those below the fraction are
    validation: adding or renaming files moves no other, and equal texts stay together. Where
    that would leave a part empty, the document nearest to the fraction goes there.

    Raises ValueError where all documents have the same text.
    """
    places = [_place(document.text) for document in documents]
    distinct = sorted(set(places))
    if len(distinct) < 2:
        raise ValueError(
            f"the text is {len(documents)} document(s) with {len(distinct)} distinct text(s), and "
            "one part is for training, one for validation: give at least 2 files"
        )
    # the last place that is still validation, with room for the training part above it
    below = [place for place in distinct[:-1] if place < validation_fraction]
    last = max(below, default=distinct[0])
    train = [one for one, place in zip(documents, places, strict=True) if place > last]
    validation = [one for one, place in zip(documents, places, strict=True) if place <= last]
    return train, validation


def _read(path: Path) -> str:
    content = path.read_bytes()
    if b"\0" in content:
        raise ValueError(
            f"{path} is no plain text: it has a NUL byte at offset {content.index(0)}; save it as "
            "UTF-8 text or remove it"
        )
    # bytes that are not UTF-8 become lone surrogates, which UTF-8 itself never holds
    text = content.decode("utf-8", errors="surrogateescape")
    wrong = next((place for place, char in enumerate(text) if "\udc80" <= char <= "\udcff"), None)
    if wrong is not None:
        offset = len(text[:wrong].encode("utf-8"))
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{content[offset]:02x} at offset {offset}; convert it, "
            f"for example with `iconv -f latin1 -t utf-8`, or remove it"
        )
    text = text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise ValueError(f"{path} is empty: remove it or put text into it")
    return text


def _place(text: str) -> float:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
