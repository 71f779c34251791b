"""What all stages share, once: their params, checked inputs, MLflow run, output folder, failure.

A stage file declares a `Section` and a function under `@stage`; everything that is not
about that stage is here.
"""

import importlib
import math
import os
import re
import shutil
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_type_hints

import pandas as pd
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict

from gptmill.device import Device, RuntimeConfig, device_name, pick
from gptmill.files import atomic_folder, write_json
from gptmill.parallel import SOLO, World, join
from gptmill.records import content_hash
from gptmill.signals import uninterrupted
from gptmill.state import StateStore
from tasks import _project, _ranks, _resume
from tasks._environment import ROOT
from tasks._params import checked
from tasks._progress import Meter
from tasks._receipt import tell
from tasks._tracking import MODEL_TAG, SWEEP_VARIABLE, StageRun

if TYPE_CHECKING:
    from tasks._models import Kind

Metrics = dict[str, float | int | str]


class Section(BaseModel):
    """A stage's section of params.yaml: every key required, none unknown, types exact."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    parallel: ClassVar[bool] = False
    """Whether several processes can do the stage together; else one does, wherever it runs."""

    def processes(self, runtime: RuntimeConfig) -> int:
        """Return how many processes the stage runs in on this machine."""
        return 1


S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Stage(Generic[S]):
    """A stage: its name is its function's, and everything else is derived from the name."""

    name: str
    section: type[S]
    body: Callable[[S, "Run"], Metrics]

    def params(self) -> S:
        """Return the stage's section of params.yaml, checked."""
        return checked(self.section, self.name)


def stage(body: Callable[[S, "Run"], Metrics]) -> Stage[S]:
    """Make a stage of a function `(params, run) -> metrics`."""
    return Stage(body.__name__, get_type_hints(body)["params"], body)


def load(name: str) -> Stage[Any]:
    """Import one stage, and only that one."""
    found = getattr(importlib.import_module(f"tasks.{name}"), name)
    assert isinstance(found, Stage)
    return found


class Reader:
    """Where a stage reads, and the seed: what its data are a function of, besides its params."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seed: int = checked(int, "seed")

    def input(self, stage: str) -> Path:
        """Return the folder that an earlier stage wrote; it must be among this stage's deps."""
        return self.path(f"artifacts/{stage}")

    def data(self, name: str) -> Path:
        """Return a path below data/; it must be among this stage's deps."""
        return self.path(f"data/{name}")

    def path(self, path: str) -> Path:
        """Return a path of the project; it must be among this stage's deps in dvc.yaml."""
        declared = _project.inputs(self.name)
        assert any(path == dep or path.startswith(dep + "/") for dep in declared), (
            f"{self.name} reads {path}, which is not among its deps in dvc.yaml"
        )
        return ROOT / path


