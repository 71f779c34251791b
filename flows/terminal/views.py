"""What a pipeline run shows while it works.

A deployment's run has Prefect's log alone, and so has `make pipeline VERBOSE=1`. Otherwise a
terminal gets a board of bars, and a file or a pipe gets plain lines.
"""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from prefect import get_run_logger

from flows.dvc.repro import FAILED
from flows.nights.rows import StageRow, print_table, summary
from flows.results import beside
from tasks.processes.progress import duration
from tasks.project.graph import stages

TRACEBACK = "Traceback (most recent call last)"
DONE = {"ran": "ran in {}", "cached": "is up to date", FAILED: "failed after {}"}


class View(AbstractContextManager["View"]):
    """The log alone, with a table at the end."""

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was, also after a signal."""

    def plan(self, names: Sequence[str]) -> None:
        """Show the stages of the run."""

    def begin(self, stage: str) -> None:
        """Show that a stage begins."""

    def event(self, stage: str, event: dict[str, Any]) -> None:
        """Show an event of a stage's receipt."""

    def line(self, text: str) -> None:
        """Log a line that a stage printed."""
        get_run_logger().info(text)

    def end(self, row: StageRow) -> None:
        """Show a stage's end."""

    def after(self, work: str) -> None:
        """Show the work after the last stage."""

    def say(self, sentence: str) -> None:
        """Tell a sentence."""
        get_run_logger().info(sentence)

    def close(self, rows: Sequence[StageRow], seconds: float) -> None:
        """Show the results of all stages."""
        print_table(rows, seconds)

    def fail(self, message: str) -> None:
        """Show why the run failed; the log has told."""


VIEW: ContextVar[View] = ContextVar("VIEW", default=View())  # noqa: B039 - holds nothing
"""The view of the run in this process."""


class Lines(View):
    """A plain line for a stage's start and end, and a table with the baselines at the end."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        """What a stage printed from its traceback on: a bug of ours, which a reader must see."""

    def begin(self, stage: str) -> None:
        """Print the stage's description."""
        print(f"{stage}: {stages()[stage]['desc']}", flush=True)

    def line(self, text: str) -> None:
        """Log the line, and keep a traceback for the end."""
        super().line(text)
        if self.trace or text.startswith(TRACEBACK):
            self.trace.append(text)

    def end(self, row: StageRow) -> None:
        """Print the state, and the result beside its baseline."""
        self.trace = self.trace if row.state == FAILED else []
        text = f"{row.stage} {DONE[row.state].format(duration(row.seconds))}"
        print(f"{text}: {result(row)}" if row.state != FAILED else text, flush=True)

    def say(self, sentence: str) -> None:
        """Print the sentence, and log it."""
        super().say(sentence)
        print(sentence, flush=True)

    def close(self, rows: Sequence[StageRow], seconds: float) -> None:
        """Print the table, with baselines that the evaluation has measured meanwhile."""
        if rows[-1].state != FAILED:
            print_table([replace(row, figure=result(row)) for row in rows], seconds)

    def fail(self, message: str) -> None:
        """Print the traceback of a bug, and the message."""
        print("\n".join([*self.trace, message]), file=sys.stderr, flush=True)


def result(row: StageRow) -> str:
    """Return a stage's main figure beside its baselines, or a failure's first line."""
    if row.state == FAILED:
        return row.figure.partition("\n")[0]
    return f"{row.figure}{beside(row.stage)}"


def ending(rows: Sequence[StageRow], seconds: float) -> str:
    """Return the line under all stages: `everything was up to date: nothing ran (4s)`."""
    return f"{summary(rows)} ({duration(seconds)})"
