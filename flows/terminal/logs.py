"""The log file of a pipeline run: every line, with the times.

The terminal gets the same lines where VERBOSE is set. Otherwise the run's view shows the stages,
and the terminal gets warnings and tracebacks alone.
"""

import logging
import os
import sys
import time
from pathlib import Path

from flows.servers import LOGS

KEPT = 20  # logs of earlier runs
OF_THE_VIEW = ("Finished in state ", "Crash detected! ", "Task run failed with state: ")
"""Beginnings of Prefect's messages on states, that the view shows."""


def is_verbose() -> bool:
    """Return whether the terminal gets all log lines: VERBOSE has a value other than 0."""
    return os.environ.get("VERBOSE", "") not in ("", "0")


def new_file() -> Path:
    """Return the path of this run's log, and remove old logs."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for old in sorted(LOGS.glob("pipeline-*.log"))[:-KEPT]:
        old.unlink(missing_ok=True)
    return LOGS / time.strftime("pipeline-%Y%m%d-%H%M%S.log")


def write_to(file: Path, *, terminal: bool) -> None:
    """Write all log lines of this process into a file; into the terminal by choice."""
    from prefect.logging.handlers import PrefectConsoleHandler

    root, handler = logging.getLogger(), logging.FileHandler(file, encoding="utf-8")
    consoles = [one for one in root.handlers if isinstance(one, PrefectConsoleHandler)]
    for console in consoles:
        handler.setFormatter(console.formatter)
        if not terminal:
            root.removeHandler(console)
    root.addHandler(handler)
    if not terminal:
        root.addHandler(Alarms())


class Alarms(logging.Handler):
    """Warnings, tracebacks and the address of the run's page, for the terminal."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is news to a reader of the view."""
        message = record.getMessage()
        if message.startswith("View at "):
            return True
        return record.levelno >= logging.WARNING and not message.startswith(OF_THE_VIEW)

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record to the present standard error, that a board may hold."""
        print(self.format(record), file=sys.stderr, flush=True)
