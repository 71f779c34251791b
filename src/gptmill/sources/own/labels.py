"""Labelled texts of a user, as the CSV that `split` reads."""

import csv
import io
from collections.abc import Mapping

from gptmill.data.row_files import trim_label
from gptmill.sources.own.columns import (
    by_position,
    chosen,
    guessed,
    left_out,
    text_columns,
    unread,
)
from gptmill.sources.own.converted import Converted
from gptmill.sources.own.tables import read_tables

ROLES = ("label", "text")


def labels(members: Mapping[str, bytes], *, name: str, fields: Mapping[str, str]) -> Converted:
    """Return `NAME.csv` with the columns label,text.

    `fields` gives the columns of label and text by name, or by position for tables without a
    header. Rows without a label or a text are left out and counted. Raises ValueError for unfit
    tables.
    """
    where = ", ".join(sorted(members)[:3])
    if set(fields) != set(ROLES):
        raise ValueError(f"fields are {', '.join(fields) or 'none'}; labels need text and label")
    table, form = read_tables(members, header=not by_position(fields))
    rows = text_columns(chosen(table, {role: fields[role] for role in ROLES}, where), where)
    rows["label"] = rows["label"].map(trim_label)
    kept = rows[(rows["label"] != "") & (rows["text"].map(trim_label) != "")]
    if kept.empty:
        raise ValueError(f"{where} has no row with a label and a text")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([ROLES, *kept.itertuples(index=False)])
    return Converted(
        {f"{name}.csv": text.getvalue().encode()},
        form,
        unread(table, fields),
        left_out(len(rows) - len(kept), "no label or no text"),
    )


def label_fields(members: Mapping[str, bytes]) -> dict[str, str]:
    """Return the likely columns of label and text; raise ValueError where no choice is clear."""
    table, _ = read_tables(members)
    return guessed(table, ROLES, ", ".join(sorted(members)[:3]))
