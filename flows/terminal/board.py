"""A board of all stages in a terminal: a bar for each stage, then its result beside baselines."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from flows.dvc.repro import FAILED
from flows.nights.rows import StageRow
from flows.terminal.views import Lines, ending, result
from tasks.processes.progress import duration
from tasks.project.graph import stages

RUNNING = "running"
STYLES = {"cached": "dim", FAILED: "red"}
PER_SECOND = 4.0  # drawings of the board: the processor is the training's


class Seconds(ProgressColumn):
    """The duration of a stage by now."""

    def render(self, task: Task) -> Text:
        """Return the duration, "" for a stage that has not begun."""
        seconds = task.fields["seconds"]
        if task.fields["state"] == RUNNING:
            seconds = time.monotonic() - task.fields["began"]
        return Text("" if seconds is None else duration(seconds), justify="right")


class Words(ProgressColumn):
    """The steps of a running stage in a line, or the result of a finished stage."""

    def render(self, task: Task) -> Text:
        """Return the words."""
        state, text = task.fields["state"], task.fields["text"]
        if state != RUNNING:
            return Text(text, style=STYLES.get(state, ""))
        if not task.started:
            return Text(text, style="dim", no_wrap=True, overflow="ellipsis")
        left = task.time_remaining if not task.finished else None
        steps = f"{task.completed:,.0f}/{task.total:,.0f}"
        words = [steps, "" if left is None else f"{duration(left)} left", text]
        return Text("  ".join(filter(None, words)), no_wrap=True, overflow="ellipsis")


class Board(Lines):
    """Bars of all stages, drawn anew at each event."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(14),
            Seconds(Column(min_width=5)),
            Words(Column(ratio=1, overflow="fold")),
            console=Console(),
            refresh_per_second=PER_SECOND,
            redirect_stderr=sys.stderr.isatty(),
            expand=True,
        )
        self.tasks: dict[str, TaskID] = {}

    def __exit__(self, *_: object) -> None:
        """Draw the board for the last time; a stage at work was stopped."""
        for task in self.progress.tasks:
            if task.fields["state"] == RUNNING:
                self._show(task.description, state="stopped", text="stopped")
        self.progress.stop()

    def plan(self, names: Sequence[str]) -> None:
        """Draw the bars of all stages, empty."""
        for name in names:
            self._add(name)
        self.progress.start()

    def begin(self, stage: str) -> None:
        """Let the stage's bar pulse up to the first step."""
        self.progress.reset(self.tasks[stage], start=False)
        text = str(stages()[stage]["desc"])
        self._show(stage, state=RUNNING, began=time.monotonic(), text=text)

    def event(self, stage: str, event: dict[str, Any]) -> None:
        """Move the stage's bar on a step."""
        if event["event"] == "step":
            task, steps = self.tasks[stage], event["steps"]
            self.progress.start_task(task)
            self.progress.update(task, completed=event["step"], total=steps, text=event["text"])

    def end(self, row: StageRow) -> None:
        """Fill the bar, and show the result beside the baselines."""
        self.trace = self.trace if row.state == FAILED else []
        task = self.tasks[row.stage]
        self.progress.start_task(task)
        if row.state != FAILED:
            self.progress.update(task, completed=1, total=1)
        self._show(row.stage, state=row.state, seconds=row.seconds, text=result(row))

    def after(self, work: str) -> None:
        """Show a pulsing bar under the stages."""
        self._add("")
        self.progress.reset(self.tasks[""], start=False)
        self._show("", state=RUNNING, began=time.monotonic(), text=work)

    def close(self, rows: Sequence[StageRow], seconds: float) -> None:
        """Show baselines that the evaluation has measured meanwhile, and end the drawing."""
        for row in rows:
            self._show(row.stage, text=result(row))
        if "" in self.tasks:
            self.progress.remove_task(self.tasks.pop(""))
        self.progress.stop()
        print(ending(rows, seconds), flush=True)

    def _add(self, name: str) -> None:
        self.tasks[name] = self.progress.add_task(
            name, total=1, state="", seconds=None, began=0.0, text=""
        )

    def _show(self, name: str, **fields: Any) -> None:
        self.progress.update(self.tasks[name], **fields)
