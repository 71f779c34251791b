"""The pipeline flow: dvc.yaml's stages as Prefect tasks.

Prefect shows, schedules and cancels stages; DVC alone decides whether a stage is stale. Stages
run in the graph's order, a single stage at a time, since each stage takes the whole machine. A run
with params of its own works in a worktree, and the user's tree stays as it is.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect import State, Task, flow
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run, task_run
from prefect.states import Completed, Failed

from flows import pages
from flows.changes import run_name
from flows.dvc.repro import EXECUTED, FAILED, UNCHANGED, StageOutcome
from flows.flow_states import FlowNote, wait_for_prefect
from flows.nights.keeping import Keeping
from flows.nights.plan import KEEP, BaseName, Overrides, Plan, Stages
from flows.nights.rows import StageRow, summary
from flows.registry.announce import REPORT, announce, attach_report
from flows.results import Results
from flows.terminal.views import VIEW
from flows.trees import tree
from flows.trees.apart import Apart
from flows.trees.here import Here
from gptmill.records import content_hash
from tasks.processes import locks
from tasks.project.graph import forget, stages, upstream
from tasks.tracking import runs
from tasks.tracking.outbox import finish_runs
from tasks.tracking.record import END_S, SIGNAL_S, RunRecord

BACKOFF_S = [10.0, 60.0, 240.0]
"""Seconds before each new try of a fetch: about five minutes in all."""
AWAY = "Away"
"""The name of a failed state that may pass by itself."""
ALL: list[str] = []
NONE: dict[str, Any] = {}


@dataclass
class Work:
    """A pipeline run at work: plan, tree, note for Prefect, and the rows so far."""

    plan: Plan
    tree: Here | Apart
    note: FlowNote
    kept: Keeping
    rows: list[StageRow] = field(default_factory=list)
    unchanged: set[str] = field(default_factory=set)
    """Stages that DVC would skip: none once a stage ran."""


@flow(name="pipeline", flow_run_name=run_name, persist_result=False)
def pipeline(
    base: BaseName = KEEP,
    stages: Stages = ALL,
    overrides: Overrides = NONE,
    force: bool = False,
    push: bool = False,
    data: bool = True,
) -> State[None]:
    """Run stale stages, from raw text to classifier and assistant.

    Unless `data` is off, the sources are read first: a file added to a source is then part of the
    run. Where a source is away, no stage runs, and all results stay as they are. At the end the
    models are registered, and the gate judges new versions.

    Args:
        base: The weights to fine-tune from, by a file of configs/bases; keep: those of params.yaml.
            Another base than the present one runs in a worktree, as overrides do.
        stages: Only these stages run; their inputs must be up to date. None chosen: all stages.
        overrides: Other params for this run alone, as {"pretrain.learning_rate": 0.001}. The run
            works in a worktree: artifacts/, params.yaml and dvc.lock stay as they are, new models
            are registered and judged, and stages before the chosen ones are made where needed.
        force: Run the stages even if they are up to date.
        push: Send artifacts and the run cache to the default DVC remote after a successful run.
        data: Read the sources first, so that new files are part of the run.

    """
    plan = Plan(base, stages, overrides, force, push, data)
    note = FlowNote(str(flow_run.id))
    with note.kept():
        with locks.project("make pipeline", say=VIEW.get().say):
            forget()  # while this run waited, another command may have written params.yaml
            try:
                plan.check()
                state = _carry_out(plan, note)
            except ValueError as error:
                state = Failed(message=str(error))
        note.flow(state)
        wait_for_prefect()
    return state


def _carry_out(plan: Plan, note: FlowNote) -> State[None]:
    """Read the sources, run the stages, and return the flow's final state."""
    run = str(flow_run.id)
    with _tree(plan, run) as (place, start):
        if plan.data:
            obstacle = _read_sources(place, note)
            if obstacle is not None:
                return Failed(message=obstacle)
        elif isinstance(place, Apart):
            place.restore_data()
        name = _renamed(plan, note)
        work = Work(plan, place, note, Keeping(run, place.folder, start=start))
        state = _bring_up_to_date(work, name)
        if plan.push and state.is_completed():
            place.push()
    return state


@contextmanager
def _tree(plan: Plan, run: str) -> Iterator[tuple[Here | Apart, str | None]]:
    """Yield the tree of a run, and the commit of a worktree."""
    if not plan.is_apart:
        yield Here(), None
        return
    commit = tree.commit(plan.files(), f"pipeline run {run}", ref=f"{tree.RUNS}/{run}")
    place = Apart(run, commit)
    try:
        yield place, commit
    finally:
        place.close()