class Run(Reader):
    """A stage's hands: where it reads and writes, and how it reports."""

    def __init__(
        self,
        tracking: StageRun | None,
        training: _resume.Training,
        *,
        runtime: RuntimeConfig,
        world: World = SOLO,
    ) -> None:
        super().__init__(training.stage)
        self.out = Path()
        self.runtime = runtime
        self.world = world
        self._training = training
        self._recorded = tracking
        self._meter = Meter(training.stage)
        self._device: Device | None = None

    @property
    def _tracking(self) -> StageRun:
        assert self._recorded is not None, "a follower has no MLflow run"
        return self._recorded

    def device(self, *, flops: float = 0.0, one_shape: bool = False) -> Device:
        """Return the device and precision that params.yaml's `runtime` asks for, recorded.

        The first call decides; `flops` is how much training is to come, `one_shape` whether all
        its batches have the same.
        """
        if self._device is None:
            picked = pick(self.runtime, flops=flops / self.world.size, one_shape=one_shape)
            size, sharded = self.world.size, self.world.sharded
            self._device = replace(picked, processes=size, sharded=sharded)
            self._tell_device(self._device.record())
        return self._device

    def _tell_device(self, record: Mapping[str, str | int]) -> None:
        self._tracking.params({f"device.{name}": value for name, value in record.items()})
        self.say(", ".join(f"{name} {value}" for name, value in record.items()))

    def lead(self) -> None:
        """Go on in the first rank alone, which now has what all have made together."""

    def store(self) -> StateStore:
        """Return where this stage's training keeps its state, and what it goes on from."""
        return self._training.store(checked(_resume.ResumeConfig, "resume"), self._tracking.id)

    def keep(self, name: str, content: Any) -> None:
        """Keep JSON beside the training's state and with the MLflow run, not in the outputs."""
        path = self._training.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
        self._tracking.mlflow.log_artifact(str(path), str(Path(name).parent))

    def tag(self, name: str, value: str) -> None:
        """Record a plain word on the MLflow run."""
        self._tracking.tag(name, value)

    def say(self, text: str) -> None:
        """Print one line to the log."""
        self._meter.close()
        print(text, flush=True)

    def step(
        self,
        step: int,
        steps: int,
        figures: Mapping[str, float],
        *,
        costs: Mapping[str, float] | None = None,
        note: str = "",
        replayed: bool = False,
    ) -> None:
        """Record figures at a step, and show how far the stage is and how long it still takes.

        `costs` are what a step took (rates, seconds, memory): of these the first is shown. A
        step that was done before this process began is recorded where it is missing, not shown.
        """
        costs = costs or {}
        self._tracking.metrics(figures, step)
        self._tracking.metrics(costs, step, once=True)
        if replayed:
            return
        shown = [f"{name} {_short(value)}" for name, value in figures.items()]
        shown += [f"{value:,.0f} {name}" for name, value in list(costs.items())[:1]]
        text = "  ".join([*shown, note]).rstrip()
        tell("step", step=step, steps=steps, text=text)
        line = self._meter.update(step, steps, text)
        if line is not None:
            print(line, flush=True)

    def show(self, title: str, content: str | pd.DataFrame) -> None:
        """Put a table or markdown on the run's page, in Prefect and in MLflow."""
        text = content if isinstance(content, str) else markdown_table(content)
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        self._tracking.mlflow.log_text(f"# {title}\n\n{text}\n", f"pages/{slug}.md")
        tell("show", title=title, text=text)

    def figure(self, name: str, figure: Figure) -> None:
        """Keep a plot with the MLflow run; pixels are no artifact of ours."""
        self._tracking.mlflow.log_figure(figure, f"plots/{name}.png")
        tell("figure", name=name)

    def log_model(self, kind: "Kind", folder: Path) -> None:
        """Log a checkpoint folder as a model that MLflow loads and serves.

        Of a sweep's many trials one is adopted: its model is logged then.
        """
        from tasks._models import log_model

        if SWEEP_VARIABLE in os.environ:
            self.tag(MODEL_TAG, kind)
            return

        if self._tracking.continued:
            self._tracking.forget_models(self.name)
        log_model(kind, folder, name=self.name)

    def close(self) -> None:
        """Leave the terminal tidy."""
        self._meter.close()


class FollowerDone(Exception):  # noqa: N818, nothing is wrong
    """The rest of the stage is the first rank's alone."""


class Follower(Run):
    """The hands of every rank behind the first: they read, and report nothing."""

    def say(self, text: str) -> None:
        """Say nothing: the first rank does."""

    def step(self, *figures: Any, **more: Any) -> None:
        """Record nothing: the first rank does."""

    def tag(self, name: str, value: str) -> None:
        """Record nothing: the first rank does."""

    def keep(self, name: str, content: Any) -> None:
        """Keep nothing: the first rank does."""

    def lead(self) -> None:
        """Leave: raises FollowerDone."""
        raise FollowerDone

    def _tell_device(self, record: Mapping[str, str | int]) -> None:
        pass


