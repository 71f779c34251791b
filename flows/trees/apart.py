"""Work of a pipeline run in a git worktree: the user's tree stays as it is.

Each call is a process in the worktree, with the worktree's own code, params and data. DVC's cache,
the MLflow store and the files of relative sources are the project's.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.dvc.command import push
from flows.dvc.repro import StageOutcome
from flows.registry.review import Reviewed
from flows.results import Results
from flows.trees import tree
from flows.trees.here import Obstacle, Say, Tell
from gptmill.files import read_json
from tasks.processes import receipt
from tasks.processes.process import end_group, start_group
from tasks.project.environment import ROOT
from tasks.tracking.store import AwayError, tracking_uri

RUNS = ROOT / ".state" / "runs"
# seconds for a stage to close its records when a run is stopped
CLOSE_TIMEOUT_S = 40.0


def remove_left() -> None:
    """Remove the worktrees of runs that were killed; call this under the project's lock."""
    for folder in RUNS.glob("*"):
        tree.remove(folder)


class Apart:
    """A worktree at a commit."""

    def __init__(self, name: str, commit: str, variables: Mapping[str, str] | None = None) -> None:
        """Make the worktree; `variables` are additional ones for its processes."""
        self.folder = RUNS / name
        remove_left()
        RUNS.mkdir(parents=True, exist_ok=True)
        tree.prepare(self.folder, commit)
        self._variables = {
            "MLFLOW_TRACKING_URI": tracking_uri(),
            "DVC_SITE_CACHE_DIR": str(self.folder / ".dvc" / "tmp" / "site"),
            receipt.VARIABLE: str(self.folder / ".state" / "receipt.jsonl"),
            **(variables or {}),
        }

    def read_sources(self, say: Say = print) -> Obstacle | None:
        """Build the data of the worktree's own sources; return the obstacle of a failure."""
        answer = self._call("data", {"read": True}, say)
        return None if answer is None else Obstacle(**answer)

    def restore_data(self) -> None:
        """Restore the pinned data from DVC's cache."""
        self._call("data", {"read": False}, print)

    def take_pinned_data(self) -> None:
        """Take the data that data.dvc pins, from a cache, a remote or the sources."""
        self._call("pinned", {}, print)

    def forget_outputs(self) -> None:
        """Have every stage run: no record of outputs, and an empty cache of the worktree's own."""
        (self.folder / "dvc.lock").unlink(missing_ok=True)
        (self.folder / ".dvc" / "config.local").unlink()

    def order(self, chosen: Sequence[str]) -> list[str]:
        """Return the chosen stages, and the stages before, in the graph's order."""
        return list(self._call("order", {"chosen": list(chosen)}, print))

    def unchanged(self) -> list[str]:
        """Return no stage: DVC decides in the worktree."""
        return []

    def bring(
        self,
        stage: str,
        *,
        on_line: Say,
        on_event: Tell,
        context: Mapping[str, str],
        unchanged: bool,
        force: bool,
    ) -> tuple[StageOutcome, Results]:
        """Bring a stage up to date; return the outcome and the results."""
        arguments = {"stage": stage, "context": dict(context), "force": force and not unchanged}
        answer = self._call("bring", arguments, on_line, on_event)
        return StageOutcome(**answer["outcome"]), Results(**answer["results"])

    def review(self) -> list[Reviewed]:
        """Register and judge the models."""
        rows = self._call("review", {}, print)
        return [Reviewed(**{**row, "reasons": tuple(row["reasons"])}) for row in rows]

    def report(self, title: str) -> str:
        """Return the report on the worktree's artifacts, by the rules of `Here.report`."""
        return str(self._call("report", {"title": title}, print))

    def figures(self) -> dict[str, float]:
        """Return the main figures of the worktree's evaluation."""
        return dict(self._call("figures", {}, print))

    def push(self) -> None:
        """Send the worktree's data, outputs and run cache to DVC's default remote."""
        push(self.folder)

    def close(self) -> None:
        """Remove the worktree: outputs are in DVC's cache, models in MLflow."""
        tree.remove(self.folder)

    def _call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        on_line: Say,
        on_event: Tell = lambda event: None,
    ) -> Any:
        """Run a call in the worktree and return the result.

        Raises ValueError for a mistake of the user, and AwayError where MLflow is away.
        """
        file = self.folder / ".state" / "answer.json"
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        Path(self._variables[receipt.VARIABLE]).unlink(missing_ok=True)
        text = json.dumps({"name": name, "arguments": arguments})
        status, last = self._run(["-m", "flows.trees.worker", text, str(file)], on_line, on_event)
        if not file.exists():
            raise ValueError(f"{name}: the process in the worktree ended with {status}: {last}")
        answer = read_json(file)
        for key, kind in MISTAKES.items():
            if key in answer:
                raise kind(answer[key])
        return answer["result"]

    def _run(self, words: list[str], on_line: Say, on_event: Tell) -> tuple[int, str]:
        """Run Python in the worktree, and forward lines and events; return status, last line."""
        events = receipt.ReceiptReader(Path(self._variables[receipt.VARIABLE]))
        process = start_group(words, folder=self.folder, variables=self._variables)
        assert process.stdout is not None
        last = ""
        try:
            for line in process.stdout:
                on_line(line.rstrip())
                last = line.strip() or last
                for event in events.new():
                    on_event(event)
            process.wait()
        except BaseException:
            end_group(process, patience=CLOSE_TIMEOUT_S)
            raise
        finally:
            process.stdout.close()
        for event in events.new():
            on_event(event)
        return process.returncode, last


MISTAKES: dict[str, Callable[[str], Exception]] = {"away": AwayError, "mistake": ValueError}
