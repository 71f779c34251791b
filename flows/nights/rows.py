"""The table of a pipeline run: state, duration and main figure of each stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from flows.dvc.repro import FAILED
from tasks.processes.progress import duration


@dataclass(frozen=True)
class StageRow:
    """A row of the table printed after a pipeline run."""

    stage: str
    state: str
    seconds: float
    figure: str
    outputs: Mapping[str, str] = field(default_factory=dict)


def summary(rows: Sequence[StageRow]) -> str:
    """Summarise the pipeline run in a single line."""
    ran = [row.stage for row in rows if row.state == "ran"]
    failed = [row.stage for row in rows if row.state == FAILED]
    if failed:
        return f"{failed[0]} failed"
    return f"ran {', '.join(ran)}" if ran else "everything was up to date: nothing ran"


def as_markdown(rows: Sequence[StageRow]) -> str:
    """Return the table for Prefect."""
    lines = [f"| {r.stage} | {r.state} | {r.seconds:.1f} | {r.figure} |" for r in rows]
    return "\n".join(["| stage | state | seconds | figure |", "| --- | --- | --- | --- |", *lines])


def print_table(rows: Sequence[StageRow], seconds: float) -> None:
    """Print the state, duration and main figure of each stage."""
    table = Table(title=f"{summary(rows)} ({duration(seconds)})", title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    table.add_column("main figure", overflow="fold")
    for row in rows:
        style = {"cached": "dim", FAILED: "red"}.get(row.state)
        table.add_row(row.stage, row.state, f"{row.seconds:.1f}", row.figure, style=style)
    Console().print(table)
