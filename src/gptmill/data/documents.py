"""Raw text documents, measured file by file, split by hash and mixed by source.

Each file is a document. No text is kept: a document knows its file, its length and a hash, and
reads its text again in pieces, so that memory does not grow with the text. The hash assigns the
document to the training or the validation part.
"""

import codecs
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptmill.records import files_below

BYTE_ORDER_MARK = "\ufeff"
PIECE = 2**18  # characters
BLOCK = 2**20  # bytes


@dataclass(frozen=True)
class Document:
    """A text in a file, or a part of it.

    `name` is the file's path below the input folder. `characters` and `size`, the bytes in UTF-8,
    count the text as `decode_text` returns it. `position`, between 0 and 1, is a hash of the text.
    """

    name: str
    path: Path
    characters: int
    size: int
    position: float
    start: int = 0
    """The first character in the file's text."""

    def pieces(self) -> Iterator[str]:
        """Yield the text in pieces of at most PIECE characters."""
        return _part(self.path, self.start, self.start + self.characters)

    @property
    def text(self) -> str:
        """Return the whole text."""
        return "".join(self.pieces())

    @property
    def beginning(self) -> str:
        """Return the first words of the text, in a line."""
        return " ".join(next(self.pieces())[:200].split())[:60]

    def words(self) -> int:
        """Return the number of words: runs of characters between white space."""
        count, inside = 0, False
        for piece in self.pieces():
            count += len(piece.split()) - (inside and not piece[:1].isspace())
            inside = not piece[-1:].isspace()
        return count


def read_documents(folder: Path) -> list[Document]:
    """Measure every .txt file below `folder`, sorted by name.

    Raises ValueError, naming the file, if a file has no text, and if the folder has no .txt file.
    """
    paths = text_files(folder)
    return [read_document(path, path.relative_to(folder).as_posix()) for path in paths]


def text_files(folder: Path) -> list[Path]:
    """Return every .txt file below `folder`, sorted; raise ValueError without any."""
    paths = [path for path in files_below(folder) if path.suffix == ".txt"]
    if not paths:
        raise ValueError(f"{folder} has no .txt file: add UTF-8 .txt files, a document per file")
    return paths


def read_document(path: Path, name: str = "") -> Document:
    """Measure a text file; raise ValueError for an empty file and as `decode_text` does."""
    document = _measured(name or path.name, path)
    if document is None:
        raise ValueError(f"{path} is empty; add text or remove the file")
    return document


def _measured(name: str, path: Path, start: int = 0, end: int | None = None) -> Document | None:
    """Return the document of a range of characters; None for blank text."""
    characters = size = 0
    digest, blank = hashlib.sha256(), True
    for piece in _part(path, start, end):
        content = piece.encode("utf-8")
        characters, size = characters + len(piece), size + len(content)
        digest.update(content)
        blank = blank and not piece.strip()
    position = int.from_bytes(digest.digest()[:8], "big") / 2**64
    return None if blank else Document(name, path, characters, size, position, start)


def _part(path: Path, start: int, end: int | None) -> Iterator[str]:
    """Yield the characters of a file's text from `start` to before `end`."""
    place = 0
    for piece in text_pieces(path):
        if end is not None and place >= end:
            return
        chosen = piece[max(0, start - place) : None if end is None else end - place]
        place += len(piece)
        if chosen:
            yield chosen


def text_pieces(path: Path) -> Iterator[str]:
    """Yield a file's text, as `decode_text` returns it, in pieces of at most PIECE characters."""
    prefix = BYTE_ORDER_MARK
    try:
        with path.open(encoding="utf-8") as file:  # every line end becomes a newline
            while piece := file.read(PIECE):
                if "\0" in piece:
                    raise ValueError(_fault(path))
                yield piece.removeprefix(prefix)
                prefix = ""
    except UnicodeDecodeError:
        raise ValueError(_fault(path)) from None


def _fault(path: Path) -> str:
    """Return the error for a file that is binary, or else not UTF-8."""
    for block, offset in _blocks(path):
        if b"\0" in block:
            return _is_binary(path, offset + block.index(0))
    decoder, lines = codecs.getincrementaldecoder("utf-8")(), 1
    for block, offset in _blocks(path):
        before = decoder.getstate()[0]
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line = lines + error.object.count(b"\n", 0, error.start)
            place = offset - len(before) + error.start
            return _is_not_utf8(path, line, error.object[error.start], place)
        lines += block.count(b"\n")
    raise AssertionError(f"{path} has no fault")


def _blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield a file's blocks with their offsets; the last block is empty."""
    offset = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block, offset
            offset += len(block)
    yield b"", offset


def decode_text(content: bytes, name: object) -> str:
    r"""Return a file's text without byte order mark, with a newline at each line end.

    Files of every operating system get the same text: `\r\n` and a lone `\r` become newlines,
    and all other characters stay. Raises ValueError with `name` for a file that is binary or not
    UTF-8.
    """
    if b"\0" in content:
        raise ValueError(_is_binary(name, content.index(0)))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(_is_not_utf8(name, line, content[error.start], error.start)) from None
    return text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")