def _read_sources(place: Here | Apart, note: FlowNote) -> str | None:
    """Bring data/ to the state of the sources, as a task; return the reason of a failure.

    A failure that may pass by itself is tried again, after the pauses in `BACKOFF_S`.
    """

    def bring_up_to_date() -> State[None]:
        obstacle = place.read_sources()
        state: State[None] = Completed(message="data/ is up to date")
        if obstacle is not None:
            name = AWAY if obstacle.may_pass else "Failed"
            state = Failed(name=name, message=obstacle.reason)
        note.task(str(task_run.id), state)
        return state

    description = "bring data/ to the state of sources.toml and of the user's own files"
    task = _task("data", description, bring_up_to_date).with_options(
        retries=len(BACKOFF_S), retry_delay_seconds=BACKOFF_S, retry_condition_fn=_may_pass
    )
    state: State[Any] = task(return_state=True)
    if state.is_completed():
        return None
    return state.message or "data: the sources could not be read"


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether a failed task is worth another try."""
    return state.name == AWAY


def _task(name: str, description: str, body: Callable[[], State[None]]) -> Task[[], State[None]]:
    return Task(
        body,
        name=name,
        task_run_name=name,
        description=description,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def _renamed(plan: Plan, note: FlowNote) -> str:
    """Name the flow run by its params, or by the changes since the last run; return the name."""
    if not (plan.data or plan.is_apart):
        return str(flow_run.name)
    name, client = plan.name() if plan.is_apart else run_name(), get_client(sync_client=True)
    note.send(lambda: client.update_flow_run(UUID(str(flow_run.id)), name=name))
    return name


def _bring_up_to_date(work: Work, name: str) -> State[None]:
    """Run the stages below a parent run in MLflow; return the flow's final state."""
    started, rows, view = time.monotonic(), work.rows, VIEW.get()
    order = work.tree.order(work.plan.chosen) if work.plan.stages else [*stages()]
    tags = {"prefect.flow_run_id": str(flow_run.id or ""), "stage": "pipeline"}
    finish_runs(END_S)  # the runs and models of earlier commands are found again, and registered
    parent = RunRecord(name, tags={**tags, **work.plan.tags()})
    try:
        work.kept.begin(parent)
        _run_stages(work, order, parent.id)
        failed = rows[-1].state == FAILED
        _record(work, parent)
        told = []
        if not failed:
            view.after("register and judge the models, and write the report")
            told += announce(work.tree, parent, work.note)
            told += attach_report(work.tree, parent, name)
        report = None if failed else REPORT
        work.note.send(lambda: pages.pipeline_page(rows, parent.id, report=report))
    except BaseException:
        parent.end("KILLED", patience=SIGNAL_S)
        raise
    parent.end("FAILED" if failed else "FINISHED")
    view.close(rows, time.monotonic() - started)
    for sentence in told:
        view.say(sentence)
    return Failed(message=rows[-1].figure) if failed else Completed(message=summary(rows))


def _run_stages(work: Work, order: list[str], parent: str) -> None:
    """Run the stages in order, up to a failure."""
    context = {
        runs.PARENT_VARIABLE: parent,
        runs.FLOW_VARIABLE: runs.this_process(),
    }
    VIEW.get().plan(order)
    work.unchanged.update(work.tree.unchanged())
    states: dict[str, State[State[None]]] = {}
    for stage in order:
        upstream_states = [states[name] for name in upstream(stage) if name in states]
        task = stage_task(stage, context, work)
        states[stage] = task(wait_for=upstream_states, return_state=True)
        if states[stage].is_failed():
            break


def stage_task(stage: str, context: dict[str, str], work: Work) -> Task[[], State[None]]:
    """Return the Prefect task of a stage.

    The task appends the outcome of the stage to the rows, and its state to the flow's note.
    """

    def bring_up_to_date() -> State[None]:
        started, view = time.monotonic(), VIEW.get()
        page = pages.ProgressPage(stage, work.note)
        if stage not in work.unchanged:
            view.begin(stage)

        def on_event(event: dict[str, Any]) -> None:
            view.event(stage, event)
            page.on_event(event)

        outcome, results = work.tree.bring(
            stage,
            on_line=view.line,
            on_event=on_event,
            context=context,
            unchanged=stage in work.unchanged,
            force=work.plan.force and stage in work.plan.chosen,
        )
        if outcome.state != UNCHANGED:
            work.unchanged.clear()
        seconds = time.monotonic() - started
        if outcome.state != FAILED:
            work.note.send(lambda: pages.stage_page(outcome, results, seconds=seconds))
        state = _prefect_state(outcome, results, seconds, work.rows)
        view.end(work.rows[-1])
        work.note.task(str(task_run.id), state)
        return state

    return _task(stage, stages()[stage]["desc"], bring_up_to_date)


def _prefect_state(
    outcome: StageOutcome, results: Results, seconds: float, rows: list[StageRow]
) -> State[None]:
    """Return an outcome's Prefect state, and append its row.

    The state is Completed where the stage ran, Cached where DVC had the outputs, and Failed
    otherwise.
    """
    stage = outcome.stage
    if outcome.state == FAILED:
        rows.append(StageRow(stage, FAILED, seconds, outcome.message, results.outputs))
        return Failed(message=outcome.message)
    figure = results.figure
    ran = outcome.state == EXECUTED
    rows.append(StageRow(stage, "ran" if ran else "cached", seconds, figure, results.outputs))
    if ran:
        return Completed(message=figure)
    return Completed(name="Cached", message=f"{outcome.state}: {figure}")


def _record(work: Work, parent: RunRecord) -> None:
    """Link each stage's MLflow run, tag dvc.lock's hash, and record the main figures.

    Runs made by an earlier pipeline run are linked, too.
    """
    work.kept.end(parent)
    if work.rows[-1].state != FAILED:
        parent.metrics(work.tree.figures(), 0)
    for row in work.rows:
        run = runs.maker(row.outputs)
        parent.tag(f"stage.{row.stage}", f"{row.state}:{run or 'unknown'}")
    lock = work.tree.folder / "dvc.lock"
    if lock.exists():
        parent.tag("dvc.lock", content_hash(lock))
