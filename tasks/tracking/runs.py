"""MLflow runs: one experiment with a run per stage.

The hashes tie a run to the bytes of inputs and outputs: the tag `dvc.out.PATH` holds dvc.lock's
hash for PATH, so a single search finds the run that wrote a file.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from tasks.project.environment import ROOT
from tasks.tracking import store
from tasks.tracking.delivery import find_run, reason_away
from tasks.tracking.outbox import finish_runs
from tasks.tracking.store import connect

if TYPE_CHECKING:
    pass

PARENT_VARIABLE = "GPTMILL_PARENT_RUN"
SWEEP_VARIABLE = "GPTMILL_SWEEP_RUN"
FLOW_VARIABLE = "GPTMILL_FLOW_PROCESS"
PROCESS_TAG = "gptmill.process"
MODEL_TAG = "gptmill.model"
"""Tag for the kind of a model that a run has written but not logged."""


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
        for variable in (PARENT_VARIABLE, SWEEP_VARIABLE):
            if variable in os.environ:
                _set_killed(os.environ[variable])


def close_killed(run: str, message: str) -> None:
    """Mark a stage's run as KILLED after SIGKILL.

    The stage itself had no time to close the run.
    """
    finish_runs()
    _set_killed(run, message)


def _set_killed(name: str, message: str | None = None) -> None:
    """Mark a run as KILLED; where MLflow is away, a later command does so."""
    from mlflow import MlflowClient

    def close() -> None:
        run = find_run(name)
        if run is None or run.info.status not in ("RUNNING", "KILLED"):
            return
        if message:
            MlflowClient().set_tag(run.info.run_id, "error", message)
        MlflowClient().set_terminated(run.info.run_id, "KILLED")

    _ask(close)


T = TypeVar("T")
_silent_until = 0.0


def _ask(question: Callable[[], T]) -> T | None:
    """Return MLflow's answer, or None while MLflow is away.

    An MLflow that is away is not asked again for a minute: a question to a hung server takes
    20 seconds.
    """
    global _silent_until
    if time.monotonic() < _silent_until:
        return None
    try:
        return question()
    except Exception as error:
        if reason_away(error) is None:
            raise
        _silent_until = time.monotonic() + 60
        return None


def experiment() -> str:
    """Return the experiment's id for an address, MLflow's default while MLflow is away."""
    return _ask(connect) or "0"


def git_tags() -> dict[str, str]:
    """Return tags for the commit and the dirty flag.

    Changes of dvc.lock do not count, since a run in a clean clone changes dvc.lock.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        dirty = bool(_git("status", "--porcelain", "--", ".", ":(exclude)dvc.lock"))
    except (OSError, ValueError) as error:
        _note_missing_commit(str(error))
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}


def _git(*words: str) -> str:
    """Return git's output; raise ValueError with git's own message, or where git is missing."""
    if shutil.which("git") is None:
        raise ValueError("the command git is not on this machine")
    result = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        raise ValueError(" ".join(result.stderr.split()))
    return result.stdout.strip()


@cache
def _note_missing_commit(reason: str) -> None:
    store.say(f"the run is recorded without a commit, since git gives none: {reason}")


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested params to dotted names: `optimizer.learning_rate`."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def maker(outputs: Mapping[str, str]) -> str | None:
    """Return the id of the run that wrote these outputs, None where `making_run` gives none."""
    run = making_run(outputs)
    return None if run is None else str(run.info.run_id)


def making_run(outputs: Mapping[str, str]) -> Any:
    """Return the run that wrote these outputs.

    The hashes of the outputs identify the run; None if no run matches, or where MLflow is away.
    """
    matches = _ask(lambda: _makers(outputs))
    return matches[0] if matches else None


def _makers(outputs: Mapping[str, str]) -> list[Any]:
    """Return the runs that wrote these outputs, newest first."""
    from mlflow import MlflowClient

    terms = [f"tags.`dvc.out.{path}` = '{value}'" for path, value in outputs.items()]
    newest = ["attributes.start_time DESC"]
    experiment = connect()
    return list(MlflowClient().search_runs([experiment], " and ".join(terms), order_by=newest))


def lacks_maker(outputs: Mapping[str, str]) -> bool:
    """Return whether MLflow answers, and no run wrote these outputs."""
    found = _ask(lambda: _makers(outputs))
    return found is not None and not found


def history(run: str, metric: str) -> list[float]:
    """Return the recorded values of a metric; empty while MLflow is away."""
    from mlflow import MlflowClient

    values = _ask(lambda: MlflowClient().get_metric_history(run, metric))
    return [entry.value for entry in values or ()]
