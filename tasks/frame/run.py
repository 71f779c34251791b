"""The interface of a stage to the project: inputs, outputs, and reports to MLflow and Prefect."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmill.device import Device, RuntimeConfig, pick
from gptmill.files import read_json, write_json
from gptmill.origins import Origin, manifest_of, manifest_origins
from gptmill.training.distributed import SINGLE_PROCESS, World
from gptmill.training.state.store import StateStore
from tasks.frame import resume, states
from tasks.frame.recorded import CURVES, JUDGED, MEASURED_ON, MODELS, TABLES
from tasks.processes.progress import Meter
from tasks.processes.receipt import tell
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.project.params import checked
from tasks.tracking.record import Figures, StageRun
from tasks.tracking.runs import MODEL_TAG, SWEEP_VARIABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gptmill.data.tables import Table
    from tasks.tracking.models import ServedKind

Metrics = dict[str, float | int | str]


class Inputs:
    """The inputs of a stage, and the seed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seed: int = checked(int, "seed")

    def input(self, stage: str) -> Path:
        """Return the output folder of an earlier stage, which must be among the deps."""
        return self.path(f"artifacts/{stage}")

    def data(self, name: str) -> Path:
        """Return a path below data/, which must be among the deps."""
        return self.path(f"data/{name}")

    def origins(self, path: str) -> list[Origin]:
        """Return the sources of a path below data/; the manifest must be among the deps."""
        self.path(manifest_of(Path("data"), path).as_posix())
        return manifest_origins(ROOT / "data", path)

    def path(self, path: str) -> Path:
        """Return a path of the project, which must be among the deps in dvc.yaml."""
        declared = graph.inputs(self.name)
        assert any(path == dep or path.startswith(dep + "/") for dep in declared), (
            f"{self.name} reads {path}, which is not among its deps in dvc.yaml"
        )
        return ROOT / path


