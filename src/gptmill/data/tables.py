"""Markdown tables for reports and for MLflow and Prefect pages."""

import pandas as pd


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table as markdown, with escaped cells.

    A cell cannot break the row: pipes are escaped and newlines become spaces.
    """

    def cell(value: object) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    rows = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(cell(value) for value in row) + " |" for row in rows)
