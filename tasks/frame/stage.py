"""The frame of every stage: checked params and inputs, an MLflow run, an output folder, failures.

A stage file declares a `Section` and a function under `@stage`. Everything common is here.
"""

import importlib
import math
import shutil
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict

from gptmill.device import RuntimeConfig, device_name
from gptmill.figures import write_figures
from gptmill.files import atomic_folder
from gptmill.training.distributed import SINGLE_PROCESS, World, join
from gptmill.training.signals import uninterrupted
from tasks.frame import ranks, resume, states
from tasks.frame.cost import cost
from tasks.frame.energy import EnergyMeter
from tasks.frame.run import Follower, Metrics, Run, numbers
from tasks.processes import locks
from tasks.processes.receipt import tell
from tasks.project import cache, graph
from tasks.project.environment import ROOT
from tasks.project.hashes import known
from tasks.project.params import checked
from tasks.tracking.record import SIGNAL_S, StageRun


class Section(BaseModel):
    """A stage's section of params.yaml: every key required, none unknown, types exact."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    parallel: ClassVar[bool] = False
    """Whether several processes can run the stage together."""
    quality: ClassVar[tuple[str, ...]] = ()
    """The figures of quality; `dvc metrics` shows these alone."""

    def processes(self, runtime: RuntimeConfig) -> int:
        """Return the number of processes on this machine."""
        return 1


S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Stage(Generic[S]):
    """A stage; file, params section, dvc.yaml entry and output folder follow from the name."""

    name: str
    section: type[S]
    body: Callable[[S, "Run"], Metrics]

    def params(self) -> S:
        """Return the checked section of params.yaml."""
        return checked(self.section, self.name)


def stage(body: Callable[[S, "Run"], Metrics]) -> Stage[S]:
    """Turn a function `(params, run) -> metrics` into a stage."""
    return Stage(body.__name__, get_type_hints(body)["params"], body)


def load(name: str) -> Stage[Any]:
    """Import a stage by name, without importing other stages."""
    stage = getattr(importlib.import_module(f"tasks.{name}"), name)
    assert isinstance(stage, Stage)
    return stage


@dataclass(frozen=True)
class Job:
    """A stage about to run, with everything that was checked."""

    stage: Stage[Any]
    params: Section
    runtime: RuntimeConfig
    resume: resume.ResumeConfig
    entry: Mapping[str, Any]
    """The stage's entry in dvc.yaml."""
    inputs: Mapping[str, str]
    """The hash of each input."""

    @property
    def name(self) -> str:
        """Return the name of the stage."""
        return self.stage.name

    @property
    def out(self) -> Path:
        """Return the output folder."""
        return ROOT / "artifacts" / self.name


def execute(name: str) -> None:
    """Run a stage from checked inputs to a complete output folder, recorded in MLflow.

    A stage that runs in several processes is launched here, and executed by each process. Raises
    the body's exception after closing the run as FAILED or KILLED; ValueError and OSError are
    mistakes that the user can correct.
    """
    stage = load(name)
    params = stage.params()
    runtime = checked(RuntimeConfig, "runtime")
    if ranks.follows():
        if stage.section.parallel:
            _follow(stage, params, runtime)
        return
    config = checked(resume.ResumeConfig, "resume")
    inputs = graph.check_inputs(name)
    if stage.section.parallel and ranks.launches(processes := params.processes(runtime)):
        ranks.launch(name, processes)
        return
    with _group(params, runtime) as world:
        _lead(Job(stage, params, runtime, config, graph.stages()[name], inputs), world)


def _group(params: Section, runtime: RuntimeConfig) -> AbstractContextManager[World]:
    """Return the context in which this process belongs to the stage's process group."""
    if not params.parallel:
        return nullcontext(SINGLE_PROCESS)
    return join(device_name(runtime.device), shard=getattr(params, "shard", False))


def _follow(stage: Stage[Any], params: Section, runtime: RuntimeConfig) -> None:
    """Run the body on a rank behind the first; the first rank reports and writes."""
    with _group(params, runtime) as world:
        training = resume.Training(stage.name, {})
        stage.body(params, Follower(None, training, runtime=runtime, world=world))


def _lead(job: Job, world: World) -> None:
    """Execute a stage as the process that reports and writes."""
    locks.keep_project(job.name)
    states.claim(job.name)
    training = resume.training(job.name, job.entry, job.inputs)
    if training.folder.is_dir():
        training.claim()
    resume.clean()
    for line in resume.others(training, job.resume):
        print(line, flush=True)
    shutil.rmtree(job.out.with_name(f".{job.name}.partial"), ignore_errors=True)
    meter = EnergyMeter(world.size, gpus=job.runtime.device in ("auto", "cuda"))
    tracking = StageRun(job.name, description=_description(job), earlier=training.run)
    tell("start", run=tracking.id)
    try:
        tracking.params({**job.params.model_dump(), "seed": checked(int, "seed")})
        tracking.inputs(job.inputs)
        tracking.tag("dvc.stage_key", training.key)
        run = Run(tracking, training, runtime=job.runtime, world=world)
        metrics = _produce(job, run)
        cache.share(job.out, ROOT)
        run.finish(job.out)
        tracking.outputs({path: known().content_hash(ROOT / path) for path in job.entry["outs"]})
    except BaseException as error:
        # a launcher that ends this rank because of another must not cut off the record
        with uninterrupted():
            _end(tracking, error, meter)
        raise
    tracking.metrics({**cost(), **meter.end()}, 0)
    tracking.end("FINISHED")
    tell("end", metrics=metrics)


def _end(tracking: StageRun, error: BaseException, meter: EnergyMeter) -> None:
    """Close the run of an unfinished stage."""
    tracking.metrics({**cost(), **meter.end()}, 0)
    if isinstance(error, Exception):
        tracking.text(traceback.format_exc(), "error.txt")
        tracking.end("FAILED", str(error))
    else:
        tracking.end("KILLED", str(error) or type(error).__name__, patience=SIGNAL_S)


def _produce(job: Job, run: Run) -> Metrics:
    """Run the body in a partial folder that becomes the output folder at the end."""
    try:
        with atomic_folder(job.out) as out:
            run.out = out
            metrics = job.stage.body(job.params, run)
            figures = numbers(metrics)
            invalid = [key for key, value in figures.items() if not math.isfinite(value)]
            assert not invalid, f"{job.name} returned figures that are not numbers: {invalid}"
            write_figures(out, metrics, quality=job.params.quality)
            run.record(figures)
            return metrics
    finally:
        run.close()


def _description(job: Job) -> str:
    return (
        f"{job.entry.get('desc', job.name)}\n\nReproduce with `make {job.name}` at the commit in "
        "the tag `mlflow.source.git.commit`. The tags `dvc.dep.*` and `dvc.out.*` hold the hashes "
        "of inputs and outputs, as in dvc.lock."
    )
