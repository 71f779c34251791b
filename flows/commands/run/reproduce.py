"""`make reproduce RUN=...`: make a pipeline run again, from its own record, and compare the hashes.

The run's git ref gives code, params and sources in a worktree, and data.dvc gives the data by hash.
Every stage runs: DVC's cache of outputs is empty there. The user's tree stays as it is.
"""

import sys
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.commands.arguments import named
from flows.dvc.repro import FAILED
from flows.nights.causes import causes, conditions, different_files
from flows.nights.keeping import COMMIT_TAG, ENVIRONMENT, FOLDER, environment
from flows.sides.runs import DEVICE, STAGE
from flows.trees import tree
from flows.trees.apart import Apart
from tasks.processes import locks
from tasks.project.graph import parse_lock
from tasks.tracking import registry, runs
from tasks.tracking.delivery import find_run
from tasks.tracking.record import SIGNAL_S, RunRecord

USAGE = "usage: make reproduce RUN=ID, the id of a pipeline run in MLflow (on the run's page)"


@dataclass(frozen=True)
class Difference:
    """A file that differs, or a stage that failed, and the cause."""

    stage: str
    file: str
    cause: str


def main(arguments: list[str]) -> int:
    """Make a run again; the status is 1 where an output differs."""
    given = named(arguments, ("RUN",), USAGE)
    with locks.project("make reproduce"):
        run = registry.answered(lambda: _pipeline_run(given.get("RUN", "")))
        commit = _commit(run)
        lock = parse_lock(tree.git("show", f"{commit}:dvc.lock"), "dvc.lock of the run")
        names = [name for name in lock if f"{STAGE}{name}" in run.data.tags]
        differences = _reproduce(run, commit, {name: lock[name] for name in names})
    if not differences:
        print(f"equal: {len(names)} stages have the outputs of {run.info.run_name}")
        return 0
    _print(differences, str(run.info.run_name))
    return 1


def _pipeline_run(name: str) -> Any:
    """Return the pipeline's run with an id, or above the stage's run with an id."""
    run = find_run(name) if name else None
    if run is not None and run.data.tags.get("stage") != "pipeline":
        run = find_run(run.data.tags.get("mlflow.parentRunId", ""))
    if run is None or run.data.tags.get("stage") != "pipeline":
        raise ValueError(f"RUN={name} is no pipeline run in MLflow; {USAGE}")
    return run


def _commit(run: Any) -> str:
    """Return the commit of a run's record; raise ValueError where there is none."""
    commit = run.data.tags.get(COMMIT_TAG)
    name = run.info.run_name
    if commit is None:
        raise ValueError(
            f"{name} cannot be made again: its record has no git commit, since the run did not "
            "end, or had no git repository"
        )
    try:
        tree.git("cat-file", "-e", f"{commit}^{{commit}}")
    except ValueError:
        raise ValueError(
            f"{name} cannot be made again here: this repository has no commit {commit}; fetch it "
            "from the clone that ran it: git fetch CLONE 'refs/gptmill/runs/*:refs/gptmill/runs/*'"
        ) from None
    return str(commit)


def _reproduce(run: Any, commit: str, lock: dict[str, Any]) -> list[Difference]:
    """Run the stages in a worktree; return the differences."""
    name = f"reproduction of {run.info.run_name}"
    tags = {"stage": "reproduction", "reproduces": run.info.run_id}
    record = RunRecord(name, tags=tags)
    # the stages log no model, as the trials of a sweep
    variables = {runs.SWEEP_VARIABLE: record.id}
    try:
        with closing(Apart(f"reproduce-{run.info.run_id[:8]}", commit, variables)) as place:
            place.take_pinned_data()
            place.forget_outputs()
            differences = _run_stages(place, run, lock, record.id)
    except BaseException:
        record.end("KILLED", patience=SIGNAL_S)
        raise
    record.tags({"reproduced": "different" if differences else "equal"})
    record.end("FINISHED")
    return differences


def _run_stages(place: Apart, run: Any, lock: dict[str, Any], parent: str) -> list[Difference]:
    context = {runs.PARENT_VARIABLE: parent, runs.FLOW_VARIABLE: runs.this_process()}
    differences: list[Difference] = []
    for stage, before in lock.items():
        outcome, _ = place.bring(
            stage,
            on_line=lambda line: print(f"  {line}", flush=True),
            on_event=lambda event: None,
            context=context,
            unchanged=False,
            force=False,
        )
        if outcome.state == FAILED:
            return [*differences, Difference(stage, "", f"the stage failed: {outcome.message}")]
        text = (place.folder / "dvc.lock").read_text(encoding="utf-8")
        now = parse_lock(text, "dvc.lock of the reproduction")[stage]
        files = different_files(place.folder, before, now)
        print(f"{stage}: {'different' if files else 'equal'}", flush=True)
        start = outcome.first("start")
        if files:
            inputs = causes(before, now)
            why = "; ".join(inputs) or _conditions(run, stage, start["run"] if start else "")
            differences += [Difference(stage, file, why) for file in files]
    return differences


def _conditions(run: Any, stage: str, again: str) -> str:
    """Return the differences of packages and hardware between two runs of a stage."""
    first = find_run(run.data.tags[f"{STAGE}{stage}"].partition(":")[2])
    second = find_run(again)
    before, now = _recorded(first), environment()
    for one, found in ((first, before), (second, now)):
        if one is not None and found:
            devices = {k: v for k, v in one.data.params.items() if k.startswith(DEVICE)}
            found["hardware"] = {**found["hardware"], **devices}
    return conditions(before, now)


def _recorded(stage_run: Any) -> dict[str, Any]:
    """Return the environment recorded by the pipeline run that ran a stage, empty without it."""
    from mlflow.artifacts import load_dict
    from mlflow.exceptions import MlflowException

    parent = stage_run.data.tags.get("mlflow.parentRunId") if stage_run is not None else None
    above = find_run(parent) if parent else None
    if above is None:
        return {}
    try:
        return dict(load_dict(f"{above.info.artifact_uri}/{FOLDER}/{ENVIRONMENT}"))
    except (MlflowException, OSError):
        return {}


def _print(differences: list[Difference], name: str) -> None:
    table = Table(title=f"other bytes than in {name}", title_justify="left")
    for column in ("stage", "file", "cause"):
        table.add_column(column, overflow="fold")
    for one in differences:
        table.add_row(one.stage, one.file, one.cause)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
