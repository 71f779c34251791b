"""Labelled texts and instructions: read, checked, freed of duplicates, split in three parts.

Duplicates go before the split. Otherwise one message may be trained on and tested on, and
the test score tells how well the model remembers. How many rows each pair of parts would
have shared is counted on the same split of the rows with their duplicates.
"""

import csv
import hashlib
import io
import json
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

PARTS = ("train", "validation", "test")
LABELLED_COLUMNS = ("label", "text")
INSTRUCTION_COLUMNS = ("instruction", "input", "output", "kind")


@dataclass(frozen=True)
class Fractions:
    """How much of a set goes to each part; together they are the whole set."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    train: float
    validation: float
    test: float

    def __post_init__(self) -> None:
        given = (self.train, self.validation, self.test)
        if not (min(given) > 0 and abs(sum(given) - 1) < 1e-9):
            raise ValueError(
                f"fractions are train {self.train}, validation {self.validation}, test {self.test};"
                " each must be above 0 and together they must be 1"
            )

    def ends(self, rows: int) -> tuple[int, int]:
        """Return where, of `rows` rows in a row, the train and the validation part end."""
        return round(self.train * rows), round((self.train + self.validation) * rows)


@dataclass(frozen=True)
class Split:
    """The three tables by part name, and what was counted on the way."""

    parts: dict[str, pd.DataFrame]
    counts: dict[str, int]


def read_labelled(path: Path) -> pd.DataFrame:
    """Read a CSV file with the columns `label` and `text`; other columns are left out.

    Raises ValueError, naming the row, for what is not UTF-8 or not CSV, for a missing
    column, and for an empty label or text.
    """
    rows = _read_rows(path)
    header = [name.strip() for name in rows[0]] if rows else []
    missing = [name for name in LABELLED_COLUMNS if name not in header]
    if missing:
        raise ValueError(
            f"{path} has no column {' and no column '.join(missing)}; its first line names"
            f" {', '.join(header) or 'nothing'}; a labelled file has the columns label,text"
        )
    return _labelled_table(path, header, rows[1:])


def _read_rows(path: Path) -> list[list[str]]:
    reader = csv.reader(io.StringIO(_read_utf8(path), newline=""), strict=True)
    try:
        return [row for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV (line {reader.line_num}): {error}") from error


def _labelled_table(path: Path, header: Sequence[str], rows: Sequence[list[str]]) -> pd.DataFrame:
    places = [header.index(name) for name in LABELLED_COLUMNS]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, row {number} has {len(row)} cells, its header {len(header)};"
                " put a cell that holds commas in double quotes"
            )
        for name, place in zip(LABELLED_COLUMNS, places, strict=True):
            if not row[place].strip():
                raise ValueError(f"{path}, row {number} has an empty {name}; fill it or remove it")
    cells = [[row[place] for place in places] for row in rows]
    return pd.DataFrame(cells, columns=list(LABELLED_COLUMNS), dtype="str")


def read_instructions(path: Path) -> pd.DataFrame:
    """Read a JSON list of objects with `instruction`, `output` and, if any, `input` and `kind`.

    Returns the columns instruction, input, output, kind; a row without a kind is of the
    kind "other". Raises ValueError, naming the row, for what cannot be trained on.
    """
    text = _read_utf8(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must hold a JSON list of at least one instruction row")
    records = [_instruction(path, number, row) for number, row in enumerate(rows, start=1)]
    return pd.DataFrame(records, columns=list(INSTRUCTION_COLUMNS), dtype="str")


def _instruction(path: Path, number: int, row: Any) -> dict[str, str]:
    if not isinstance(row, dict):
        raise ValueError(f"{path}, row {number} is not a JSON object with instruction and output")
    record = {"input": "", "kind": "other"} | {
        name: row[name] for name in INSTRUCTION_COLUMNS if row.get(name) is not None
    }
    for name, value in record.items():
        if not isinstance(value, str):
            raise ValueError(f"{path}, row {number}: {name} is {value!r}; it must be text")
    for name in ("instruction", "output"):
        if not record.get(name, "").strip():
            raise ValueError(f"{path}, row {number} has no {name}; every row must have one")
    return record


def split_labelled(table: pd.DataFrame, fractions: Fractions, *, seed: int) -> Split:
    """Split labelled texts so that each part has the labels in the same ratio.

    Of equal texts one is kept; a text that carries two labels is left out, for nobody
    knows which is right. Raises ValueError where fewer than two labels remain or a label
    has too few texts to be in each part.
    """
    keys = table["text"].map(fold)
    conflicting = table["label"].groupby(keys).transform("nunique") > 1
    kept = ~keys.duplicated() & ~conflicting
    labels = table["label"][kept].value_counts()
    if len(labels) < 2:
        raise ValueError(
            f"the labelled texts have too few labels ({', '.join(labels.index) or 'none'});"
            " a classifier needs two or more"
        )
    for label, count in labels.items():
        _check_sizes(f"label {label!r}", count, fractions)
    rows = pd.DataFrame({"key": keys, "stratum": table["label"], "kept": kept})
    split = _split(table, rows, fractions, seed=seed)
    return Split(split.parts, split.counts | {"conflicting": int(keys[conflicting].nunique())})


def split_instructions(table: pd.DataFrame, fractions: Fractions, *, seed: int) -> Split:
    """Split instruction rows so that each part has the kinds in the same ratio.

    Of rows with equal prompts (instruction and input) the first is kept, whatever it
    answers, so that no prompt of the test part is trained on. Raises ValueError where a
    part would be empty.
    """
    keys = (table["instruction"] + "\n" + table["input"]).map(fold)
    kept = ~keys.duplicated()
    _check_sizes("the instruction set", int(kept.sum()), fractions)
    rows = pd.DataFrame({"key": keys, "stratum": table["kind"], "kept": kept})
    split = _split(table, rows, fractions, seed=seed)
    answers = table["output"].map(fold).groupby(keys).nunique()
    return Split(split.parts, split.counts | {"conflicting": int((answers > 1).sum())})


def fold(text: str) -> str:
    """Return what two texts share that a reader would call the same: case and spaces folded."""
    return " ".join(text.casefold().split())


def assign(rows: pd.DataFrame, fractions: Fractions, *, seed: int) -> "pd.Series[str]":
    """Name the part of each row, a pure function of the seed, its `key` and its `stratum`.

    Within a stratum rows are ranked by a hash of seed and key and then cut, so neither
    their order in the file nor a library's random generator has a say.
    """
    nth = rows.groupby("key").cumcount()
    marks = [f"{seed} {n} {key}" for n, key in zip(nth, rows["key"], strict=True)]
    ranks = [hashlib.sha256(mark.encode()).hexdigest() for mark in marks]
    ordered = rows.assign(rank=ranks).sort_values("rank")
    place = ordered.groupby("stratum").cumcount()
    ends = ordered["stratum"].map(
        {name: fractions.ends(len(group)) for name, group in ordered.groupby("stratum")}
    )
    parts = [PARTS[bisect(two, at)] for two, at in zip(ends, place, strict=True)]
    return pd.Series(parts, index=ordered.index, dtype="str").reindex(rows.index)


def shared(keys: "pd.Series[str]", parts: "pd.Series[str]") -> dict[str, int]:
    """Count, for each pair of parts, the rows of the one whose key stands in the other."""
    pairs = (("validation", "train"), ("test", "train"), ("test", "validation"))
    return {
        f"{one}_rows_in_{other}": int(keys[parts == one].isin(keys[parts == other]).sum())
        for one, other in pairs
    }


def _split(table: pd.DataFrame, rows: pd.DataFrame, fractions: Fractions, *, seed: int) -> Split:
    kept = rows[rows["kept"]]
    parts = assign(kept, fractions, seed=seed)
    assert not any(shared(kept["key"], parts).values())
    tables = {name: table.loc[parts.index[parts == name]] for name in PARTS}
    would = shared(rows["key"], assign(rows, fractions, seed=seed))
    counts = {"rows": len(rows), "removed": len(rows) - len(kept)}
    counts |= {name: len(part) for name, part in tables.items()}
    counts |= {f"with_duplicates_{name}": count for name, count in would.items()}
    return Split({name: part.reset_index(drop=True) for name, part in tables.items()}, counts)


def _check_sizes(what: str, rows: int, fractions: Fractions) -> None:
    ends = (0, *fractions.ends(rows), rows)
    for name, start, end in zip(PARTS, ends, ends[1:], strict=False):
        if start == end:
            raise ValueError(
                f"{what} has {rows} distinct rows, too few for the {name} part"
                f" at {getattr(fractions, name):g} of the rows; add rows or change the fractions"
            )


def _read_utf8(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is not there")
    content = path.read_bytes()
    text = content.decode("utf-8-sig", errors="surrogateescape")
    wrong = next((at for at, char in enumerate(text) if "\udc80" <= char <= "\udcff"), None)
    if wrong is not None or "\0" in text:
        line = text.count("\n", 0, text.find("\0") if wrong is None else wrong) + 1
        raise ValueError(f"{path} is not UTF-8 text (line {line}); save it as UTF-8")
    return text
