"""Files of labelled texts and of instructions: reading, with every row checked."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gptmill.files import parse_json

SURROGATE = re.compile("[\ud800-\udfff]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")
LABELLED_COLUMNS = ("label", "text")
INSTRUCTION_COLUMNS = ("instruction", "input", "output", "kind", "key")


def read_labelled(path: Path) -> pd.DataFrame:
    """Read the columns `label` and `text` of a CSV file.

    All further columns are left out. Raises ValueError, naming the row, for a file that is not
    UTF-8 or not CSV, for a missing or repeated column, for an empty label or text, and for labels
    that differ only in case, spaces or the form of a number.
    """
    rows = _read_rows(path)
    header = [name.strip() for name in rows[0]] if rows else []
    missing = [name for name in LABELLED_COLUMNS if name not in header]
    if missing:
        raise ValueError(
            f"{path} has no column {' and no column '.join(missing)}; the first line names"
            f" {', '.join(header) or 'nothing'}; a labelled file has the columns label,text"
        )
    for name in LABELLED_COLUMNS:
        if header.count(name) > 1:
            raise ValueError(
                f"{path} has {header.count(name)} columns {name}; rename all but one of them"
            )
    if len(rows) == 1:
        raise ValueError(f"{path} has a header but no rows; add a row for each text")
    table = _labelled_table(path, header, rows[1:])
    _check_labels(path, dict.fromkeys(map(trim_label, table["label"])))
    return table


def trim_label(label: str) -> str:
    """Return a label without spaces and invisible characters at both ends.

    Invisible are control and format characters (Unicode's categories Cc and Cf), such as a
    zero-width space.
    """
    start, end = 0, len(label)
    while start < end and _is_blank(label[start]):
        start += 1
    while start < end and _is_blank(label[end - 1]):
        end -= 1
    return label[start:end]


def _is_blank(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


def _check_labels(path: Path, labels: Iterable[str]) -> None:
    """Raise ValueError for two labels that a reader would call the same."""
    first: dict[str, str] = {}
    for label in labels:
        key = _label_key(label)
        if key in first:
            raise ValueError(
                f"{path} has the labels {first[key]!r} and {label!r}, which differ only in case, "
                "spaces or the form of a number; write both in the same way"
            )
        first[key] = label


def _label_key(label: str) -> str:
    """Return a string that is equal for labels with the same meaning."""
    visible = "".join(c for c in label if unicodedata.category(c) not in ("Cc", "Cf"))
    folded = fold(unicodedata.normalize("NFKC", visible))
    return repr(float(folded)) if NUMBER.fullmatch(folded) else folded


def _read_rows(path: Path) -> list[list[str]]:
    text = _read_utf8(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [row for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV (line {reader.line_num}): {error}") from error


def _labelled_table(path: Path, header: Sequence[str], rows: Sequence[list[str]]) -> pd.DataFrame:
    columns = [header.index(name) for name in LABELLED_COLUMNS]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, row {number} has {len(row)} cells, the header {len(header)};"
                " put cells with commas in double quotes"
            )
        for name, column in zip(LABELLED_COLUMNS, columns, strict=True):
            if not trim_label(row[column]):
                raise ValueError(
                    f"{path}, row {number} has an empty {name}; add the {name} or remove the row"
                )
    cells = [[row[column] for column in columns] for row in rows]
    return pd.DataFrame(cells, columns=list(LABELLED_COLUMNS), dtype="str")


def read_instructions(path: Path) -> pd.DataFrame:
    """Read instruction rows from a JSON list of objects; see `parse_instructions`."""
    return parse_instructions(_read_utf8(path), path)


def parse_instructions(text: str, path: Path) -> pd.DataFrame:
    """Return the instruction rows of a JSON list of objects; `path` is for error messages.

    Each object has `instruction`, `output` and optionally `input`, `kind` and `key`: the words
    that a right answer must name. The table has a column for each; a row without a kind gets the
    kind "other", a row without a key the empty text. Optional `history` holds the messages before
    the instruction; the table has the column where a row has earlier messages.
    Raises ValueError, naming the row, for a row unfit for training.
    """
    rows = parse_json(text, path, surrogates=True)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must hold a JSON list of at least one instruction row")
    records = [_instruction(path, number, row) for number, row in enumerate(rows, start=1)]
    table = pd.DataFrame(records, columns=list(INSTRUCTION_COLUMNS), dtype="str")
    histories = [_history(path, number, row) for number, row in enumerate(rows, start=1)]
    if any(histories):
        table["history"] = pd.Series(histories, dtype=object)
    return table


def instruction_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as objects, without empty histories."""
    return [
        {str(name): cell for name, cell in row.items() if cell or name != "history"}
        for row in table.to_dict("records")
    ]


def _history(path: Path, number: int, row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the messages before the instruction, empty for most rows."""
    history = row.get("history") or []
    where = f"{path}, row {number}: history"
    if not isinstance(history, list) or not all(isinstance(message, dict) for message in history):
        raise ValueError(f"{where} must be a list of messages, not {str(history)[:40]!r}")
    turns = history[1:] if history and history[0].get("role") == "system" else history
    roles = [message.get("role") for message in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(
            f"{where} has the roles {', '.join(map(str, roles)) or 'none'}; allowed is a system "
            "message, then user and assistant in turn"
        )
    for message in history:
        content = message.get("content")
        if not isinstance(content, str) or SURROGATE.search(content):
            raise ValueError(f"{where} has a content that is no text, {str(content)[:40]!r}")
    return [{"role": message["role"], "content": message["content"]} for message in history]


def _instruction(path: Path, number: int, row: Any) -> dict[str, str]:
    if not isinstance(row, dict):
        raise ValueError(f"{path}, row {number} is not a JSON object with instruction and output")
    record = {"input": "", "kind": "other", "key": ""} | {
        name: row[name] for name in INSTRUCTION_COLUMNS if row.get(name) is not None
    }
    for name, value in record.items():
        if not isinstance(value, str):
            raise ValueError(f"{path}, row {number}: {name} must be text, not {value!r}")
        if SURROGATE.search(value):
            raise ValueError(
                f"{path}, row {number}: {name} has half a surrogate pair, {value!r}; such a "
                "character cannot be written as UTF-8: remove or replace it"
            )
    for name in ("instruction", "output"):
        if not record.get(name, "").strip():
            raise ValueError(
                f"{path}, row {number} has no {name}; every row needs the field {name}"
            )
    return record


def fold(text: str) -> str:
    """Return the text with case and spaces folded.

    Two texts fold to the same string if a reader would call them the same.
    """
    return " ".join(text.casefold().split())


def _read_utf8(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    content = path.read_bytes()
    text = content.decode("utf-8-sig", errors="surrogateescape")
    invalid = next((index for index, char in enumerate(text) if "\udc80" <= char <= "\udcff"), None)
    if invalid is not None or "\0" in text:
        line = text.count("\n", 0, text.find("\0") if invalid is None else invalid) + 1
        raise ValueError(f"{path} is not UTF-8 text (line {line}); save the file as UTF-8")
    return text