def execute(name: str) -> None:
    """Run one stage from its checked inputs to its whole output folder, recorded throughout.

    A stage that takes several processes is started in them from here, and executed by each.
    Raises what the body raises, after the run is closed as FAILED or KILLED; ValueError
    and OSError are the user's to mend.
    """
    job = load(name)
    params = job.params()
    runtime = checked(RuntimeConfig, "runtime")
    if _ranks.follows():
        if job.section.parallel:
            _follow(job, params, runtime)
        return
    resume = checked(_resume.ResumeConfig, "resume")
    hashes = _project.check_inputs(name)
    if job.section.parallel and _ranks.launches(processes := params.processes(runtime)):
        _ranks.launch(name, processes)
        return
    with _group(params, runtime) as world:
        run = partial(Run, runtime=runtime, world=world)
        _lead(job, params, run, resume=resume, hashes=hashes)


def _group(params: Section, runtime: RuntimeConfig) -> AbstractContextManager[World]:
    """Return the context in which this process is one of those that do the stage."""
    if not params.parallel:
        return nullcontext(SOLO)
    return join(device_name(runtime.device), shard=getattr(params, "shard", False))


def _follow(job: Stage[Any], params: Section, runtime: RuntimeConfig) -> None:
    """Do this rank's share of the work; what comes of it is the first rank's to report."""
    with _group(params, runtime) as world, suppress(FollowerDone):
        training = _resume.Training(job.name, {})
        job.body(params, Follower(None, training, runtime=runtime, world=world))


def _lead(
    job: Stage[Any],
    params: Section,
    hands: Callable[[StageRun, _resume.Training], Run],
    *,
    resume: _resume.ResumeConfig,
    hashes: Mapping[str, str],
) -> None:
    """Execute a stage as the one process that reports and writes."""
    name = job.name
    _resume.claim(name)
    training = _resume.training(name, hashes)
    _resume.clean()
    for line in _resume.others(training, resume):
        print(line, flush=True)
    shutil.rmtree(ROOT / "artifacts" / f".{name}.partial", ignore_errors=True)
    tracking = StageRun(name, description=_description(name), earlier=training.run)
    tell("start", run=tracking.id)
    try:
        tracking.params({**params.model_dump(), "seed": checked(int, "seed")})
        tracking.inputs(hashes)
        tracking.tag("dvc.stage_key", training.key)
        metrics = _produce(job, params, hands(tracking, training))
        tracking.outputs({f"artifacts/{name}": content_hash(ROOT / "artifacts" / name)})
    except BaseException as stop:
        # a launcher that ends this rank for another's sake must not cut off its record
        with uninterrupted():
            _end(tracking, stop)
        raise
    tracking.end("FINISHED")
    tell("end", metrics=metrics)


def _end(tracking: StageRun, error: BaseException) -> None:
    """Close the run of a stage that did not get to its end."""
    if isinstance(error, Exception):
        tracking.mlflow.log_text(traceback.format_exc(), "error.txt")
        tracking.end("FAILED", str(error))
    else:
        tracking.end("KILLED", str(error) or type(error).__name__)


def _produce(job: Stage[Any], params: Section, run: Run) -> Metrics:
    """Run the body in a partial folder that becomes artifacts/NAME when the body returns."""
    try:
        with atomic_folder(ROOT / "artifacts" / job.name) as out:
            run.out = out
            metrics = job.body(params, run)
            figures = {key: value for key, value in metrics.items() if not isinstance(value, str)}
            bad = [key for key, value in figures.items() if not math.isfinite(value)]
            assert not bad, f"{job.name} returned figures that are no numbers: {bad}"
            write_json(out / "metrics.json", metrics)
            run._tracking.metrics(figures, 0, now=True)
            return metrics
    finally:
        run.close()


def _description(name: str) -> str:
    return (
        f"{_project.stages()[name].get('desc', name)}\n\nMade again by `make {name}` at the commit "
        "of the tag `mlflow.source.git.commit`; the tags `dvc.dep.*` and `dvc.out.*` hold the "
        "hashes of what it read and wrote, as dvc.lock has them."
    )


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 0.01 and value else f"{value:.3f}"


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table as markdown; a cell never breaks out of its row."""

    def cell(value: object) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    rows = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(cell(value) for value in row) + " |" for row in rows)
