"""A pipeline run whose MLflow server is killed in a training, and is back minutes later."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks.frame.recorded import CURVES, MODELS
from tasks.project.graph import stages
from tasks.tracking.store import EXPERIMENT
from tests.flows.test_ui import free_port
from tests.promises.test_pipeline import lock
from tests.support.project import Project, tiny_project

pytestmark = pytest.mark.slow
OUTAGE_S = float(os.environ.get("OUTAGE_SECONDS", "300"))
PAUSE_S = 15
"""The longest time between two steps of a training that goes on, on a busy machine."""
COSTS = ("tokens_per_second", "data_wait", "peak_memory_gb")
SHAPE = {"emb_dim": 64, "n_layers": 4, "n_heads": 4}
"""A shape whose steps take a while: MLflow has time for the figures of each."""
LONG = {"resume": {"every_seconds": 5}, "pretrain": {"shape": SHAPE, "sample_every": 0}}


class Server:
    """The command `mlflow server` with all of its processes, on one port over one store."""

    def __init__(self, folder: Path) -> None:
        self.folder, port = folder, free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.options = [
            *("--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ]
        self.start()

    def start(self) -> None:
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *self.options],
                cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait(self.answers, "the server answers")

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
        except OSError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the server."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    made = Server(tmp_path / "server")
    yield made
    made.kill()


def wait(event: Callable[[], object], name: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not event():
        assert time.monotonic() < deadline, name
        time.sleep(0.1)


class Pipeline:
    """A pipeline run in the background, with MLflow on a server."""

    def __init__(self, project: Project, server: Server) -> None:
        self.log = project.root.parent / "pipeline.log"
        self.project, self.logs = project, project.root / ".state" / "logs"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows", "pipeline"],
                cwd=project.root,
                env={**project.environment(), "MLFLOW_TRACKING_URI": server.address},
                stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=120)

    @property
    def said(self) -> str:
        """Return the lines of flow and stages so far."""
        return self.project.log() if any(self.logs.glob("pipeline-*.log")) else ""

    @property
    def step(self) -> int:
        """Return the last step of pretrain's training that a line names: one every 5 seconds."""
        shown = re.findall(r"'pretrain' - step (\d+)/", self.said)
        return int(shown[-1]) if shown else 0

    def end(self, seconds: float) -> str:
        """Wait for the end of the run; return what it printed."""
        status, text = self.process.wait(timeout=seconds), self.log.read_text()
        assert status == 0, text
        return text


def stamps(client: MlflowClient, run: str) -> list[float]:
    """Return the times of a training's steps, in seconds."""
    return [value.timestamp / 1000 for value in client.get_metric_history(run, "train/loss")]


def seconds_a_step(project: Project) -> float:
    """Return the seconds of a fast step, by a training without a server."""
    project.params({**LONG, "pretrain": {**LONG["pretrain"], "steps": 300}})
    for stage in ("tokenize", "sample", "pretrain"):
        done = project.python("-m", "flows", "stage", stage)
        assert done.returncode == 0, done.stderr
    (run,) = (run["id"] for run in project.runs() if run["name"] == "pretrain")
    times = stamps(MlflowClient(f"sqlite:///{project.root}/mlflow/mlflow.db"), run)
    return quantiles((end - begin for begin, end in pairwise(times)), n=10)[0]


