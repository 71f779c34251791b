"""MLflow runs: one experiment with a run per stage.

The store is `MLFLOW_TRACKING_URI`, or a SQLite file in mlflow/ without a server. The hashes tie a
run to the bytes of inputs and outputs: the tag `dvc.out.PATH` holds dvc.lock's hash for PATH, so
a single search finds the run that wrote a file.
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
"""Tag for the kind of a model that a run has written but not logged."""
ROUNDING = 1e-5
"""Relative tolerance for equal metric values, since the order of summation may differ."""


def tracking_uri() -> str:
    """Return the URI of the store that records the runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE}"


@cache
def connect() -> str:
    """Connect mlflow to the store and return the experiment's id.

    Creates the experiment on first use. Several processes opening a fresh SQLite store at the same
    time would corrupt the store for good, so a lock guards the opening. Raises ValueError if a
    server does not answer.
    """
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    lock_file = take(ROOT / ".state" / "mlflow.lock", patience=math.inf)
    assert lock_file is not None
    with lock_file:
        import mlflow

        mlflow.set_tracking_uri(uri)
        experiment = mlflow.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = ARTIFACTS.as_uri() if uri.startswith("sqlite:") else None
        # the experiment's page then opens on training runs, not on chat traces
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(mlflow.create_experiment(EXPERIMENT, artifact_location=location, tags=tags))


def _check_server(uri: str) -> None:
    """Send a single short request: mlflow itself would retry for minutes.

    Raises ValueError if no server answers.
    """
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=10).close()
    except urllib.error.HTTPError:
        return  # an error status is an answer too: a server may lack this path
    except OSError as error:
        raise ValueError(
            f"MLFLOW_TRACKING_URI is {uri}, but no MLflow server answers ({error}): start the "
            "server, or unset the variable to record runs in mlflow/mlflow.db"
        ) from None


def this_process() -> str:
    """Return a unique name: host, process id and start time.

    The start time rules out a later process with the same id.
    """
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def is_dead(process: str) -> bool:
    """Return whether a process named by `this_process` has ended.

    False for a process on a different host, where the end cannot be known.
    """
    host, pid, created = process.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        candidate = psutil.Process(int(pid))
        if candidate.status() == psutil.STATUS_ZOMBIE:  # killed, and not yet reaped by the parent
            return True
        return bool(abs(candidate.create_time() - float(created)) > 1)
    except psutil.NoSuchProcess:
        return True


def close_dead_runs(experiment: str) -> None:
    """Mark the RUNNING runs of dead processes as KILLED."""
    from mlflow import MlflowClient

    client = MlflowClient()
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        process = run.data.tags.get(PROCESS_TAG)
        if process and is_dead(process):
            client.set_terminated(run.info.run_id, "KILLED")


def close_orphaned_parents() -> None:
    """Mark the parent runs as KILLED if the flow's process died.

    A dead flow cannot close the runs above this process, so this process does.
    """
    flow_process = os.environ.get(FLOW_VARIABLE)
    if flow_process and is_dead(flow_process):
        from mlflow import MlflowClient

        connect()
        for variable in (PARENT_VARIABLE, SWEEP_VARIABLE):
            if variable in os.environ:
                MlflowClient().set_terminated(os.environ[variable], "KILLED")


def close_killed(run: str, message: str) -> None:
    """Mark a stage's run as KILLED after SIGKILL.

    The stage itself had no time to close the run.
    """
    from mlflow import MlflowClient

    connect()
    if MlflowClient().get_run(run).info.status == "RUNNING":
        MlflowClient().set_tag(run, "error", message)
        MlflowClient().set_terminated(run, "KILLED")


