"""MLflow: one experiment, one run a stage, and the hashes that tie a run to its bytes.

The store is `MLFLOW_TRACKING_URI`, or a SQLite file in mlflow/ that needs no server.
Which run made a file is one search: the tag `dvc.out.PATH` holds the hash that dvc.lock
records for PATH.
"""

import math
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import cache
from typing import Any

import psutil

from tasks.processes.locks import take
from tasks.project.environment import ROOT

EXPERIMENT = "gptmill"
PARENT_VARIABLE = "GPTMILL_PARENT_RUN"
SWEEP_VARIABLE = "GPTMILL_SWEEP_RUN"
FLOW_VARIABLE = "GPTMILL_FLOW_PROCESS"
STORE = ROOT / "mlflow" / "mlflow.db"
ARTIFACTS = ROOT / "mlflow" / "artifacts"
PROCESS_TAG = "gptmill.process"
MODEL_TAG = "gptmill.model"
"""Of which kind the model is that a run has made and not logged."""
ROUNDING = 1e-5
"""Figures no further apart than this are the same figure, summed in another order."""


def tracking_uri() -> str:
    """Return where runs are recorded."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE}"


@cache
def connect() -> str:
    """Point mlflow at the store, make the experiment on first use, and return its id.

    Several processes that open a fresh SQLite store together break it for good, so the
    first opening is done under a lock. Raises ValueError where a server does not answer.
    """
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    alone = take(ROOT / ".state" / "mlflow.lock", patience=math.inf)
    assert alone is not None
    with alone:
        import mlflow

        mlflow.set_tracking_uri(uri)
        found = mlflow.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        local = ARTIFACTS.as_uri() if uri.startswith("sqlite:") else None
        # the page opens on training runs, not on traces of chats
        tags = {"mlflow.experimentKind": "custom_model_development"}
        made = mlflow.create_experiment(EXPERIMENT, artifact_location=local, tags=tags)
        return str(made)


def _check_server(uri: str) -> None:
    """Ask once, briefly: mlflow itself would try for minutes."""
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=10).close()
    except urllib.error.HTTPError:
        return  # it answers; what it thinks of this path is its own affair
    except OSError as error:
        raise ValueError(
            f"MLFLOW_TRACKING_URI is {uri}, where no MLflow server answers ({error}): start it, "
            "or unset the variable to record in mlflow/mlflow.db"
        ) from None


def this_process() -> str:
    """Name this process so that no later one can be taken for it."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def is_dead(process: str) -> bool:
    """Return whether a process named by `this_process` is known to be gone."""
    host, pid, created = process.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        found = psutil.Process(int(pid))
        if found.status() == psutil.STATUS_ZOMBIE:  # killed, and nobody has asked after it yet
            return True
        return bool(abs(found.create_time() - float(created)) > 1)
    except psutil.NoSuchProcess:
        return True


def close_dead_runs(experiment: str) -> None:
    """Mark runs whose process is gone as KILLED: nothing that is dead stays RUNNING."""
    from mlflow import MlflowClient

    client = MlflowClient()
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        process = run.data.tags.get(PROCESS_TAG)
        if process and is_dead(process):
            client.set_terminated(run.info.run_id, "KILLED")


def close_orphaned_parents() -> None:
    """Mark the runs above this one as KILLED where their process died and left it to this one."""
    above = os.environ.get(FLOW_VARIABLE)
    if above and is_dead(above):
        from mlflow import MlflowClient

        connect()
        for variable in (PARENT_VARIABLE, SWEEP_VARIABLE):
            if variable in os.environ:
                MlflowClient().set_terminated(os.environ[variable], "KILLED")


def close_killed(run: str, message: str) -> None:
    """Mark a stage's run as KILLED where the stage had no time to do it itself (SIGKILL)."""
    from mlflow import MlflowClient

    connect()
    if MlflowClient().get_run(run).info.status == "RUNNING":
        MlflowClient().set_tag(run, "error", message)
        MlflowClient().set_terminated(run, "KILLED")


