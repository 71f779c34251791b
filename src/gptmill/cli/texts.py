"""Texts of the user: arguments, lines of standard input, and files."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptmill.cli import options

STDIN = "-"


def read_texts(arguments: Sequence[str], file: Path | None) -> list[str]:
    """Return the texts of the arguments; `-` stands for the lines of standard input.

    A file is read by its ending: the column `text` of a .csv, the field `text` of each line of a
    .jsonl, otherwise the lines that are not blank. Raises ValueError where there is no text, for
    `file` beside arguments, and naming file and line for bad content.
    """
    if file is not None:
        if arguments:
            raise ValueError("give either --file or TEXT, not both")
        texts = _of_file(file)
        origin = str(file)
    elif list(arguments) == [STDIN]:
        texts, origin = _lines(options.read_stdin("TEXT")), "standard input"
    else:
        texts, origin = [options.utf8(text, "TEXT") for text in arguments], "TEXT"
    if not texts:
        raise ValueError(f"{origin} has no text: give at least one, as TEXT, with --file or by -")
    return texts


def read_file(path: Path) -> str:
    """Read a text file as training text is read: no byte order mark, lines end in a newline.

    Raises ValueError for a folder, and for a file that is not UTF-8.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a text file is needed")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def one_line(text: str) -> str:
    """Return a text as one cell of a line: quoted as JSON if it has a tab or an end of a line."""
    is_plain = "\t" not in text and text.splitlines() in ([], [text])
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def _lines(text: str) -> list[str]:
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line for line in lines if line.strip()]


def _of_file(path: Path) -> list[str]:
    text = read_file(path)
    if path.suffix == ".csv":
        return _of_csv(path, text)
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        return [_of_json(path, number, line) for number, line in lines if line.strip()]
    return _lines(text)


def _of_csv(path: Path, text: str) -> list[str]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if (reader.fieldnames or []).count("text") != 1:
            listed = ", ".join(reader.fieldnames or []) or "nothing"
            raise ValueError(f"{path} needs one column text; the first line names {listed}")
        return [row["text"] or "" for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV (line {reader.line_num}): {error}") from None


def _of_json(path: Path, number: int, line: str) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise ValueError(
            f"{path}, line {number} has no text; allowed are a string, and an object with `text`"
        )
    return text
