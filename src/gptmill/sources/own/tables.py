"""Tables of a user in any form: .csv, .tsv, .jsonl, .json, .parquet, each also compressed.

A form is known by the file's ending, compression by the file's first bytes.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from gptmill.files import parse_json
from gptmill.sources.own.decoding import ENDINGS, UTF_8, decoded, decompressed

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
NO_SEPARATOR = "\x1f"
QUOTED_CELL = re.compile(r'"(?:[^"]|"")*"')
MOST_COLUMNS = 4096
FIRST_ROW = 1 << 20  # letters
END = "end"


@dataclass(frozen=True)
class Table:
    """The rows of a file, and the detected form in words, empty for UTF-8 with commas."""

    rows: pd.DataFrame
    form: str


def stem_of(name: str) -> str:
    """Return a file's path without the endings of form and compression."""
    path = PurePosixPath(name)
    path = path.with_suffix("") if path.suffix.lower() in ENDINGS else path
    return path.with_suffix("").as_posix()


def form_of(name: str) -> str:
    """Return the ending that gives a file's form, in lower case: `.csv` of `a.CSV.gz`."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in ENDINGS else path.suffix


def read_table(content: bytes, name: str, *, header: bool = True) -> Table:
    """Read a table; cells are text, numbers, lists and objects, as the form has them.

    Without `header`, the columns of a .csv or .tsv are named 1, 2, 3. Raises ValueError with the
    file, the place and the allowed content.
    """
    read = READERS.get(form_of(name))
    if read is None:
        raise ValueError(f"{name} has no known ending; allowed are {', '.join(READERS)}")
    table = read(decompressed(content, name), name, header)
    if table.rows.empty:
        raise ValueError(f"{name} has no rows; add a row for each text")
    repeated = table.rows.columns[table.rows.columns.duplicated()]
    if len(repeated):
        raise ValueError(f"{name} has two columns {repeated[0]}; rename one of them")
    return table


def read_tables(members: Mapping[str, bytes], *, header: bool = True) -> tuple[pd.DataFrame, str]:
    """Read the tables of all files as a single table, in the order of the names.

    Return the table, and the detected forms in words. Files of other forms are left out.
    """
    known = {name: content for name, content in members.items() if form_of(name) in READERS}
    if not known:
        raise ValueError(
            f"{', '.join(sorted(members)[:3])}: no table; allowed endings are "
            f"{', '.join(READERS)}, each also with .gz or .zst"
        )
    tables = {name: read_table(known[name], name, header=header) for name in sorted(known)}
    forms = [f"{name}: {table.form}" for name, table in tables.items() if table.form]
    left_out = len(members) - len(known)
    if left_out:
        forms.append(f"{left_out} files of other forms are left out")
    rows = pd.concat([table.rows for table in tables.values()], ignore_index=True)
    return rows, "; ".join(forms)


def _csv(content: bytes, name: str, header: bool) -> Table:
    text, encoding = decoded(content, name)
    separator, rows = _separated(text, name, prefer="\t" if form_of(name) == ".tsv" else ",")
    if header:
        columns = [str(cell).strip() for cell in rows.iloc[0]]
        rows = rows.iloc[1:].reset_index(drop=True)
    else:
        columns = [str(number) for number in range(1, len(rows.columns) + 1)]
    rows.columns = pd.Index(columns, dtype=object)
    form = "" if encoding == UTF_8 else encoding
    if separator in SEPARATORS and separator != ",":
        form += f"{', ' if form else ''}columns separated by {SEPARATORS[separator]}"
    return Table(rows, form)


def _separated(text: str, name: str, *, prefer: str) -> tuple[str, pd.DataFrame]:
    """Return the separator that fits every row, and the rows."""
    counts = {separator: _first_row(text, separator) for separator in [prefer, *SEPARATORS]}
    if not any(counts.values()):
        raise ValueError(f"{name} is empty; the first line names the columns")
    likely = sorted((s for s in counts if counts[s] > 1), key=lambda s: -counts[s])
    refusals = []
    for separator in likely or [NO_SEPARATOR]:
        try:
            return separator, _parsed(text, separator, counts.get(separator, 1))
        except ValueError as error:
            separated = f"columns separated by {SEPARATORS.get(separator, 'nothing')}"
            refusals.append(f"{name}, read with {separated}: {error}")
    raise ValueError(refusals[0])


def _first_row(text: str, separator: str) -> int:
    """Return the number of cells in the first row that is not blank."""
    csv.field_size_limit(max(csv.field_size_limit(), FIRST_ROW + 1))
    reader = csv.reader(io.StringIO(text[:FIRST_ROW], newline=""), delimiter=separator)
    return next((len(row) for row in reader if row), 0)


def _parsed(text: str, separator: str, cells: int) -> pd.DataFrame:
    """Parse rows; double quotes count as letters where they do not enclose cells.

    Raises ValueError for rows of different lengths and for a quote that is never closed.
    """
    if '"' not in text:
        return _pyarrow_rows(text, separator, quoted=False)
    try:
        rows = _pyarrow_rows(text, separator, quoted=False)
    except ValueError:
        pass  # a separator or line end within quotes
    else:
        opened = (cell for cell in rows.to_numpy().flat if cell.startswith('"'))
        if not all(QUOTED_CELL.fullmatch(cell) for cell in opened):
            return rows
    rows = _pyarrow_rows(f"{text}\n{separator.join([END] * cells)}\n", separator, quoted=True)
    if list(rows.iloc[-1]) != [END] * cells:
        raise ValueError(f"row {len(rows)} has a double quote that is never closed; close it")
    return rows.iloc[:-1]


def _pyarrow_rows(text: str, separator: str, *, quoted: bool) -> pd.DataFrame:
    content = text.encode()
    names = [f"f{number}" for number in range(MOST_COLUMNS)]
    try:
        table = pyarrow.csv.read_csv(
            pa.py_buffer(content),
            read_options=pyarrow.csv.ReadOptions(
                autogenerate_column_names=True, use_threads=False, block_size=len(content) + 1
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=separator, quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        reason = str(error).removeprefix("CSV parse error: ")
        raise ValueError(f"{reason[:200]}; put cells with separators in double quotes") from None
    return pd.DataFrame(table.to_pydict(), dtype=object)


def _json_lines(content: bytes, name: str, header: bool) -> Table:
    text, encoding = decoded(content, name)
    return _records(_lines(text, name), name, encoding)


def _json(content: bytes, name: str, header: bool) -> Table:
    text, encoding = decoded(content, name)
    if text.lstrip().startswith("["):
        rows = enumerate(parse_json(text, name), start=1)
        return _records(((f"row {number}", row) for number, row in rows), name, encoding)
    if not text.lstrip().partition("\n")[0].rstrip().endswith("}"):
        raise ValueError(
            f"{name} is not a table; allowed are a list of objects, and an object on each line"
        )
    return _records(_lines(text, name), name, encoding)


def _lines(text: str, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", parse_json(line, f"{name}, line {number}")


def _records(rows: Iterator[tuple[str, Any]], name: str, encoding: str) -> Table:
    records = []
    for place, row in rows:
        if not isinstance(row, dict):
            raise ValueError(
                f"{name}, {place} is not a JSON object; allowed are a list of objects, and an "
                "object on each line"
            )
        records.append(row)
    return Table(pd.DataFrame(records, dtype=object), "" if encoding == UTF_8 else encoding)


def _parquet(content: bytes, name: str, header: bool) -> Table:
    try:
        table = pyarrow.parquet.read_table(pa.py_buffer(content))
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} is not a whole Parquet file: {reason}") from None
    rows = pd.DataFrame(table.to_pylist(), columns=table.column_names, dtype=object)
    for column, names in _class_names(table.schema.metadata or {}, name).items():
        rows[column] = [dict(enumerate(names)).get(cell) for cell in rows[column]]
    return Table(rows, "")


def _class_names(metadata: Mapping[bytes, bytes], name: str) -> dict[str, list[str]]:
    """Return the names behind numbered classes, as Hugging Face's data sets keep them."""
    text = metadata.get(b"huggingface", b"{}").decode(errors="replace")
    content = parse_json(text, f"{name}, metadata of Hugging Face")
    try:
        features = content["info"]["features"].items()
        return {column: value["names"] for column, value in features if "names" in value}
    except (AttributeError, KeyError, TypeError):
        return {}


READERS: Mapping[str, Callable[[bytes, str, bool], Table]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
