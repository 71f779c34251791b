"""Models of MLflow's registry by URI, such as models:/gptmill-assistant@champion, as folders.

MLflow runs in a process of its own, since these commands work without MLflow otherwise.
"""

import argparse
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

URI = "models:/"
STORE = Path("mlflow") / "mlflow.db"
"""The store of a project, below the project's folder."""
EXTRA = "pip install 'gptmill[pipeline]'"
SCRIPT = """
import sys
from mlflow.artifacts import download_artifacts
print(download_artifacts(artifact_uri=sys.argv[1]))
"""
QUICK = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


def add_model(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add the model; `folder` describes the folders that the verb accepts."""
    text = f"{folder}, or a model of MLflow's registry, models:/NAME@champion"
    parser.add_argument("model", type=model, metavar="MODEL", help=text)


def model(text: str) -> Path:
    """Parse a model on the command line: a folder, or a URI of MLflow's registry.

    A model in a store on this machine stays in place; other models are copied until the exit.
    """
    if not text.startswith(URI):
        return Path(text)
    try:
        return _checkpoint(_files(text))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def _files(uri: str) -> Path:
    """Return the folder of a logged model."""
    _check_installed()
    temporary = Path(tempfile.mkdtemp(prefix="gptmill-model-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    settings = {"MLFLOW_TRACKING_URI": _tracking(), "TMPDIR": str(temporary)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, uri],
        env={**QUICK, **os.environ, **settings},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = lines[-1].rpartition("Exception: ")[2].partition(" with exception")[0]
        raise ValueError(f"MLflow does not give the model ({reason.rstrip('.')})")
    return Path(done.stdout.splitlines()[-1])


def _check_installed() -> None:
    """Raise ValueError without MLflow; a project's folder mlflow/ is a package without a file."""
    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        raise ValueError(f"the registry's models need MLflow, which is not installed: `{EXTRA}`")


def _tracking() -> str:
    """Return the store's address: the user's setting, or the project in this folder."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not STORE.is_file():
        raise ValueError(
            f"this folder has no {STORE}: run the command in the project's folder, or set "
            "MLFLOW_TRACKING_URI to the address of an MLflow server"
        )
    return f"sqlite:///{STORE.resolve()}"


def _checkpoint(files: Path) -> Path:
    """Return the checkpoint folder of a logged model, unchanged since it was logged."""
    from gptmill.records import check_stamps

    found = sorted((files / "artifacts").glob("*/config.json"))
    if not found:
        raise ValueError("the model holds no checkpoint folder; gptmill did not log this model")
    record = files / "artifacts" / "record" / "files.json"
    if record.is_file():
        check_stamps(found[0].parent, record)
    return found[0].parent