class Run(Inputs):
    """A running stage: inputs, output folder, device, state and reports."""

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
        self._model: tuple[ServedKind, Path] | None = None
        self._figures: Mapping[str, float] = {}
        self._stamp = 0

    @property
    def _tracking(self) -> StageRun:
        assert self._recorded is not None, "a follower has no MLflow run"
        return self._recorded

    def device(self, *, flops: float = 0.0, one_shape: bool = False) -> Device:
        """Return the device and precision of params.yaml's `runtime`, and record them.

        The first call decides. `flops` is the total of the training ahead; `one_shape` says that
        all batches have equal shapes.
        """
        if self._device is None:
            picked = pick(self.runtime, flops=flops / self.world.size, one_shape=one_shape)
            size, sharded = self.world.size, self.world.sharded
            self._device = replace(picked, processes=size, sharded=sharded)
            self._record_device(self._device.record())
        return self._device

    def _record_device(self, record: Mapping[str, str | int]) -> None:
        self._tracking.params({f"device.{name}": value for name, value in record.items()})
        self.log(", ".join(f"{name} {value}" for name, value in record.items()))

    @property
    def is_first_rank(self) -> bool:
        """Return whether this process saves and reports."""
        return self.world.rank == 0

    def store(self) -> StateStore:
        """Return the store of the training's states; log where the training begins."""
        self.log(self._training.origin())
        return self._training.store(checked(resume.ResumeConfig, "resume"), self._tracking.id)

    @property
    def shards(self) -> Path:
        """Return the folder of the shards that `make shards` wrote for this run."""
        return self._training.shards

    def save_beside_state(self, name: str, content: Any) -> None:
        """Save JSON beside the state and in the MLflow run, outside of the outputs."""
        path = self._training.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
        self._tracking.file(path, str(Path(name).parent))

    def kept(
        self, inputs: Sequence[str], params: Mapping[str, Any], make: Callable[[], Any]
    ) -> Any:
        """Return JSON content kept from an earlier run, or make and keep the content.

        The content is determined by `inputs` (paths among the deps), `params`, the device and the
        stage's code; the hashes of all of them are the key. A damaged file is made again.
        """
        hashes = self._hashes()
        key = {
            "inputs": {path: hashes[path] for path in inputs},
            "params": dict(params),
            "device": self.device().record(),
            "code": self._training.code,
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = states.STATES / "kept" / f"{name}.json"
        try:
            content = read_json(path)
            os.utime(path)  # `make gc` removes what no run used for long
            return content
        except (FileNotFoundError, ValueError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, made := make())
            return made

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the MLflow run."""
        self._tracking.tag(name, value)

    def log(self, text: str) -> None:
        """Print a line to the log."""
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
        """Record the figures of a step; show progress and the time left.

        `costs` are rates, seconds and memory; the first of them is shown. A replayed step, from
        before this process started, is recorded if missing, but not shown.
        """
        costs = costs or {}
        news = self._tracking.news()
        if news is not None:
            self.log(news)
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

    def show(self, title: str, content: "str | Table") -> None:
        """Put a table or markdown on the run's pages in Prefect and MLflow."""
        if isinstance(content, str):
            text = content
        else:
            from gptmill.data.tables import markdown_table  # imports pandas

            text = markdown_table(content)
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        self._tracking.text(f"# {title}\n\n{text}\n", f"pages/{slug}.md")
        tell("show", title=title, text=text)

    def figure(self, name: str, figure: "Figure") -> None:
        """Log a plot to the MLflow run; artifacts hold no pixels."""
        self._tracking.figure(figure, f"plots/{name}.png")
        tell("figure", name=name)

    def log_model(self, kind: "ServedKind", folder: Path) -> None:
        """Have a folder of the output logged as a model that MLflow loads and serves.

        Trials of a sweep log none: `make adopt` logs the model of the best trial.
        """
        place = folder.relative_to(self.out)
        assert MODELS[self.name] == (kind, str(place)), "MODELS must name the model of the stage"
        if SWEEP_VARIABLE in os.environ:
            self.tag(MODEL_TAG, kind)
        else:
            self._model = (kind, place)

    def finish(self, out: Path) -> None:
        """Log the model and tables of the finished output folder, and figures of judged models."""
        if self._model is not None:
            kind, place = self._model
            figures = self._measured(self._figures, MEASURED_ON.get(self.name, ""))
            self._tracking.model(kind, out / place, name=self.name, figures=figures)
        for table in (out / name for name in TABLES):
            if table.exists():
                self._tracking.table(table)
        hashes = self._hashes()
        for stage, prefix, dataset in JUDGED:
            values = {k: v for k, v in self._figures.items() if k.startswith(prefix)}
            path = f"artifacts/{stage}"
            if values and path in hashes:
                self._tracking.judge(path, hashes[path], self._measured(values, dataset))

    def _measured(self, values: Mapping[str, float], dataset: str) -> Figures:
        """Return figures with the dep that holds the data behind them."""
        hashes = self._hashes()
        path = next((path for path in hashes if dataset and path.startswith(dataset)), "")
        return Figures(values, self._stamp, path, hashes.get(path, ""))

    def _hashes(self) -> dict[str, str]:
        return {dep["path"]: dep["md5"] for dep in self._training.entry.get("deps", ())}

    def record(self, figures: Mapping[str, float]) -> None:
        """Record the final figures of the stage."""
        self._figures = figures
        self._stamp = self._tracking.metrics(figures, 0)

    def replay_curves(self) -> None:
        """Record the tables of a training that did not run here."""
        for path in (self.out / table for table in ("training.csv", "evaluations.csv")):
            if path.exists():
                for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
                    figures = {CURVES[name]: float(row[name]) for name in CURVES if row.get(name)}
                    self._tracking.metrics(figures, int(row["step"]))

    def close(self) -> None:
        """Finish the progress line in the terminal."""
        self._meter.close()


class Follower(Run):
    """The run of a rank behind the first, with inputs but without reports."""

    def log(self, text: str) -> None:
        """Do nothing: the first rank logs."""

    def step(self, *figures: Any, **more: Any) -> None:
        """Do nothing: the first rank records."""

    def tag(self, name: str, value: str) -> None:
        """Do nothing: the first rank records."""

    def save_beside_state(self, name: str, content: Any) -> None:
        """Do nothing: the first rank saves."""

    def _record_device(self, record: Mapping[str, str | int]) -> None:
        pass


def numbers(metrics: Mapping[str, float | int | str]) -> dict[str, float]:
    """Return the metrics that are numbers."""
    return {key: value for key, value in metrics.items() if not isinstance(value, str)}


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 0.01 and value else f"{value:.3f}"
