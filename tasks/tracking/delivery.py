"""Delivery of an outbox's records to MLflow, in order and without duplicates."""

import csv
import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptmill.files import write_text
from tasks.tracking import store
from tasks.tracking.outbox import Entry, Outbox

TOKEN_TAG = "gptmill.run"
ROUNDING = 1e-5
"""Relative tolerance for equal metric values, since the order of summation may differ."""
BATCH = 1000
"""The most metric values in a request."""

AWAY_CODES = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")


def reason_away(error: Exception) -> str | None:
    """Return why MLflow cannot take records now, or None for an error of another kind."""
    from mlflow.exceptions import MlflowException, RestException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException):
        failed = isinstance(error, RestException) and error.error_code == "INTERNAL_ERROR"
        unreached = str(error).startswith("API request to")
        database = isinstance(error.__cause__, OperationalError) or store.fault(str(error))
        if not (failed or unreached or database or error.error_code in AWAY_CODES):
            return None
    elif not isinstance(error, store.AwayError | OSError | OperationalError):
        known = isinstance(error, ValueError) and str(error).startswith("MLflow's store")
        if not known:
            return None
    return store.fault(str(error)) or str(error).splitlines()[0]


class Delivery:
    """Sends the records of one outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.run: str | None = None
        """The id of the run in MLflow, once the run exists there."""
        self._continued = False
        self._known_params: dict[str, str] = {}
        self._recorded: dict[str, dict[int, list[float]]] = {}
        self._system_step: int | None = None
        self._mended = False
        self._kinds: dict[str, Callable[[Entry], None]] = {
            "open": self._open,
            "tags": self._tags,
            "params": self._params,
            "inputs": self._inputs,
            "system": self._system,
            "file": self._file,
            "table": self._table,
            "model": self._model,
            "judge": self._judge,
            "end": self._end,
        }

    def send(self) -> None:
        """Send all records that are not sent.

        Raises the exception of the first record that MLflow does not take.
        """
        from mlflow.exceptions import MlflowException

        while not self.outbox.is_empty:
            try:
                self._open_known()
                self._send_next()
            except MlflowException as error:
                if not self._mend(error):
                    raise

    def _open_known(self) -> None:
        """Find the run again where an earlier process sent the first records."""
        if self.run is None and self.outbox.sent:
            self._open(self.outbox.entries[0])

    def _send_next(self) -> None:
        """Send the next record, or all metric values up to the next record of another kind."""
        entries, first = self.outbox.entries, self.outbox.sent
        op = entries[first]["op"]
        last = first + 1
        if op == "metrics":
            rows = list(self._new_rows(entries[first]))
            while last < len(entries) and entries[last]["op"] == op and len(rows) < BATCH:
                rows += self._new_rows(entries[last])
                last += 1
            self._log_batch(rows)
        else:
            self._kinds[op](entries[first])
        self.outbox.mark(last)
        self._mended = False

    def _mend(self, error: Exception) -> bool:
        """Restore a run that the user deleted meanwhile; return whether to try again.

        A run that is gone for good is recorded anew.
        """
        if self.run is None or self._mended:
            return False
        self._mended = True
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(self.run)
        except MlflowException as missing:
            if missing.error_code != "RESOURCE_DOES_NOT_EXIST":
                return False
            store.say("MLflow: the run of this stage was deleted for good, and is recorded anew")
            store.forget_connection()
            self.run = None
            self.outbox.sent = 0
            return True
        if run.info.lifecycle_stage == "active":
            return False
        self._restore(run)
        return True

    def _restore(self, run: Any) -> None:
        experiment = self._client.get_experiment(run.info.experiment_id)
        if experiment.lifecycle_stage != "active":
            store.restore_experiment(str(experiment.experiment_id))
        if self._client.get_run(run.info.run_id).info.lifecycle_stage != "active":
            self._client.restore_run(run.info.run_id)
            store.say(f"MLflow: the run {run.info.run_name} was deleted, and is restored")

    # the kinds of records

    def _open(self, entry: Entry) -> None:
        """Create the run, or continue the run of an earlier process."""
        tags = {**entry["tags"], TOKEN_TAG: self.outbox.token}
        if entry["parent"]:
            tags["mlflow.parentRunId"] = self._parent(entry["parent"])
        names = [self.outbox.token, *([entry["earlier"]] if entry["earlier"] else [])]
        found = next(filter(None, map(find_run, names)), None)
        if found is None:
            experiment = store.connect()
            created = self._client.create_run(experiment, int(entry["time"]), tags, entry["name"])
            self.run = str(created.info.run_id)
        else:
            self.run = str(found.info.run_id)
            self._continue(found, tags)
        with suppress(OSError):  # the tag finds the run, too
            write_text(self.outbox.folder / "run", f"{self.run}\n")

    def _parent(self, name: str) -> str:
        """Return a parent's id; its own outbox is sent first."""
        parent = find_run(name)
        if parent is None:
            raise store.AwayError(f"the parent run {name} is not recorded yet")
        return str(parent.info.run_id)

    def _continue(self, run: Any, tags: dict[str, str]) -> None:
        assert self.run is not None
        if run.info.lifecycle_stage != "active":
            self._restore(run)
        self._continued, self._known_params = True, dict(run.data.params)
        self._recorded, self._system_step = {}, None
        if "error" in run.data.tags:
            self._client.delete_tag(self.run, "error")
        self._tags({"values": tags})
        self._client.update_run(self.run, status="RUNNING")

    def _tags(self, entry: Entry) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, str(value)) for name, value in entry["values"].items()]
        self._client.log_batch(self._id, tags=tags)

    def _params(self, entry: Entry) -> None:
        """Record params. MLflow keeps them for good: a changed value becomes a tag."""
        from mlflow.entities import Param

        values = {name: str(value) for name, value in entry["values"].items()}
        new = [
            Param(name, value) for name, value in values.items() if name not in self._known_params
        ]
        for start in range(0, len(new), 100):  # the most params in a request
            self._client.log_batch(self._id, params=new[start : start + 100])
        changed = {n: v for n, v in values.items() if self._known_params.get(n, v) != v}
        self._tags({"values": {f"continued.{name}": value for name, value in changed.items()}})
        self._known_params = {**values, **self._known_params}

    def _inputs(self, entry: Entry) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = [
            DatasetInput(
                Dataset(name=path, digest=value, source_type="dvc", source=f'{{"path": "{path}"}}'),
                [InputTag("mlflow.data.context", entry["stage"])],
            )
            for path, value in entry["hashes"].items()
        ]
        self._client.log_inputs(self._id, datasets)

    def _new_rows(self, entry: Entry) -> list[list[Any]]:
        """Return the values that the run does not have yet."""
        rows = []
        for name, value, stamp, step in entry["rows"]:
            recorded = self._values(name).get(step, [])
            if not recorded or not (
                entry["once"] or any(_is_close(value, old) for old in recorded)
            ):
                rows.append([name, value, stamp, step])
        return rows

    def _values(self, name: str) -> dict[int, list[float]]:
        """Return a metric's values by step, from before the run was continued."""
        if name not in self._recorded:
            history = self._client.get_metric_history(self._id, name) if self._continued else []
            values = self._recorded[name] = {}
            for entry in history:
                values.setdefault(entry.step, []).append(entry.value)
        return self._recorded[name]

    def _log_batch(self, rows: list[list[Any]]) -> None:
        from mlflow.entities import Metric

        for start in range(0, len(rows), BATCH):
            metrics = [Metric(*row) for row in rows[start : start + BATCH]]
            self._client.log_batch(self._id, metrics=metrics)

    def _system(self, entry: Entry) -> None:
        """Record a sample of the machine at the next free step."""
        if self._system_step is None:
            names = list(entry["values"])
            self._system_step = max((max(self._values(n), default=-1) for n in names), default=-1)
        self._system_step += 1
        rows = [[n, v, entry["time"], self._system_step] for n, v in entry["values"].items()]
        self._log_batch(rows)

    def _file(self, entry: Entry) -> None:
        path = self.outbox.folder / entry["file"]
        if not path.exists():
            store.say(f"MLflow: {path} was removed before it could be sent")
            return
        self._client.log_artifact(self._id, str(path), entry["path"] or None)

    def _table(self, entry: Entry) -> None:
        """Log rows as a table; MLflow would append the rows to a table that the run has."""
        import pandas as pd

        path = self.outbox.folder / entry["file"]
        name = f"{path.stem}.json"
        if not path.exists():
            store.say(f"MLflow: {path} was removed before it could be sent")
            return
        if any(file.path == name for file in self._client.list_artifacts(self._id)):
            return
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else csv.DictReader(text.splitlines(True))
        self._client.log_table(self._id, pd.DataFrame(list(rows)), artifact_file=name)

    def _model(self, entry: Entry) -> None:
        """Log a folder as the run's only model of this name."""
        import mlflow

        from tasks.tracking.models import log_model

        folder = self.outbox.folder / entry["folder"]
        if not folder.exists():
            store.say(f"MLflow: {folder} was removed before it could be sent")
            return
        for model in self._models(self._id, name=entry["name"]):
            self._client.delete_logged_model(model.model_id)
        with mlflow.start_run(run_id=self._id, log_system_metrics=False):
            model = log_model(entry["kind"], folder, name=entry["name"])
        summary = card_summary(folder)
        if summary:
            self._client.set_logged_model_tags(model.model_id, {"mlflow.note.content": summary})
        if entry.get("figures"):
            self._add_figures(model.model_id, entry["figures"])

    def _judge(self, entry: Entry) -> None:
        """Add figures to the models of the newest run that wrote the judged output."""
        term = f"tags.`dvc.out.{entry['path']}` = '{entry['hash']}'"
        newest = ["attributes.start_time DESC"]
        for run in self._client.search_runs([store.connect()], term, order_by=newest):
            models = self._models(run.info.run_id)
            for model in models:
                self._add_figures(model.model_id, entry["figures"])
            if models:
                return

    def _models(self, run: str, *, name: str | None = None) -> list[Any]:
        term = f"source_run_id = '{run}'" + (f" AND name = '{name}'" if name else "")
        found: list[Any] = self._client.search_logged_models([store.connect()], filter_string=term)
        return found

    def _add_figures(self, model: str, figures: dict[str, Any]) -> None:
        """Add figures to a model, with the data behind them; the run has them too."""
        from mlflow.entities import Metric

        about = {
            "model_id": model,
            "dataset_name": figures["dataset"] or None,
            "dataset_digest": figures["digest"] or None,
            "run_id": self._id,
        }
        rows = [
            Metric(name, float(value), figures["time"], 0, **about)
            for name, value in figures["values"].items()
        ]
        for start in range(0, len(rows), BATCH):
            self._client.log_batch(self._id, metrics=rows[start : start + BATCH])

    def _end(self, entry: Entry) -> None:
        if entry["error"]:
            self._tags({"values": {"error": entry["error"][:5000]}})
        self._client.set_terminated(self._id, entry["status"], int(entry["time"]))

    @property
    def _id(self) -> str:
        assert self.run is not None
        return self.run

    @property
    def _client(self) -> Any:
        from mlflow import MlflowClient

        store.connect()
        return MlflowClient()


def card_summary(folder: Path) -> str:
    """Return the opening of a folder's model card, empty without a card."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8", errors="replace")
    body = text[4:].partition("\n---\n")[2] if text.startswith("---\n") else text
    return body.partition("\n## ")[0].strip()


def find_run(name: str) -> Any:
    """Return the run with an id or a token, None if the store has no such run."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    experiment = store.connect()
    client = MlflowClient()
    try:
        return client.get_run(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    matches = client.search_runs([experiment], f"tags.`{TOKEN_TAG}` = '{name}'", ViewType.ALL)
    return matches[0] if matches else None


def _is_close(value: float, recorded: float) -> bool:
    """Return whether two metric values are equal up to rounding."""
    if math.isnan(value):
        return math.isnan(recorded)
    return math.isclose(value, recorded, rel_tol=ROUNDING)
