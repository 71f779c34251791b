"""Calls of `flows/trees/worker.py` in a git worktree, each a process of its own.

The process works with the worktree's own code, params and data, and writes its records into the
project's MLflow store.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flows.trees.here import Say, Tell
from gptmill.files import read_json
from tasks.processes import receipt
from tasks.processes.process import running_group
from tasks.tracking.store import AwayError, tracking_uri

# seconds for a stage to close its records when a run is stopped; the stage itself has 20 of them
CLOSE_TIMEOUT_S = 40.0
MISTAKES: dict[str, Callable[[str], Exception]] = {"away": AwayError, "mistake": ValueError}


class Caller:
    """The calls of a worktree."""

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        """Store the worktree; `variables` are additional ones for its processes."""
        self.folder = folder
        self.variables = {
            "MLFLOW_TRACKING_URI": tracking_uri(),
            "DVC_SITE_CACHE_DIR": str(folder / ".dvc" / "tmp" / "site"),
            receipt.VARIABLE: str(folder / ".state" / "receipt.jsonl"),
            **(variables or {}),
        }

    def call(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        on_line: Say = print,
        on_event: Tell = lambda event: None,
    ) -> Any:
        """Run a call in the worktree; forward lines and events, and return the result.

        When the call ends early, every process of the call is ended first. Raises ValueError for
        a mistake of the user, and AwayError where MLflow is away.
        """
        file = self.folder / ".state" / "answer.json"
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        text = json.dumps({"name": name, "arguments": arguments or {}})
        status, last = self._run(["-m", "flows.trees.worker", text, str(file)], on_line, on_event)
        if not file.exists():
            raise ValueError(f"{name}: the process in the worktree ended with {status}: {last}")
        answer = read_json(file)
        for key, kind in MISTAKES.items():
            if key in answer:
                raise kind(answer[key])
        return answer["result"]

    def _run(self, words: list[str], on_line: Say, on_event: Tell) -> tuple[int, str]:
        """Run Python in the worktree; return the status and the last line."""
        events = receipt.ReceiptReader(Path(self.variables[receipt.VARIABLE]))
        events.path.unlink(missing_ok=True)
        last = ""
        with running_group(
            words, folder=self.folder, variables=self.variables, patience=CLOSE_TIMEOUT_S
        ) as (process, lines):
            for line in lines:
                on_line(line.rstrip())
                last = line.strip() or last
                for event in events.new():
                    on_event(event)
        for event in events.new():
            on_event(event)
        return process.returncode, last
