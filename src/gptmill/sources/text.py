"""Documents: plain text files as they come, and the books of a Bible kept in Python source."""

import ast
import gzip
import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

GZIP = b"\x1f\x8b"
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # as `surrogateescape` marks bytes that it cannot read
SUPPLIED_WORDS = re.compile(r"[\[\]]")


def documents(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return each member as one document: UTF-8 without a mark, lines ending in a newline.

    A gzipped member is unpacked. Folders that all members share are left out of the names.
    """
    shared = os.path.commonpath([str(PurePosixPath(name).parent) for name in members])
    made = {}
    for name, content in members.items():
        text = gzip.decompress(content) if content.startswith(GZIP) else content
        short = document_name(os.path.relpath(name, shared))
        if short in made:
            raise ValueError(f"{name} and another member would both be {short}; rename one")
        made[short] = _document(name, text)
    return made


def document_name(member: str) -> str:
    """Return a document's file name: letters, digits and `_`, without the edition (`_gut`)."""
    path = PurePosixPath(member)
    stem = "_".join([*path.parts[:-1], path.name.removesuffix(".gz")])
    stem = stem.removesuffix(PurePosixPath(stem).suffix).removesuffix("_gut")
    return (re.sub(r"[\W_]+", "_", stem).strip("_").lower() or "document") + ".txt"


def _document(name: str, content: bytes) -> bytes:
    text = content.decode("utf-8-sig", errors="surrogateescape")
    wrong = NOT_UTF8.search(text)
    if wrong:
        line = text.count("\n", 0, wrong.start()) + 1
        raise ValueError(f"{name} is not UTF-8 text (line {line}); save it as UTF-8")
    lines = [line.rstrip() for line in text.splitlines()]
    return ("\n".join(lines).strip("\n") + "\n").encode()


def kjv_books(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the 66 books of the King James Bible, one document each, under their titles.

    The text is a string in a Python file, which is read as a syntax tree and never run:
    `Bible(version, text, starts, ends, chapters, names, titles, ...)`, where the offsets of
    a verse stand under book * 1,000,000 + chapter * 1,000 + verse. Supplied words lose the
    square brackets by which the edition marks them.
    """
    (source,) = members.values()
    call = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
    names, titles = (_values(argument) for argument in call.args[5:7])
    books = {}
    for number, (name, title) in enumerate(zip(names, titles, strict=True), start=1):
        start = min(at for verse, at in starts.items() if verse // 1_000_000 == number)
        end = max(at for verse, at in ends.items() if verse // 1_000_000 == number)
        body = f"{title}\n\n" + SUPPLIED_WORDS.sub("", text[start:end])
        books[document_name(f"{number:02d}_{name}")] = _document(name, body.encode())
    return books


def _values(node: ast.expr) -> list[str]:
    """Return a literal mapping's values; its keys are names, which cannot be evaluated."""
    assert isinstance(node, ast.Dict)
    return [ast.literal_eval(value) for value in node.values]
