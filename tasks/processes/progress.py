"""Progress of long work: a bar in a terminal, or plain lines.

Without a terminal a plain line is due every few seconds.
"""

import sys
import time
from collections import deque
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL = 5.0  # seconds between plain lines
RECENT = 30.0  # seconds whose steps give the estimate of the time left
BELIEVABLE = 3.0  # seconds of steps before an estimate is shown


@dataclass
class Meter:
    """Progress meter of a stage. Reporting only: a meter cannot change an artifact."""

    label: str
    marks: deque[tuple[float, int]] = field(default_factory=deque)
    """The times of the last steps: the first step of a process is slow, and does not count."""
    shown: float = 0.0
    bar: Progress | None = None
    task: TaskID | None = None

    def update(self, step: int, steps: int, text: str) -> str | None:
        """Show `step` of `steps`; return a plain line when due."""
        if sys.stdout.isatty():
            self._draw(step, steps, text)
            return None
        now = time.monotonic()
        remaining = self._remaining(now, step, steps)
        if step < steps and now - self.shown < PLAIN_INTERVAL:
            return None
        self.shown = now
        left = "" if remaining is None else f"  {duration(remaining)} left"
        return f"step {step}/{steps}  {text}{left}"

    def _remaining(self, now: float, step: int, steps: int) -> float | None:
        """Return the seconds left by the last steps, or None while there are too few."""
        if self.marks and step <= self.marks[-1][1]:  # undone steps
            self.marks.clear()
        self.marks.append((now, step))
        while len(self.marks) > 2 and now - self.marks[1][0] > RECENT:
            self.marks.popleft()
        begun, first = self.marks[0]
        if now - begun < BELIEVABLE:
            return None
        return (now - begun) / (step - first) * (steps - step)

    def close(self) -> None:
        """Stop the bar and free the terminal for lines of text."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _draw(self, step: int, steps: int, text: str) -> None:
        if self.bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(20))
            figures = (TextColumn("{task.completed}/{task.total}  {task.fields[text]}"),)
            self.bar = Progress(
                *columns, *figures, TimeRemainingColumn(), console=Console(), transient=True
            )
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=steps, text=text)
        assert self.task is not None
        self.bar.update(self.task, completed=step, total=steps, text=text)


def duration(seconds: float) -> str:
    """Format seconds for a reader: `48s`, `3m12s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