def git_tags() -> dict[str, str]:
    """Return commit and dirty flag; dvc.lock is left out, since a clean clone's run changes it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(git("status", "--porcelain", "--", ".", ":(exclude)dvc.lock"))
    return {"mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested params under dotted names: `optimizer.learning_rate`."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


class StageRun:
    """The MLflow run of one stage that executes."""

    def __init__(self, stage: str, *, description: str, earlier: str | None = None) -> None:
        """Open a run, or go on in the `earlier` one, in which this training began."""
        import mlflow

        self.mlflow = mlflow
        self.stage = stage
        self.experiment = connect()
        close_dead_runs(self.experiment)
        tags = {"stage": stage, PROCESS_TAG: this_process(), **git_tags()}
        parent = os.environ.get(PARENT_VARIABLE)
        self.continued = earlier is not None and _is_there(earlier)
        if self.continued:
            # shown under the pipeline that goes on with it
            under = {"mlflow.parentRunId": parent} if parent else {}
            run = mlflow.start_run(run_id=earlier, log_system_metrics=True)
            if "error" in run.data.tags:
                mlflow.delete_tag("error")
            mlflow.set_tags({**tags, **under})
        else:
            run = mlflow.start_run(
                experiment_id=self.experiment,
                run_name=stage,
                parent_run_id=parent,
                description=description,
                tags=tags,
                log_system_metrics=True,
            )
        self.id = str(run.info.run_id)
        self._params = dict(run.data.params) if self.continued else {}
        self._logged: dict[str, dict[int, list[float]]] = {}
        self._waiting: list[tuple[str, float, int, int]] = []
        self._sent = time.monotonic()

    def inputs(self, hashes: Mapping[str, str]) -> None:
        """Record what the stage reads: as tags, and as dataset inputs with their digests."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self.mlflow.set_tags({f"dvc.dep.{path}": value for path, value in hashes.items()})
        datasets = [
            DatasetInput(
                Dataset(name=path, digest=value, source_type="dvc", source=f'{{"path": "{path}"}}'),
                [InputTag("mlflow.data.context", self.stage)],
            )
            for path, value in hashes.items()
        ]
        self.mlflow.MlflowClient().log_inputs(self.id, datasets)

    def outputs(self, hashes: Mapping[str, str]) -> None:
        """Record what the stage wrote, under the hashes that dvc.lock will hold."""
        self.mlflow.set_tags({f"dvc.out.{path}": value for path, value in hashes.items()})

    def params(self, content: Mapping[str, Any]) -> None:
        """Record params, nested ones under dotted names.

        A param of a run holds for good: one that is another now that the run goes on (it may be
        on another machine) is recorded as the tag `continued.NAME`.
        """
        flat = flatten(content)
        new = {name: value for name, value in flat.items() if name not in self._params}
        self.mlflow.log_params(new)
        for name, value in flat.items():
            if name not in new and self._params[name] != str(value):
                self.mlflow.set_tag(f"continued.{name}", str(value))

    def tag(self, name: str, value: str) -> None:
        """Record a plain word on the run; the last one stands."""
        self.mlflow.set_tag(name, value)

    def forget_models(self, name: str) -> None:
        """Delete what this run logged of a model before it was gone on with."""
        client = self.mlflow.MlflowClient()
        term = f"source_run_id = '{self.id}' AND name = '{name}'"
        for model in client.search_logged_models([self.experiment], filter_string=term):
            client.delete_logged_model(model.model_id)

    def metrics(
        self, figures: Mapping[str, float], step: int, *, now: bool = False, once: bool = False
    ) -> None:
        """Record figures at a step; they are sent together every few seconds (60 times faster).

        What a run that goes on has already for a step is not recorded twice, nor what differs
        from it by rounding, as it does where another number of processes goes on. A figure that
        has become another one (a step done again with other data, after a rollback) is recorded
        beside the old one, since MLflow takes none back; the later one stands. With `once` the
        first stays whatever its value: a duration differs when a step is done again.
        """
        stamp = int(time.time() * 1000)
        for name, value in figures.items():
            there = self._has(name).get(step, [])
            if not there or not (once or any(_same(float(value), old) for old in there)):
                self._waiting.append((name, float(value), stamp, step))
        if now or time.monotonic() - self._sent > 5:
            self.flush()

    def _has(self, name: str) -> dict[int, list[float]]:
        """Return what this run had of a metric before it was gone on with, by step."""
        if name not in self._logged:
            client = self.mlflow.MlflowClient()
            history = client.get_metric_history(self.id, name) if self.continued else []
            found = self._logged[name] = {}
            for entry in history:
                found.setdefault(entry.step, []).append(entry.value)
        return self._logged[name]

    def flush(self) -> None:
        """Send the figures that wait."""
        from mlflow.entities import Metric

        client = self.mlflow.MlflowClient()
        for start in range(0, len(self._waiting), 1000):
            batch = [Metric(*row) for row in self._waiting[start : start + 1000]]
            client.log_batch(self.id, metrics=batch)
        self._waiting = []
        self._sent = time.monotonic()

    def end(self, status: str, error: str | None = None) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self.flush()
        if error:
            self.mlflow.set_tag("error", error[:5000])
        self.mlflow.end_run(status)


def _same(value: float, other: float) -> bool:
    """Return whether two figures are equal but for rounding."""
    if math.isnan(value):
        return math.isnan(other)
    return math.isclose(value, other, rel_tol=ROUNDING)


def _is_there(run: str) -> bool:
    """Return whether this store has a run, and not as a deleted one."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return bool(MlflowClient().get_run(run).info.lifecycle_stage == "active")
    except MlflowException:
        return False


def maker(outputs: Mapping[str, str]) -> str | None:
    """Return the id of the run that made these outputs, by their hashes; None if unknown."""
    from mlflow import MlflowClient

    experiment = connect()

    terms = [f"tags.`dvc.out.{path}` = '{value}'" for path, value in outputs.items()]
    found = MlflowClient().search_runs(
        [experiment], " and ".join(terms), order_by=["attributes.start_time DESC"]
    )
    return str(found[0].info.run_id) if found else None
