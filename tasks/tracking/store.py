"""The MLflow store: `MLFLOW_TRACKING_URI`, or a SQLite file in mlflow/ without a server.

Opening the store mends what can be mended (locations of a moved project, a deleted experiment)
and reports the rest in a sentence.
"""

import logging
import math
import os
import re
import shutil
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from tasks.processes.locks import take
from tasks.project.environment import HOME

EXPERIMENT = "gptmill"
STORE = HOME / "mlflow" / "mlflow.db"
ARTIFACTS = HOME / "mlflow" / "artifacts"
NAME = "mlflow/mlflow.db"
BUSY_S = 20.0
"""Seconds to wait for another process that writes to the SQLite file."""

# Columns with the locations of artifacts, by table.
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
FAULTS = (
    (r"locked", "is in use by another process: end the process and repeat the command"),
    (r"is full|No space left", "has no room: make room on its disk and repeat the command"),
    (
        r"readonly|unable to open|Read-only|Permission denied",
        "cannot be written: make the folder mlflow/ and its files writable for this user",
    ),
    (
        r"malformed|not a database|encrypted",
        f"is damaged: restore a backup, or run `mv {NAME} {NAME}.damaged` to start a new history",
    ),
)
"""Sentences for faults of the SQLite file, by a pattern in the error."""
SCHEMA = re.compile(r"database schema \(found version (\w+), but expected (\w+)\)")


class AwayError(ValueError):
    """An MLflow server that does not answer now, and may answer later."""


def tracking_uri() -> str:
    """Return the URI of the store that records the runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE}"


def is_server(uri: str) -> bool:
    """Return whether a URI names a server."""
    return uri.startswith(("http://", "https://"))


def is_own(uri: str) -> bool:
    """Return whether a URI names the SQLite file in this project's mlflow/."""
    path = uri.removeprefix("sqlite:///")
    return path != uri and (Path.cwd() / path).resolve() == STORE.resolve()


def check_server() -> None:
    """Send a single short request if the store is a server.

    Raises AwayError if no server answers.
    """
    uri = tracking_uri()
    if not is_server(uri):
        return
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=10).close()
        return
    except urllib.error.HTTPError as error:
        if error.code not in (429, 502, 503, 504):
            return  # an error status is an answer too: a server may lack this path
        reason: OSError = error
    except OSError as error:
        reason = error
    raise AwayError(
        f"MLFLOW_TRACKING_URI is {uri}, but no MLflow server answers ({reason}): start the "
        "server, or unset the variable to record runs in mlflow/mlflow.db"
    )


def connect() -> str:
    """Connect mlflow to the store and return the experiment's id.

    Creates the experiment on first use, and restores a deleted experiment. Raises AwayError if a
    server does not answer, and ValueError for a fault of the SQLite file.
    """
    return _connect(tracking_uri())


@cache
def _connect(uri: str) -> str:
    """Open the store, under a lock.

    Several processes opening a fresh SQLite store at the same time would corrupt the store for
    good.
    """
    check_server()
    lock_file = take(HOME / ".state" / "mlflow.lock", patience=math.inf)
    assert lock_file is not None
    with lock_file:
        if not is_own(uri):
            return _experiment(uri)
        with _faults_as_sentences():
            _check_file()
            _relocate()
            return _experiment(uri)


def forget_connection() -> None:
    """Have the next `connect` open the store anew."""
    _connect.cache_clear()


def _experiment(uri: str) -> str:
    """Return the id of the experiment; create or restore the experiment if needed."""
    import mlflow

    # mlflow logs a traceback beside each exception that it raises
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # and urllib3 warns of each retry: a server away is told in our own sentence
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        if experiment.lifecycle_stage != "active":
            restore_experiment(str(experiment.experiment_id))
        return str(experiment.experiment_id)
    location = ARTIFACTS.as_uri() if uri.startswith("sqlite:") else None
    # the experiment's page then opens on training runs, not on chat traces
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return str(mlflow.create_experiment(EXPERIMENT, artifact_location=location, tags=tags))


def restore_experiment(experiment: str) -> None:
    """Restore a deleted experiment with its runs, and say so."""
    from mlflow import MlflowClient

    MlflowClient().restore_experiment(experiment)
    say(f"MLflow: the experiment {EXPERIMENT} was deleted, and is restored with its runs")


def say(sentence: str) -> None:
    """Print a sentence about the store for the user."""
    print(sentence, file=sys.stderr, flush=True)


def _check_file() -> None:
    """Raise sqlite3.Error unless the file can be read and written."""
    STORE.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(STORE, timeout=BUSY_S, isolation_level=None)) as database:
        database.execute("begin immediate")
        database.execute("create table probe (x)")  # a full disk shows only in a write
        database.rollback()
    free = shutil.disk_usage(STORE.parent).free
    if free < 2**20:
        raise sqlite3.OperationalError(f"database or disk is full: {free:,} bytes are free")


def _relocate() -> None:
    """Point the locations of artifacts to this folder after a move of the project.

    MLflow stores absolute paths: the artifacts of old runs would be lost, and new artifacts
    would go to the old folder.
    """
    with closing(sqlite3.connect(STORE, timeout=BUSY_S)) as database, database:
        tables = {row[0] for row in database.execute("select name from sqlite_master")}
        if "experiments" not in tables:
            return
        query = "select artifact_location from experiments where name = ?"
        (location,) = database.execute(query, (EXPERIMENT,)).fetchone() or ("",)
        below = ARTIFACTS.as_uri().removeprefix(HOME.as_uri())
        if location == ARTIFACTS.as_uri() or not location.endswith(below):
            return
        old, new = location.removesuffix(below), HOME.as_uri()
        for table, column in LOCATIONS:
            if table in tables:
                database.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "
                    f"where substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )
    say(f"the project was at {old.removeprefix('file://')}: MLflow's artifacts are now found here")


@contextmanager
def _faults_as_sentences() -> Iterator[None]:
    """Turn a known fault of the SQLite file into a ValueError with a sentence."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        sentence = fault(str(error))
        if sentence is None:
            raise
        raise ValueError(sentence) from None


def fault(message: str) -> str | None:
    """Return the sentence for an error of the SQLite file, or None for an unknown error."""
    schema = SCHEMA.search(message)
    if schema:
        return _schema_sentence(*schema.groups())
    for pattern, words in FAULTS:
        if re.search(pattern, message):
            return f"MLflow's store {NAME} {words} ({message.splitlines()[0]})"
    return None


def _schema_sentence(found: str, expected: str) -> str:
    """Return the sentence for a store that another version of MLflow wrote."""
    import mlflow
    from alembic.script import ScriptDirectory

    folder = Path(mlflow.__file__).parent / "store" / "db_migrations"
    known = {revision.revision for revision in ScriptDirectory(str(folder)).walk_revisions()}
    versions = f"(schema {found}; MLflow {mlflow.__version__} needs {expected})"
    if found in known:
        return (
            f"MLflow's store {NAME} is from an older MLflow {versions}: back it up and upgrade it, "
            f"`cp {NAME} {NAME}.bak && mlflow db upgrade sqlite:///{NAME}`"
        )
    return (
        f"MLflow's store {NAME} is from a newer MLflow {versions}: install the newer MLflow, or "
        f"run `mv {NAME} {NAME}.newer` to start a new history"
    )
