"""Prefect pages of stages and pipeline runs: figures, samples, progress, links.

The links lead to runs, plots and files in MLflow.
"""

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from flows.dvc.repro import StageOutcome
from flows.flow_states import FlowNote
from flows.nights.rows import StageRow, as_markdown, summary
from flows.results import Results, shown
from flows.servers import MLFLOW_VIEW, mlflow_address
from tasks.project.graph import stages
from tasks.tracking import runs

PROGRESS_INTERVAL = 2.0  # seconds between two updates of a progress page


def slug(stage: str) -> str:
    """Return a stage's name as a valid Prefect key."""
    return stage.replace("_", "-")


class ProgressPage:
    """A progress bar on the task's page.

    The bar is created at the first step.
    """

    def __init__(self, stage: str, note: FlowNote) -> None:
        self.stage = stage
        self.note = note
        self.id: UUID | None = None
        self.updated = 0.0

    def on_event(self, event: dict[str, Any]) -> None:
        """Update the bar on a `step` event.

        Updates are at least PROGRESS_INTERVAL apart: a person cannot follow faster changes.
        """
        if event["event"] != "step":
            return
        is_last_step = event["step"] >= event["steps"]
        if not is_last_step and time.monotonic() - self.updated < PROGRESS_INTERVAL:
            return
        self.updated = time.monotonic()
        percent = 100.0 * event["step"] / event["steps"]
        self.note.send(lambda: self._show(percent, event["text"]))

    def _show(self, percent: float, text: str) -> None:
        if self.id is None:
            key = f"{slug(self.stage)}-progress"
            artifact_id = create_progress_artifact(percent, key=key, description=text)
            assert isinstance(artifact_id, UUID)
            self.id = artifact_id
        else:
            update_progress_artifact(self.id, percent, description=text)


def stage_page(outcome: StageOutcome, results: Results, *, seconds: float) -> None:
    """Create the page of a stage that ended successfully."""
    stage = outcome.stage
    start = outcome.first("start")
    run = start["run"] if start else runs.maker(results.outputs)
    parts = [f"# {stage}: {outcome.state}", stages()[stage]["desc"] + "."]
    if start is None:
        parts.append("The stage's inputs have not changed since its last run.")
    parts.append(_links(outcome, run))
    figures = [f"| {name} | {shown(value)} |" for name, value in results.metrics.items()]
    parts.append("\n".join(["| figure | value |", "| --- | --- |", *figures]))
    parts += [
        f"## {event['title']}\n\n{event['text']}"
        for event in outcome.events
        if event["event"] == "show"
    ]
    hashes = [f"- `{path}` {value}" for path, value in results.outputs.items()]
    parts.append("\n".join(["## Output files", *hashes, f"\nready after {seconds:.1f} s"]))
    create_markdown_artifact("\n\n".join(parts), key=slug(stage), description=results.figure)


def pipeline_page(rows: Sequence[StageRow], run: str, *, report: str | None) -> None:
    """Create the page of a pipeline run: links to MLflow, and the table of the stages.

    `report` is the path of the report in the MLflow run, if the run has a report.
    """
    links = [f"[MLflow run]({run_address(run)})"]
    links += [f"[{report}]({file_address(run, report)})"] if report else []
    text = f"{', '.join(links)} (open with `make ui`)\n\n{as_markdown(rows)}"
    create_markdown_artifact(text, key="pipeline", description=summary(rows))


def run_address(run: str) -> str:
    """Return the address of a run's page in MLflow."""
    return f"{mlflow_address()}/#/experiments/{runs.experiment()}/runs/{run}?{MLFLOW_VIEW}"


def file_address(run: str, path: str) -> str:
    """Return the address of MLflow's view of a file of a run."""
    site = f"{mlflow_address()}/#/experiments/{runs.experiment()}"
    return f"{site}/runs/{run}/artifacts/{path}?{MLFLOW_VIEW}"


def _links(outcome: StageOutcome, run: str | None) -> str:
    if run is None:
        return "No MLflow run in this store produced the stage's files."
    lines = [f"[MLflow run]({run_address(run)}) (open with `make ui`)"]
    for event in outcome.events:
        if event["event"] == "figure":
            name = event["name"]
            plot = f"{mlflow_address()}/get-artifact?path=plots/{name}.png&run_uuid={run}"
            lines.append(f"[{name}]({plot})")
    return ", ".join(lines)
