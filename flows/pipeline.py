"""The pipeline flow: dvc.yaml's stages as Prefect tasks.

Prefect shows, schedules and cancels stages; DVC alone decides whether a stage is stale. Stages
run in the graph's order, a single stage at a time, since each stage takes the whole machine.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import State, Task, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run, task_run
from prefect.states import Completed, Failed
from rich.console import Console
from rich.table import Table

from flows import pages
from flows.changes import run_name
from flows.commands.data.base import current
from flows.commands.data.data import make_data, read_table, reason
from flows.dvc.repro import (
    EXECUTED,
    FAILED,
    UNCHANGED,
    StageOutcome,
    repro,
    unchanged_stages,
)
from flows.flow_states import FlowNote, wait_for_prefect
from flows.registry.review import Reviewed, as_markdown, away, review
from flows.registry.rules import mistake, rules
from flows.results import main_figure, main_figures
from gptmill.records import content_hash
from tasks.processes import locks
from tasks.processes.progress import duration
from tasks.project.environment import ROOT
from tasks.project.graph import forget, locked_outputs, stages, upstream
from tasks.tracking import runs
from tasks.tracking.record import SIGNAL_S, RunRecord
from tasks.tracking.store import AwayError


@dataclass(frozen=True)
class StageRow:
    """A row of the table printed after a pipeline run."""

    stage: str
    state: str
    seconds: float
    figure: str


def stage_task(
    stage: str,
    context: dict[str, str],
    rows: list[StageRow],
    *,
    note: FlowNote,
    unchanged: set[str],
) -> Task[[], State[None]]:
    """Return the Prefect task of a stage.

    The task appends the outcome of the stage to `rows`, and its state to the flow's note.
    `unchanged` are the stages that DVC would skip: none once a stage ran.
    """

    def bring_up_to_date() -> State[None]:
        started = time.monotonic()
        outcome = repro(
            stage,
            on_line=get_run_logger().info,
            on_event=pages.ProgressPage(stage, note).on_event,
            context=context,
            unchanged=stage in unchanged,
        )
        if outcome.state != UNCHANGED:
            unchanged.clear()
        seconds = time.monotonic() - started
        if outcome.state != FAILED:
            note.send(lambda: pages.stage_page(outcome, seconds=seconds))
        state = _prefect_state(outcome, seconds, rows)
        note.task(str(task_run.id), state)
        return state

    return Task(
        bring_up_to_date,
        name=stage,
        task_run_name=stage,
        description=stages()[stage]["desc"],
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def _prefect_state(outcome: StageOutcome, seconds: float, rows: list[StageRow]) -> State[None]:
    """Return an outcome's Prefect state, and append its row.

    The state is Completed where the stage ran, Cached where DVC had the outputs, and Failed
    otherwise.
    """
    stage = outcome.stage
    if outcome.state == FAILED:
        rows.append(StageRow(stage, FAILED, seconds, outcome.message))
        return Failed(message=outcome.message)
    figure = main_figure(stage)
    ran = outcome.state == EXECUTED
    rows.append(StageRow(stage, "ran" if ran else "cached", seconds, figure))
    if ran:
        return Completed(message=figure)
    return Completed(name="Cached", message=f"{outcome.state}: {figure}")


@flow(name="pipeline", flow_run_name=run_name, persist_result=False)
def pipeline(data: bool = True) -> State[None]:
    """Run stale stages, from raw text to classifier and assistant.

    Unless `data` is false, the sources are read first: a file added to a source is then part of
    the run. Where a source is away, no stage runs, and all results stay as they are. At the end the
    models are registered, and the gate judges new versions.
    """
    note = FlowNote(str(flow_run.id))
    with note.kept():
        with locks.project("make pipeline", say=get_run_logger().info):
            forget()  # while this run waited, another command may have written params.yaml
            obstacle = mistake() or (_read_sources(note) if data else None)
            name = _renamed(note) if data else str(flow_run.name)
            state = _bring_up_to_date(note, name) if obstacle is None else Failed(message=obstacle)
        note.flow(state)
        wait_for_prefect()
    return state


def _read_sources(note: FlowNote) -> str | None:
    """Bring data/ to the state of the sources, as a task; return the reason of a failure."""

    def bring_up_to_date() -> State[None]:
        state = data_state(ROOT)
        note.task(str(task_run.id), state)
        return state

    description = "bring data/ to the state of sources.toml and of the user's own files"
    task = Task(
        bring_up_to_date,
        name="data",
        task_run_name="data",
        description=description,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    state: State[Any] = task(return_state=True)
    forget()  # hashes of data/
    if state.is_completed():
        return None
    return state.message or "data: the sources could not be read"


def _renamed(note: FlowNote) -> str:
    """Name the flow run by the changes that the sources brought; return the name."""
    name, client = run_name(), get_client(sync_client=True)
    note.send(lambda: client.update_flow_run(UUID(str(flow_run.id)), name=name))
    return name


def data_state(root: Path) -> State[None]:
    """Bring data/ up to date; return Failed with the reason where a source cannot be read."""
    try:
        make_data(root, read_table(root / "sources.toml"))
    except (OSError, ValueError) as error:
        return Failed(message=f"data: {reason(error)}; no stage ran")
    return Completed(message="data/ is up to date")


def _bring_up_to_date(note: FlowNote, name: str) -> State[None]:
    """Run the stages below a parent run in MLflow; return the flow's final state."""
    started = time.monotonic()
    parent = _open_parent(name)
    try:
        rows = _run_stages(parent.id, note)
        _record(parent, rows)
        failed = rows[-1].state == FAILED
        told = [] if failed else _review_models(parent, note)
        page, text = _as_markdown(rows), summary(rows)
        note.send(lambda: create_markdown_artifact(page, key="pipeline", description=text))
    except BaseException:
        parent.end("KILLED", patience=SIGNAL_S)
        raise
    parent.end("FAILED" if failed else "FINISHED")
    print_table(rows, time.monotonic() - started)
    for sentence in told:
        print(sentence)
    return Failed(message=rows[-1].figure) if failed else Completed(message=text)


