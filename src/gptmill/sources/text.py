"""Text documents: plain files, and a Bible in Python source."""

import ast
import gzip
import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

GZIP = b"\x1f\x8b"
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # code points of `surrogateescape` for undecodable bytes
SUPPLIED_WORDS = re.compile(r"[\[\]]")


def documents(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return each member as a document, in normalised UTF-8.

    A document has no byte order mark, and lines end in a newline. Gzipped members are
    unpacked. Folders common to all members are left out of the names.
    """
    shared = os.path.commonpath([str(PurePosixPath(name).parent) for name in members])
    files = {}
    for name, content in members.items():
        text = gzip.decompress(content) if content.startswith(GZIP) else content
        file_name = document_name(os.path.relpath(name, shared))
        if file_name in files:
            raise ValueError(
                f"{name} and a second member would both be {file_name}; rename a member"
            )
        files[file_name] = _document(name, text)
    return files


def document_name(member: str) -> str:
    """Return a document's file name, without the edition (`_gut`).

    The name consists of letters, digits and `_`, and ends in .txt.
    """
    path = PurePosixPath(member)
    stem = "_".join([*path.parts[:-1], path.name.removesuffix(".gz")])
    stem = stem.removesuffix(PurePosixPath(stem).suffix).removesuffix("_gut")
    return (re.sub(r"[\W_]+", "_", stem).strip("_").lower() or "document") + ".txt"


def _document(name: str, content: bytes) -> bytes:
    text = content.decode("utf-8-sig", errors="surrogateescape")
    invalid = NOT_UTF8.search(text)
    if invalid:
        line = text.count("\n", 0, invalid.start()) + 1
        raise ValueError(f"{name} is not UTF-8 text (line {line}); save the file as UTF-8")
    lines = [line.rstrip() for line in text.splitlines()]
    return ("\n".join(lines).strip("\n") + "\n").encode()


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
        body = f"{title}\n\n" + SUPPLIED_WORDS.sub("", text[start:end])
        books[document_name(f"{number:02d}_{name}")] = _document(name, body.encode())
    return books


def _values(node: ast.expr) -> list[str]:
    """Return the values of a literal mapping.

    The keys are names and cannot be evaluated.
    """
    assert isinstance(node, ast.Dict)
    return [ast.literal_eval(value) for value in node.values]
