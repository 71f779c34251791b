"""Work of a pipeline run in a git worktree: the user's tree stays as it is.

DVC's cache, the MLflow store and the files of relative sources are the project's.
"""

from collections.abc import Mapping, Sequence

from flows.dvc.command import push
from flows.dvc.repro import StageOutcome
from flows.registry.review import Reviewed
from flows.results import Results
from flows.trees import tree
from flows.trees.call import Caller
from flows.trees.here import Obstacle, Say, Tell
from tasks.project.environment import ROOT

RUNS = ROOT / ".state" / "runs"


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
        self._call = Caller(self.folder, variables).call

    def read_sources(self, say: Say = print) -> Obstacle | None:
        """Build the data of the worktree's own sources; return the obstacle of a failure."""
        answer = self._call("data", {"read": True}, on_line=say)
        return None if answer is None else Obstacle(**answer)

    def restore_data(self) -> None:
        """Restore the pinned data from DVC's cache."""
        self._call("data", {"read": False})

    def take_pinned_data(self) -> None:
        """Take the data that data.dvc pins, from a cache, a remote or the sources."""
        self._call("pinned")

    def forget_outputs(self) -> None:
        """Have every stage run: no record of outputs, and an empty cache of the worktree's own."""
        (self.folder / "dvc.lock").unlink(missing_ok=True)
        (self.folder / ".dvc" / "config.local").unlink()

    def order(self, chosen: Sequence[str]) -> list[str]:
        """Return the chosen stages, and the stages before, in the graph's order."""
        return list(self._call("order", {"chosen": list(chosen)}))

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
        answer = self._call("bring", arguments, on_line=on_line, on_event=on_event)
        return StageOutcome(**answer["outcome"]), Results(**answer["results"])

    def review(self) -> list[Reviewed]:
        """Register and judge the models."""
        rows = self._call("review")
        return [Reviewed(**{**row, "reasons": tuple(row["reasons"])}) for row in rows]

    def report(self, title: str) -> str:
        """Return the report on the worktree's artifacts, by the rules of `Here.report`."""
        return str(self._call("report", {"title": title}))

    def figures(self) -> dict[str, float]:
        """Return the main figures of the worktree's evaluation."""
        return dict(self._call("figures"))

    def push(self) -> None:
        """Send the worktree's data, outputs and run cache to DVC's default remote."""
        push(self.folder)

    def close(self) -> None:
        """Remove the worktree: outputs are in DVC's cache, models in MLflow."""
        tree.remove(self.folder)
