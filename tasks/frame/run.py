"""A stage's hands: where it reads and writes, and how it reports."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

from gptmill.data.tables import markdown_table
from gptmill.device import Device, RuntimeConfig, pick
from gptmill.files import write_json
from gptmill.origins import Origin, manifest_of, manifest_origins
from gptmill.training.distributed import SINGLE_PROCESS, World
from gptmill.training.state.store import StateStore
from tasks.frame import resume
from tasks.processes.progress import Meter
from tasks.processes.receipt import tell
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.project.params import checked
from tasks.tracking.runs import MODEL_TAG, SWEEP_VARIABLE, StageRun

if TYPE_CHECKING:
    from tasks.tracking.models import ServedKind

Metrics = dict[str, float | int | str]


class Inputs:
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

    def origins(self, path: str) -> list[Origin]:
        """Return the sources of a path below data/; its manifest must be among the stage's deps."""
        self.path(manifest_of(Path("data"), path).as_posix())
        return manifest_origins(ROOT / "data", path)

    def path(self, path: str) -> Path:
        """Return a path of the project; it must be among this stage's deps in dvc.yaml."""
        declared = graph.inputs(self.name)
        assert any(path == dep or path.startswith(dep + "/") for dep in declared), (
            f"{self.name} reads {path}, which is not among its deps in dvc.yaml"
        )
        return ROOT / path


class Run(Inputs):
    """A stage's hands: where it reads and writes, and how it reports."""

    def __init__(
        self,
        tracking: StageRun | None,
        training: resume.Training,
        *,
        runtime: RuntimeConfig,
        world: World = SINGLE_PROCESS,
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
        self.log(", ".join(f"{name} {value}" for name, value in record.items()))

    @property
    def is_first_rank(self) -> bool:
        """Return whether this process saves and reports."""
        return self.world.rank == 0

    def store(self) -> StateStore:
        """Return where this stage's training keeps its state, and what it goes on from."""
        return self._training.store(checked(resume.ResumeConfig, "resume"), self._tracking.id)

    def save_beside_state(self, name: str, content: Any) -> None:
        """Keep JSON beside the training's state and with the MLflow run, not in the outputs."""
        path = self._training.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
        self._tracking.mlflow.log_artifact(str(path), str(Path(name).parent))

    def tag(self, name: str, value: str) -> None:
        """Record a plain word on the MLflow run."""
        self._tracking.tag(name, value)

    def log(self, text: str) -> None:
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

    def log_model(self, kind: "ServedKind", folder: Path) -> None:
        """Log a checkpoint folder as a model that MLflow loads and serves.

        Of a sweep's many trials one is adopted: its model is logged then.
        """
        from tasks.tracking.models import log_model

        if SWEEP_VARIABLE in os.environ:
            self.tag(MODEL_TAG, kind)
            return

        if self._tracking.continued:
            self._tracking.forget_models(self.name)
        log_model(kind, folder, name=self.name)

    def close(self) -> None:
        """Leave the terminal tidy."""
        self._meter.close()


class Follower(Run):
    """The hands of every rank behind the first: they read, and report nothing."""

    def log(self, text: str) -> None:
        """Say nothing: the first rank does."""

    def step(self, *figures: Any, **more: Any) -> None:
        """Record nothing: the first rank does."""

    def tag(self, name: str, value: str) -> None:
        """Record nothing: the first rank does."""

    def save_beside_state(self, name: str, content: Any) -> None:
        """Keep nothing: the first rank does."""

    def _tell_device(self, record: Mapping[str, str | int]) -> None:
        pass


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 0.01 and value else f"{value:.3f}"
