"""MLflow's part of the garbage: runs, models and versions, read and deleted.

In the project's own store, or another database, runs and models are deleted for good. On a server
they go to the server's trash, that only `mlflow gc` there empties.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from flows.garbage.needs import ModelFacts, Output, RunFacts, outputs_of
from tasks.tracking import store

ID = re.compile(r"m-[0-9a-f]{32}|[0-9a-f]{32}")
"""The ids of a model and of a run, in the source of a version."""
LOCAL = re.compile(r"file:|/")
PAGE = 1000


@dataclass
class History:
    """Runs, models and versions in MLflow, and the places of files."""

    runs: list[RunFacts] = field(default_factory=list)
    models: list[ModelFacts] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    """The runs and models of registered versions."""
    outputs: set[Output] = field(default_factory=set)
    """The outputs of registered versions."""
    places: dict[str, str] = field(default_factory=dict)
    """The URI of the files of each run and model."""

    def local(self, name: str) -> Path | None:
        """Return the folder of a run or model, None where the files are elsewhere."""
        place = self.places[name]
        return Path(unquote(urlsplit(place).path)) if LOCAL.match(place) else None


def read(spare: set[tuple[str, int]]) -> History:
    """Read the history; spare versions, by name and number, count as gone."""
    experiment, client = store.connect(), MlflowClient()
    found = History()
    view = ViewType.ALL if _deletes_for_good(client) else ViewType.ACTIVE_ONLY
    for run in _pages(client.search_runs, [experiment], run_view_type=view, max_results=PAGE):
        found.runs.append(_facts(run))
        found.places[run.info.run_id] = run.info.artifact_uri
    for model in _pages(client.search_logged_models, [experiment]):
        created = model.creation_timestamp / 1000
        found.models.append(ModelFacts(model.model_id, model.source_run_id or "", created))
        found.places[model.model_id] = model.artifact_location
    for version in _pages(client.search_model_versions):
        if (version.name, int(version.version)) not in spare:
            found.named.update(ID.findall(f"{version.source} {version.run_id}"))
            found.outputs |= outputs_of(version.tags)
    return found


def _pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(*arguments, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


def _facts(run: Any) -> RunFacts:
    return RunFacts(
        run.info.run_id,
        run.info.start_time / 1000,
        dict(run.data.tags),
        is_over=run.info.status not in ("RUNNING", "SCHEDULED"),
        is_deleted=run.info.lifecycle_stage != "active",
    )


def _deletes_for_good(client: MlflowClient) -> bool:
    return hasattr(_store(client), "_hard_delete_run")


def _store(client: MlflowClient) -> Any:
    # `mlflow gc` would delete all that users moved to the trash, not only what the table shows
    return client._tracking_client.store


def delete_version(name: str, number: int) -> None:
    """Unregister a version."""
    MlflowClient().delete_model_version(name, str(number))


def delete_model(history: History, name: str) -> None:
    """Delete a logged model."""
    client = MlflowClient()
    for_good = _deletes_for_good(client)
    if for_good:
        _delete_files(history, name)
    client.delete_logged_model(name)
    if for_good:
        _store(client)._hard_delete_logged_model(name)


def delete_run(history: History, name: str) -> None:
    """Delete a run."""
    client = MlflowClient()
    if not next(run for run in history.runs if run.id == name).is_deleted:
        client.delete_run(name)
    if _deletes_for_good(client):
        _delete_files(history, name)
        _store(client)._hard_delete_run(name)


def _delete_files(history: History, name: str) -> None:
    repository: Any = get_artifact_repository(history.places[name])
    repository.delete_artifacts()
    folder = history.local(name)
    if folder is not None:
        with suppress(OSError):  # MLflow keeps other files of the run there
            folder.parent.rmdir()


def shrink() -> None:
    """Give the room of deleted rows in the project's own store back to the disk."""
    if store.is_own(store.tracking_uri()):
        with (
            closing(sqlite3.connect(store.STORE, timeout=store.BUSY_S)) as database,
            suppress(sqlite3.OperationalError),  # another process works in the store
        ):
            database.execute("vacuum")
