"""Columns of a user's table: given by name or position, or guessed from usual names."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gptmill.data.row_files import SURROGATE
from gptmill.sources.own.decoding import unix_lines

NAMES: Mapping[str, tuple[str, ...]] = {
    "text": (
        *("text", "message", "content", "body", "sentence", "review", "comment", "description"),
        *("tweet", "utterance", "sms", "document", "title"),
    ),
    "label": (
        *("label", "labels", "class", "category", "target", "intent", "sentiment", "topic", "tag"),
    ),
}
"""Usual column names; `text` and `label` win over all others."""
MEASURES = {"count", "date", "id", "index", "length", "number", "score", "time", "url"}
"""Words in the names of columns about a text: `text_length` holds no text."""
SHOWN = 40  # letters of a cell in a message


def by_position(fields: Mapping[str, str]) -> bool:
    """Return whether columns are given by position, as for a table without a header."""
    return bool(fields) and all(column.isdecimal() for column in fields.values())


def guessed(table: pd.DataFrame, roles: Sequence[str], where: str) -> dict[str, str]:
    """Return the column of each role, where a single column is likely.

    Raises ValueError, listing the columns, where none or several are.
    """
    fields: dict[str, str] = {}
    columns = list(map(str, table.columns))
    for role in roles:
        likely = [column for column in columns if column.casefold() in NAMES[role]]
        likely = likely or [column for column in columns if _tells(column, role)]
        fields |= {role: role} if role in columns else _only(role, likely)
    rest = [column for column in columns if column not in fields.values()]
    missing = [role for role in roles if role not in fields]
    if len(missing) == 1 and len(rest) == 1:
        return fields | {missing[0]: rest[0]}
    if missing:
        raise ValueError(
            f"{where} has no single column for {' and '.join(missing)}; {listed(table)}; add "
            f"FIELDS={','.join(f'{role}=COLUMN' for role in roles)}, or positions such as "
            f"FIELDS={','.join(f'{role}={k}' for k, role in enumerate(roles, 1))} for a .csv or "
            ".tsv without a header"
        )
    return fields


def _tells(column: str, role: str) -> bool:
    """Return whether a column's name has a usual name among its words: `Review text`."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", column).casefold())
    return not MEASURES.intersection(words) and bool({*words}.intersection(NAMES[role]))


def _only(role: str, likely: Sequence[str]) -> dict[str, str]:
    return {role: likely[0]} if len(likely) == 1 else {}


def listed(table: pd.DataFrame) -> str:
    """Return the columns and the first row's cells, for a message."""
    cells = [f"{column} ({str(table[column].iloc[0])[:SHOWN]!r})" for column in table.columns]
    return f"the columns are {', '.join(cells)}"


def chosen(table: pd.DataFrame, fields: Mapping[str, str], where: str) -> pd.DataFrame:
    """Return the columns of the roles under the names of the roles.

    Raises ValueError for a column that the table lacks.
    """
    for role, column in fields.items():
        if column not in table.columns:
            raise ValueError(f"{where} has no column {column} for {role}; {listed(table)}")
    return pd.DataFrame({role: table[column] for role, column in fields.items()}, dtype=object)


def as_text(cell: Any, where: str) -> str:
    """Return a cell as text: a number as written, nothing for a missing value.

    Raises ValueError for lists, objects and half a surrogate pair.
    """
    if cell is None or (isinstance(cell, float) and cell != cell):
        return ""
    if isinstance(cell, dict | list):
        raise ValueError(f"{where} must be text or a number, not {str(cell)[:SHOWN]!r}")
    text = unix_lines(cell if isinstance(cell, str) else str(cell))
    wrong = re.search(r"\0", text) or SURROGATE.search(text)
    if wrong:
        raise ValueError(f"{where} has the character {wrong[0]!r}; remove the character")
    return text


def text_columns(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the table with every cell as text."""
    return pd.DataFrame(
        {
            name: [
                as_text(cell, f"{where}, row {number}: {name}")
                for number, cell in enumerate(table[name], start=1)
            ]
            for name in table.columns
        },
        dtype="str",
    )


def unread(table: pd.DataFrame, fields: Mapping[str, str]) -> str:
    """Return a note on the columns that no role reads, empty for none."""
    columns = [str(column) for column in table.columns if column not in fields.values()]
    return f"columns left out: {', '.join(columns)}" if columns else ""


def left_out(n_dropped: int, reason: str) -> str:
    """Return a note on dropped rows, empty for none."""
    return f"rows dropped: {n_dropped:,} with {reason}" if n_dropped else ""
