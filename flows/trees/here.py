"""Work of a pipeline run in this tree: sources, stages, review, push.

A pipeline run works in the user's tree or in a worktree (flows/trees/apart.py), by the same calls.
Arguments and results are plain enough to pass between the processes of two trees.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flows.commands.data.data import make_data, read_table, reason
from flows.dvc.command import dvc, push
from flows.dvc.repair import repair
from flows.dvc.repro import RESTORED, UNCHANGED, StageOutcome, repro, stale_stages, unchanged_stages
from flows.registry.review import Reviewed, review
from flows.registry.rules import rules
from flows.results import Results, main_figures, results_of
from gptmill.sources.address import PassingError
from tasks.frame.restored import record_restored
from tasks.project.environment import ROOT
from tasks.project.graph import ancestors, forget, stages
from tasks.tracking import runs

Say = Callable[[str], None]
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Obstacle:
    """Why the sources could not be read, and whether the reason may pass by itself."""

    reason: str
    may_pass: bool


class Here:
    """The tree of this process."""

    folder = ROOT

    def read_sources(self, say: Say = print) -> Obstacle | None:
        """Bring data/ to the state of the sources; return the obstacle of a failure."""
        try:
            make_data(ROOT, read_table(ROOT / "sources.toml"))
        except (OSError, ValueError) as error:
            text = f"data: {reason(error)}; no stage ran"
            return Obstacle(text, may_pass=isinstance(error, PassingError))
        finally:
            forget()  # hashes of data/
        return None

    def restore_data(self) -> None:
        """Restore the pinned data/ from DVC's cache."""
        repair()
        if (ROOT / "data.dvc").exists():
            # DVC copies or clones, and never links: a worktree cannot change the cache's files
            dvc(ROOT, "checkout", "--quiet", "--force", "data.dvc")

    def order(self, chosen: Sequence[str]) -> list[str]:
        """Return the chosen stages in the graph's order; raise ValueError for stale inputs."""
        names = [name for name in stages() if name in chosen]
        before = {above for name in names for above in ancestors(name)} - {*names}
        stale = stale_stages([name for name in stages() if name in before])
        if stale:
            raise ValueError(
                f"{names[0]}: the inputs are stale, since {stale[0]} would run again: add "
                f"{', '.join(stale)} to `stages`, or run `make {stale[0]}`"
            )
        return names

    def unchanged(self) -> list[str]:
        """Return the stages that DVC would skip."""
        return sorted(unchanged_stages())

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
        outcome = repro(
            stage,
            on_line=on_line,
            on_event=on_event,
            context=dict(context),
            unchanged=unchanged,
            force=force,
        )
        if outcome.state in (RESTORED, UNCHANGED):
            record_restored(stage, parent=context.get(runs.PARENT_VARIABLE))
        return outcome, results_of(stage)

    def review(self) -> list[Reviewed]:
        """Register and judge the models."""
        return review(rules())

    def report(self, title: str) -> str:
        """Return the report on the artifacts; raise ValueError where there is no page."""
        from flows.commands.inspect.report import page  # imports torch
        from flows.sides.resolve import resolve

        with TemporaryDirectory(prefix="gptmill-report-") as temporary:
            return page(resolve("RUN", "artifacts", Path(temporary)), title=title)

    def figures(self) -> dict[str, float]:
        """Return the main figures of the last evaluation."""
        return main_figures()

    def push(self) -> None:
        """Send data, outputs and the run cache to DVC's default remote."""
        push(ROOT)

    def close(self) -> None:
        """Do nothing: the tree is the user's."""
