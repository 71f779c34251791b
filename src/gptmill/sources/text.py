"""Documents: plain text files as they come, and the books of a Bible kept in Python source."""

import ast
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

SUPPLIED_WORDS = re.compile(r"[\[\]]")


def documents(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return each member as one document: UTF-8 without a mark, lines ending in a newline.

    The archive's own ending for one edition of a text (`_gut`) is left out of the name.
    """
    made = {document_name(name): _document(content) for name, content in members.items()}
    assert len(made) == len(members), "two members must not become one document"
    return made


def document_name(member: str) -> str:
    """Return the file name of a member's document: letters, digits and `_` only."""
    stem = PurePosixPath(member).stem.removesuffix("_gut")
    return re.sub(r"[\W_]+", "_", stem).strip("_").lower() + ".txt"


def _document(content: bytes) -> bytes:
    lines = [line.rstrip() for line in content.decode("utf-8-sig").splitlines()]
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
        books[document_name(f"{number:02d}_{name}")] = _document(body.encode())
    return books


def _values(node: ast.expr) -> list[str]:
    """Return a literal mapping's values; its keys are names, which cannot be evaluated."""
    assert isinstance(node, ast.Dict)
    return [ast.literal_eval(value) for value in node.values]
