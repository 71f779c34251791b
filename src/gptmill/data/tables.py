"""Markdown tables for reports and for MLflow and Prefect pages."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import pandas as pd

Table: TypeAlias = pd.DataFrame | Sequence[Mapping[str, object]]
"""A table, or its rows."""


def markdown_table(table: Table) -> str:
    """Return a table, or rows of one, as markdown with escaped cells.

    A cell cannot break the row: pipes are escaped and newlines become spaces.
    """

    def cell(value: object) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    if not isinstance(table, pd.DataFrame):
        table = pd.DataFrame(table)
    rows = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(cell(value) for value in row) + " |" for row in rows)