def _run_stages(parent: str, note: FlowNote) -> list[StageRow]:
    """Run the stages in graph order, up to a failure."""
    context = {
        runs.PARENT_VARIABLE: parent,
        runs.FLOW_VARIABLE: runs.this_process(),
    }
    rows: list[StageRow] = []
    unchanged = unchanged_stages()
    states: dict[str, State[State[None]]] = {}
    for stage in stages():
        upstream_states = [states[name] for name in upstream(stage)]
        task = stage_task(stage, context, rows, note=note, unchanged=unchanged)
        states[stage] = task(wait_for=upstream_states, return_state=True)
        if states[stage].is_failed():
            break
    return rows


def _review_models(parent: RunRecord, note: FlowNote) -> list[str]:
    """Register and judge the models; return the sentences with news."""
    try:
        reviewed = review(rules())
    except AwayError as error:
        return [away(error)]
    news = [one for one in reviewed if one.is_news]
    parent.tags({f"gate.{one.kind}": one.sentence[:5000] for one in news})
    if news:
        note.send(lambda: _gate_page(reviewed))
    return [one.sentence for one in news]


def _gate_page(reviewed: list[Reviewed]) -> None:
    text = "; ".join(f"{one.kind} {one.version} {one.state}" for one in reviewed if one.is_news)
    create_markdown_artifact(as_markdown(reviewed), key="gate", description=text)


def _open_parent(name: str) -> RunRecord:
    """Open the parent MLflow run of the stages' runs."""
    tags = {"prefect.flow_run_id": str(flow_run.id or ""), "stage": "pipeline", "base": current()}
    return RunRecord(name, tags=tags)


def _record(parent: RunRecord, rows: list[StageRow]) -> None:
    """Link each stage's MLflow run, tag dvc.lock's hash, and record the main figures.

    Runs made by an earlier pipeline run are linked, too.
    """
    if rows[-1].state != FAILED:
        parent.metrics(main_figures(), 0)
    for row in rows:
        run = runs.maker(locked_outputs(row.stage))
        parent.tag(f"stage.{row.stage}", f"{row.state}:{run or 'unknown'}")
    if (ROOT / "dvc.lock").exists():
        parent.tag("dvc.lock", content_hash(ROOT / "dvc.lock"))


def summary(rows: list[StageRow]) -> str:
    """Summarise the pipeline run in a single line."""
    ran = [row.stage for row in rows if row.state == "ran"]
    failed = [row.stage for row in rows if row.state == FAILED]
    if failed:
        return f"{failed[0]} failed"
    return f"ran {', '.join(ran)}" if ran else "everything was up to date: nothing ran"


def _as_markdown(rows: list[StageRow]) -> str:
    lines = [f"| {r.stage} | {r.state} | {r.seconds:.1f} | {r.figure} |" for r in rows]
    return "\n".join(["| stage | state | seconds | figure |", "| --- | --- | --- | --- |", *lines])


def print_table(rows: list[StageRow], seconds: float) -> None:
    """Print the state, duration and main figure of each stage."""
    table = Table(title=f"{summary(rows)} ({duration(seconds)})", title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    table.add_column("main figure", overflow="fold")
    for row in rows:
        style = {"cached": "dim", FAILED: "red"}.get(row.state)
        table.add_row(row.stage, row.state, f"{row.seconds:.1f}", row.figure, style=style)
    Console().print(table)
