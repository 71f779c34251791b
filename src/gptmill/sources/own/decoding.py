"""Bytes of a user's file as text: decompressed, with the encoding detected."""

import codecs
import re

import pyarrow as pa

COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
ENDINGS = (".gz", ".zst", ".zstd")
# The mark of UTF-32 LE begins with the mark of UTF-16 LE.
MARKS = {
    codecs.BOM_UTF8: ("utf-8-sig", "UTF-8 with a byte order mark"),
    codecs.BOM_UTF32_LE: ("utf-32", "UTF-32"),
    codecs.BOM_UTF32_BE: ("utf-32", "UTF-32"),
    codecs.BOM_UTF16_LE: ("utf-16", "UTF-16"),
    codecs.BOM_UTF16_BE: ("utf-16", "UTF-16"),
}
UTF_8 = "UTF-8"
CONTROLS = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f]")
FOREIGN_WORD = re.compile(r"\w*[^\W\x00-\x7f]\w*|[^\x00-\x7f]")


def decompressed(content: bytes, name: str) -> bytes:
    """Return a file's content without gzip or zstd; raise ValueError for a damaged file."""
    codec = next((codec for start, codec in COMPRESSED.items() if content.startswith(start)), None)
    if codec is None:
        return content
    try:
        with pa.input_stream(pa.py_buffer(content), compression=codec) as stream:
            plain: bytes = stream.read()
    except OSError as error:
        raise ValueError(f"{name} is damaged ({codec}: {error}); copy the file again") from None
    return plain


def decoded(content: bytes, name: str) -> tuple[str, str]:
    r"""Return a file's text and the name of the detected encoding.

    Encodings are UTF-8, UTF-16 and UTF-32 by their marks, UTF-16 by the zero bytes of plain
    letters, and cp1252 (Windows, Western Europe), shown with a word to check by. Line ends become
    `\n`. Raises ValueError for a binary file.
    """
    codec, shown = _encoding(content, name)
    try:
        text = content.decode(codec)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is neither UTF-8 nor another known encoding ({error}); save the file as UTF-8"
        ) from None
    control = CONTROLS.search(text)
    if control:
        raise ValueError(
            f"{name} is not a text file: character {control[0]!r} at offset {control.start()}; "
            "save the file as UTF-8 text or remove the file"
        )
    word = FOREIGN_WORD.search(text) if codec == "cp1252" else None
    return unix_lines(text), f"{shown} (for example {word[0]!r})" if word else shown


def unix_lines(text: str) -> str:
    r"""Return text whose lines end in `\n` alone."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _encoding(content: bytes, name: str) -> tuple[str, str]:
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return encoding
    if b"\0" in content:
        return _utf_16(content, name)
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252", "cp1252"
    return "utf-8", UTF_8


def _utf_16(content: bytes, name: str) -> tuple[str, str]:
    """Return the order of UTF-16's bytes; raise ValueError for zero bytes without a pattern.

    Letters of European languages have their zero bytes at odd offsets in little-endian.
    """
    zeros = {"be": content[::2].count(0), "le": content[1::2].count(0)}
    order = max(zeros, key=zeros.__getitem__)
    if zeros[order] * 10 < len(content) or min(zeros.values()) * 10 > zeros[order]:
        raise ValueError(
            f"{name} is not a text file: zero byte at offset {content.index(0)}; save the file as "
            "UTF-8 text or remove the file"
        )
    return f"utf-16-{order}", "UTF-16 without a mark"