def _is_binary(name: object, offset: int) -> str:
    return (
        f"{name} is not plain text: NUL byte at offset {offset}; save the file as UTF-8 text "
        "or remove it"
    )


def _is_not_utf8(name: object, line: int, byte: int, offset: int) -> str:
    return (
        f"{name} is not UTF-8 text (line {line}): byte 0x{byte:02x} at offset {offset}; convert "
        "the file, for example with `iconv -f latin1 -t utf-8`"
    )


def split_documents(
    documents: Sequence[Document], validation_fraction: float
) -> tuple[list[Document], list[Document]]:
    """Split the documents into a training and a validation part.

    A hash of the text puts each document at a position between 0 and 1, and positions below
    the fraction belong to validation: adding or renaming files moves no existing document,
    and equal texts stay together. Each part holds at least one document: if a part would be
    empty, the document nearest to the fraction goes there.

    A single document is cut in two, at the fraction of its characters from the end.

    Raises ValueError if several documents all have the same position.
    """
    if len(documents) == 1:
        return _cut(documents[0], validation_fraction)
    distinct = sorted({document.position for document in documents})
    if len(distinct) < 2:
        raise ValueError(
            f"{len(documents)} document(s) with {len(distinct)} distinct text(s) cannot be split "
            "into a training and a validation part: give at least 2 files with different texts "
            "(near-duplicates count as one text; the option `near_duplicates` in sources.toml "
            "leaves later ones out)"
        )
    # the highest validation position, leaving at least one text above for training
    below = [position for position in distinct[:-1] if position < validation_fraction]
    last = max(below, default=distinct[0])
    train = [document for document in documents if document.position > last]
    validation = [document for document in documents if document.position <= last]
    return train, validation


def _cut(document: Document, validation_fraction: float) -> tuple[list[Document], list[Document]]:
    place = int(document.characters * (1 - validation_fraction))
    train = _measured(document.name, document.path, 0, place)
    validation = _measured(document.name, document.path, place, document.characters)
    if train is None or validation is None:
        raise ValueError(
            f"{document.name} is too short to be cut into a training and a validation part: add "
            "text, or a second file"
        )
    return [train], [validation]


@dataclass(frozen=True)
class Drawn:
    """A source in the training part: the share asked for, and the share drawn."""

    source: str
    weight: float
    share_of_text: float
    asked: float
    drawn: float
    epochs: float
    """How often a byte of the source is read."""


def mixed(
    documents: Sequence[Document],
    sources: Sequence[str],
    weights: Mapping[str, float],
    temperature: float,
) -> tuple[list[Document], list[Drawn]]:
    """Return a mixture of sources, in passes in the order of documents, and a row per source.

    `sources` names the source of each document. A source of n bytes and weight w is asked for a
    share in proportion to (w n)^(1 / temperature): higher temperatures bring the shares nearer to
    each other (https://arxiv.org/abs/1907.05019, section 4.1). Documents are repeated or left out,
    and the size of all stays. The choice depends on texts alone: in each source, a last pass that
    is not whole takes the documents of the lowest hash positions.
    """
    sizes = dict.fromkeys(sorted(set(sources)), 0)
    for document, source in zip(documents, sources, strict=True):
        sizes[source] += document.size
    total = sum(sizes.values())
    powers = {name: (weights.get(name, 1.0) * n) ** (1 / temperature) for name, n in sizes.items()}
    asked = {name: power / sum(powers.values()) for name, power in powers.items()}
    copies = [0] * len(documents)
    for name in sizes:
        own = [index for index, source in enumerate(sources) if source == name]
        for index, n in _copies(documents, own, asked[name] * total).items():
            copies[index] = n
    chosen = [
        document
        for done in range(max(copies))
        for document, n in zip(documents, copies, strict=True)
        if n > done
    ]
    drawn = dict.fromkeys(sizes, 0)
    for document, source, n in zip(documents, sources, copies, strict=True):
        drawn[source] += n * document.size
    rows = [
        Drawn(
            source=name,
            weight=weights.get(name, 1.0),
            share_of_text=size / total,
            asked=asked[name],
            drawn=drawn[name] / sum(drawn.values()),
            epochs=drawn[name] / size,
        )
        for name, size in sizes.items()
    ]
    return chosen, rows


def _copies(documents: Sequence[Document], own: Sequence[int], quota: float) -> dict[int, int]:
    """Return the copies of a source's documents whose bytes come nearest to the quota."""
    passes, left = divmod(quota, sum(documents[index].size for index in own))
    copies = dict.fromkeys(own, int(passes))
    for index in sorted(own, key=lambda index: (documents[index].position, index)):
        size = documents[index].size
        if left >= size / 2 or not any(copies.values()):
            copies[index] += 1
            left -= size
    return copies
