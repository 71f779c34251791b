"""Text documents: plain files, and a Bible in Python source."""

import ast
import gzip
import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping
from functools import partial
from pathlib import PurePosixPath

from gptmill.data.documents import decode_text
from gptmill.sources.archive import LazyFiles

GZIP = b"\x1f\x8b"
PLAIN_NAME = re.compile(r"[a-z0-9_]{1,100}\.txt")
HASH_DIGITS = 12  # a hundred thousand names without letters stay apart
SUPPLIED_WORDS = re.compile(r"[\[\]]")


def documents(members: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Return each member as a document in UTF-8.

    Gzipped members are unpacked. `decode_text` names all changes to a text, and its errors.
    """
    for name in members:
        _document(name, members[name])
    return LazyFiles(
        {document_name(name): partial(lambda n: _document(n, members[n]), name) for name in members}
    )


def document_name(member: str) -> str:
    """Return a document's file name, a function of the member's path alone.

    A short name of small letters, digits and `_` stays. Every other path gives such a name, cut,
    with a hash of the path: names that differ only in case, accents, signs or folders stay apart.
    """
    if PLAIN_NAME.fullmatch(member):
        return member
    path = PurePosixPath(member.removesuffix(".gz"))
    words = short_name("_".join([*path.parts[:-1], path.stem]))
    digest = hashlib.sha256(os.fsencode(member)).hexdigest()
    return f"{words}-{digest[:HASH_DIGITS]}.txt"


def short_name(words: str) -> str:
    """Return words as a file name of at most 40 letters, digits and `_`."""
    letters = unicodedata.normalize("NFC", words).lower()
    return re.sub(r"[\W_]+", "_", letters)[:40].strip("_") or "document"


def _document(name: str, content: bytes) -> bytes:
    text = gzip.decompress(content) if content.startswith(GZIP) else content
    return decode_text(text, name).encode()


def kjv_books(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the King James Bible's 66 books as documents.

    Each document begins with the title of the book. The text is a string in a Python file,
    read as a syntax tree and never run:
    `Bible(version, text, starts, ends, chapters, names, titles, ...)`. The key of a verse in
    the two mappings of offsets is book * 1,000,000 + chapter * 1,000 + verse. The square
    brackets of the edition around supplied words are removed.
    """
    (source,) = members.values()
    call = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
    names, titles = (_values(argument) for argument in call.args[5:7])
    books = {}
    for number, (name, title) in enumerate(zip(names, titles, strict=True), start=1):
        start = min(offset for verse, offset in starts.items() if verse // 1_000_000 == number)
        end = max(offset for verse, offset in ends.items() if verse // 1_000_000 == number)
        body = SUPPLIED_WORDS.sub("", text[start:end])
        books[f"{number:02d}_{short_name(name)}.txt"] = f"{title}\n\n{body}\n".encode()
    return books


def _values(node: ast.expr) -> list[str]:
    """Return the values of a literal mapping.

    The keys are names and cannot be evaluated.
    """
    assert isinstance(node, ast.Dict)
    return [ast.literal_eval(value) for value in node.values]