def git_tags() -> dict[str, str]:
    """Return tags for the commit and the dirty flag.

    Changes of dvc.lock do not count, since a run in a clean clone changes dvc.lock.
    """

    def git(*words: str) -> str:
        result = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(git("status", "--porcelain", "--", ".", ":(exclude)dvc.lock"))
    return {"mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested params to dotted names: `optimizer.learning_rate`."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


class StageRun:
    """MLflow run of an executing stage."""

    def __init__(self, stage: str, *, description: str, earlier: str | None = None) -> None:
        """Open a run, or continue the `earlier` run of this training."""
        import mlflow

        self.mlflow = mlflow
        self.stage = stage
        self.experiment = connect()
        close_dead_runs(self.experiment)
        tags = {"stage": stage, PROCESS_TAG: this_process(), **git_tags()}
        parent = os.environ.get(PARENT_VARIABLE)
        self.continued = earlier is not None and _run_exists(earlier)
        if self.continued:
            # list the run under the pipeline that resumes the training
            parent_tag = {"mlflow.parentRunId": parent} if parent else {}
            run = mlflow.start_run(run_id=earlier, log_system_metrics=True)
            if "error" in run.data.tags:
                mlflow.delete_tag("error")
            mlflow.set_tags({**tags, **parent_tag})
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
        """Record input hashes as tags and as digests of dataset inputs."""
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
        """Record output hashes as tags; dvc.lock will hold the same hashes."""
        self.mlflow.set_tags({f"dvc.out.{path}": value for path, value in hashes.items()})

    def params(self, content: Mapping[str, Any]) -> None:
        """Record params, with dotted names for nested params.

        MLflow keeps the params of a run for good. If a value has changed in a continued run
        (perhaps on a different machine), the tag `continued.NAME` records the new value.
        """
        flat = flatten(content)
        new = {name: value for name, value in flat.items() if name not in self._params}
        self.mlflow.log_params(new)
        for name, value in flat.items():
            if name not in new and self._params[name] != str(value):
                self.mlflow.set_tag(f"continued.{name}", str(value))

    def tag(self, name: str, value: str) -> None:
        """Set a tag on the run; the last value stands."""
        self.mlflow.set_tag(name, value)

    def forget_models(self, name: str) -> None:
        """Delete the models `name` logged before this run was continued."""
        client = self.mlflow.MlflowClient()
        term = f"source_run_id = '{self.id}' AND name = '{name}'"
        for model in client.search_logged_models([self.experiment], filter_string=term):
            client.delete_logged_model(model.model_id)

    def metrics(
        self, figures: Mapping[str, float], step: int, *, now: bool = False, once: bool = False
    ) -> None:
        """Record metric values at a step.

        Values are sent in batches every few seconds (60 times faster). A continued run does not
        record a value twice for the same step, nor a value that differs only by rounding, as
        happens after a change in the number of processes. A changed value (a step repeated with
        different data, after a rollback) is recorded beside the old value, since MLflow cannot
        delete values; the later value stands. With `once` the first value always stays, since a
        duration differs when a step is repeated.
        """
        stamp = int(time.time() * 1000)
        for name, value in figures.items():
            recorded = self._recorded_values(name).get(step, [])
            if not recorded or not (once or any(_is_close(float(value), old) for old in recorded)):
                self._waiting.append((name, float(value), stamp, step))
        if now or time.monotonic() - self._sent > 5:
            self.flush()

    def _recorded_values(self, name: str) -> dict[int, list[float]]:
        """Return a metric's values by step, from before the run was continued."""
        if name not in self._logged:
            client = self.mlflow.MlflowClient()
            history = client.get_metric_history(self.id, name) if self.continued else []
            values = self._logged[name] = {}
            for entry in history:
                values.setdefault(entry.step, []).append(entry.value)
        return self._logged[name]

    def flush(self) -> None:
        """Send the waiting metric values."""
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


def _is_close(value: float, recorded: float) -> bool:
    """Return whether two metric values are equal up to rounding."""
    if math.isnan(value):
        return math.isnan(recorded)
    return math.isclose(value, recorded, rel_tol=ROUNDING)


def _run_exists(run: str) -> bool:
    """Return whether the store holds a run and has not deleted the run."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return bool(MlflowClient().get_run(run).info.lifecycle_stage == "active")
    except MlflowException:
        return False


def maker(outputs: Mapping[str, str]) -> str | None:
    """Return the id of the run that wrote these outputs.

    The hashes of the outputs identify the run; None if no run matches.
    """
    from mlflow import MlflowClient

    experiment = connect()

    terms = [f"tags.`dvc.out.{path}` = '{value}'" for path, value in outputs.items()]
    matches = MlflowClient().search_runs(
        [experiment], " and ".join(terms), order_by=["attributes.start_time DESC"]
    )
    return str(matches[0].info.run_id) if matches else None