def check_records(project: Project, server: Server) -> dict[str, Run]:
    """Check runs, every step's figures, and models in MLflow against the files of the stages.

    Return the runs by name.
    """
    assert list((project.root / ".state" / "mlflow").iterdir()) == []
    client = MlflowClient(server.address)
    (experiment,) = (client.get_experiment_by_name(EXPERIMENT),)
    found = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in found} == {"FINISHED"}
    runs = {run.info.run_name: run for run in found}
    parents = [run for run in found if run.info.run_name.startswith("pipeline ")]
    parent = min(parents, key=lambda run: run.info.start_time)
    assert len(found) == len(parents) + len(stages())  # no run is recorded twice
    hashes = lock(project)
    for stage, entry in stages().items():
        tags = runs[stage].data.tags
        assert {path: tags[f"dvc.out.{path}"] for path in entry["outs"]} == {
            path: hashes[path] for path in entry["outs"]
        }
        assert tags["mlflow.parentRunId"] == parent.info.run_id
    for stage, (_, place) in MODELS.items():
        check_steps(client, runs[stage].info.run_id, project.root / "artifacts" / stage)
        (model,) = client.search_logged_models(
            [experiment.experiment_id], f"source_run_id = '{runs[stage].info.run_id}'"
        )
        assert model.status == "READY"
        weights = project.root / "artifacts" / stage / place / "model.safetensors"
        logged = server.folder.glob(f"artifacts/**/{model.model_id}/**/model.safetensors")
        assert [path.read_bytes() for path in logged] == [weights.read_bytes()]
    assert len(client.search_model_versions()) == len(MODELS)
    return runs


def check_steps(client: MlflowClient, run: str, folder: Path) -> None:
    """Check that MLflow has each figure of each step once, as in a training's tables."""
    steps = pd.read_csv(folder / "training.csv")
    for table in (steps, pd.read_csv(folder / "evaluations.csv")):
        for column in {*table.columns} & {*CURVES}:
            history = client.get_metric_history(run, CURVES[column])
            values = {entry.step: entry.value for entry in history}
            assert len(history) == len(table), (run, column)
            assert values == pytest.approx(
                dict(zip(table["step"], table[column], strict=True)), rel=1e-6
            )
    for name in COSTS:
        assert Counter(entry.step for entry in client.get_metric_history(run, name)) == Counter(
            steps["step"]
        )


@pytest.mark.timeout(3600)
def test_a_training_goes_on_while_mlflow_is_away_for_minutes(
    server: Server, tmp_path: Path
) -> None:
    project = tiny_project(tmp_path / "project")
    steps = int(2 * (OUTAGE_S + 60) / seconds_a_step(project))
    project.params({"pretrain": {"steps": steps, "evaluate_every": steps // 10}})
    with Pipeline(project, server) as run:
        wait(lambda: run.step > steps // 20, "the training begins", 600)
        server.kill()
        away, before = time.time(), run.step
        wait(lambda: "MLflow is away, and the figures are kept" in run.said, "the news")
        time.sleep(OUTAGE_S - (time.time() - away))
        print(f"{run.step - before} of {steps} steps in {OUTAGE_S:.0f} s without MLflow")
        back = time.time()
        server.start()
        wait(lambda: "MLflow takes records again" in run.said, "the figures arrive")
        print(f"all figures arrived {time.time() - back:.0f} s after the server's start")
        assert run.step < steps
        text = run.end(2400)
        assert "did not take all records" not in text
    runs = check_records(project, server)
    times = stamps(MlflowClient(server.address), runs["pretrain"].info.run_id)
    meanwhile = [time for time in times if away < time < back]
    assert max(end - begin for begin, end in pairwise([away, *meanwhile, back])) < PAUSE_S


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_run_that_ends_while_mlflow_is_away_is_recorded_by_the_next(
    server: Server, tmp_path: Path, how: signal.Signals
) -> None:
    project = tiny_project(tmp_path / "project")
    with Pipeline(project, server) as run:
        wait(lambda: run.step > 0, "the training begins")
        server.signal(how)
        begun = time.monotonic()
        text = run.end(1200)
        assert "MLflow is away, and the models of this run are not registered" in text
        assert "kept in .state/mlflow, and the next command sends them" in text
    print(f"the rest of the pipeline took {time.monotonic() - begun:.0f} s without MLflow")
    server.kill()
    server.start()
    extra: dict[str, Any] = {"MLFLOW_TRACKING_URI": server.address}
    done = project.python("-m", "flows", "pipeline", extra=extra)
    assert done.returncode == 0, done.stderr
    assert "nothing ran" in done.stdout
    assert "assistant version 1" in done.stdout
    assert "did not take all records" not in done.stderr
    check_records(project, server)
