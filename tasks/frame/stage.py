"""What all stages share, once: their params, checked inputs, MLflow run, output folder, failure.

A stage file declares a `Section` and a function under `@stage`; everything that is not
about that stage is here.
"""

import importlib
import math
import shutil
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict

from gptmill.device import RuntimeConfig, device_name
from gptmill.files import atomic_folder, write_json
from gptmill.records import content_hash
from gptmill.training.distributed import SINGLE_PROCESS, World, join
from gptmill.training.signals import uninterrupted
from tasks.frame import ranks, resume
from tasks.frame.run import Follower, Metrics, Run
from tasks.processes.receipt import tell
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.project.params import checked
from tasks.tracking.runs import StageRun


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


def execute(name: str) -> None:
    """Run one stage from its checked inputs to its whole output folder, recorded throughout.

    A stage that takes several processes is started in them from here, and executed by each.
    Raises what the body raises, after the run is closed as FAILED or KILLED; ValueError
    and OSError are the user's to mend.
    """
    job = load(name)
    params = job.params()
    runtime = checked(RuntimeConfig, "runtime")
    if ranks.follows():
        if job.section.parallel:
            _follow(job, params, runtime)
        return
    config = checked(resume.ResumeConfig, "resume")
    hashes = graph.check_inputs(name)
    if job.section.parallel and ranks.launches(processes := params.processes(runtime)):
        ranks.launch(name, processes)
        return
    with _group(params, runtime) as world:
        run = partial(Run, runtime=runtime, world=world)
        _lead(job, params, run, config=config, hashes=hashes)


def _group(params: Section, runtime: RuntimeConfig) -> AbstractContextManager[World]:
    """Return the context in which this process is one of those that do the stage."""
    if not params.parallel:
        return nullcontext(SINGLE_PROCESS)
    return join(device_name(runtime.device), shard=getattr(params, "shard", False))


def _follow(job: Stage[Any], params: Section, runtime: RuntimeConfig) -> None:
    """Do this rank's share of the work; what comes of it is the first rank's to report."""
    with _group(params, runtime) as world:
        training = resume.Training(job.name, {})
        job.body(params, Follower(None, training, runtime=runtime, world=world))


def _lead(
    job: Stage[Any],
    params: Section,
    hands: Callable[[StageRun, resume.Training], Run],
    *,
    config: resume.ResumeConfig,
    hashes: Mapping[str, str],
) -> None:
    """Execute a stage as the one process that reports and writes."""
    name = job.name
    resume.claim(name)
    training = resume.training(name, hashes)
    resume.clean()
    for line in resume.others(training, config):
        print(line, flush=True)
    shutil.rmtree(ROOT / "artifacts" / f".{name}.partial", ignore_errors=True)
    tracking = StageRun(name, description=_description(name), earlier=training.run)
    tell("start", run=tracking.id)
    try:
        tracking.params({**params.model_dump(), "seed": checked(int, "seed")})
        tracking.inputs(hashes)
        tracking.tag("dvc.stage_key", training.key)
        metrics = _produce(job, params, hands(tracking, training))
        outs = graph.stages()[name]["outs"]
        tracking.outputs({path: content_hash(ROOT / path) for path in outs})
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
        f"{graph.stages()[name].get('desc', name)}\n\nMade again by `make {name}` at the commit "
        "of the tag `mlflow.source.git.commit`; the tags `dvc.dep.*` and `dvc.out.*` hold the "
        "hashes of what it read and wrote, as dvc.lock has them."
    )
