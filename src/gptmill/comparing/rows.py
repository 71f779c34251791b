"""Common test rows of two sides, without rows that either side was trained on.

Rows are matched by content, since a place in the file says nothing after a new split.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gptmill.comparing.section import LEAST_ROWS, MissingError
from gptmill.comparing.side import Side
from gptmill.data.row_files import fold
from gptmill.files import read_json

TRAINED_PARTS = ("train", "validation")
"""Parts seen in training; the validation part may choose the checkpoint."""


@dataclass(frozen=True)
class Common:
    """The same rows of both sides in the same order, and how the rows were chosen."""

    first: pd.DataFrame
    second: pd.DataFrame
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.first)


def common_rows(
    tables: Sequence[pd.DataFrame],
    *,
    same: Sequence[str],
    seen: Sequence[Collection[str] | None],
    text: Sequence[str],
) -> Common:
    """Match the rows of both sides by the columns `same`.

    Rows are left out if their columns `text` are among the folded texts `seen` in training by
    either side; None stands for unknown training rows. Raises MissingError below 30 rows.
    """
    unique = [table.drop_duplicates(list(same)).set_index(list(same)) for table in tables]
    index = unique[0].index.intersection(unique[1].index, sort=False)
    known: set[str] = set().union(*(texts for texts in seen if texts is not None))
    both = index.to_frame(index=False)
    keys = both[list(text)].agg(" ".join, axis=1).map(fold) if len(both) else pd.Series(dtype=str)
    kept = both[~keys.isin(known)] if len(both) else both
    notes = [
        f"{len(kept):,} test rows compared: of {len(tables[0]):,} in A and {len(tables[1]):,} in "
        f"B, {len(both):,} are in both, and {len(both) - len(kept):,} of these were left out, "
        "since A or B was trained on them"
    ]
    notes += [
        f"the training rows of {letter} are not known: rows that {letter} was trained on "
        "may be among the test rows"
        for letter, texts in zip("AB", seen, strict=True)
        if texts is None
    ]
    if len(kept) < LEAST_ROWS:
        raise MissingError(f"{notes[0]}; a verdict needs at least {LEAST_ROWS} rows")
    chosen = pd.MultiIndex.from_frame(kept) if len(same) > 1 else pd.Index(kept[same[0]])
    first, second = (table.loc[chosen].reset_index() for table in unique)
    return Common(first, second, tuple(notes))


def seen_texts(
    side: Side, folder: str, ending: str, read: Callable[[Path], pd.DataFrame], text: Sequence[str]
) -> set[str] | None:
    """Return the folded texts of a side's training and validation rows; None if unknown."""
    paths = [f"{folder}/{part}.{ending}" for part in TRAINED_PARTS]
    if not all(map(side.has, paths)):
        return None
    tables = [read(side.file(path)) for path in paths]
    return {fold(" ".join(row)) for table in tables for row in table[list(text)].to_numpy()}


def read_strings(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV file as text; raise ValueError where a column is missing."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from None
    return _with_columns(table, path, columns)


def read_records(
    path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a JSON list of objects as text; a missing optional field is empty, a list is JSON."""
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a JSON list of objects")
    cells = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in r.items()} for r in rows]
    table = pd.DataFrame(cells, dtype="str")
    table = table.assign(**{name: "" for name in optional if name not in table}).fillna("")
    return _with_columns(table, path, [*columns, *optional])


def _with_columns(table: pd.DataFrame, path: Path, columns: Sequence[str]) -> pd.DataFrame:
    absent = [name for name in columns if name not in table]
    if absent:
        given = ", ".join(map(str, table.columns)) or "none"
        raise ValueError(
            f"{path} has no column {', '.join(absent)}; needed are {', '.join(columns)}, "
            f"the columns are {given}"
        )
    return table
