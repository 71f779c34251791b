"""The record from which a pipeline run can be made again, although nobody committed.

The run in MLflow has params.yaml, sources.toml, data.dvc, dvc.lock, the uncommitted changes and the
versions of packages as files. The git ref `refs/gptmill/runs/ID` has the whole tree.
"""

import json
import platform
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from flows.trees import tree
from gptmill.sources.address import hidden
from tasks.project.graph import read_text
from tasks.tracking.record import RunRecord
from tasks.tracking.store import say

FOLDER = "record"
"""Folder of the files in the MLflow run."""
KEPT = ("params.yaml", "sources.toml", "data.dvc")
LOCK = "dvc.lock"
ENVIRONMENT = "environment.json"
COMMIT_TAG, REF_TAG = "gptmill.commit", "gptmill.ref"


class Keeping:
    """The record of a pipeline run: begun before the stages, finished after them."""

    def __init__(self, run: str, folder: Path, *, start: str | None = None) -> None:
        """Commit the tree in which the run works; without git, say so.

        `start` is the commit of a worktree. The user's tree is committed with uncommitted changes.
        """
        self.ref = f"{tree.RUNS}/{run}"
        self.folder = folder
        self.commit = start
        try:
            if start is None:
                tree.check_repository("the record of a run")
            self._keep({} if start is None else self._texts("data.dvc"))
        except ValueError as error:
            say(f"the run is recorded without a git ref: {error}")

    def begin(self, record: RunRecord) -> None:
        """Record what decides the run."""
        for path, text in self._texts(*KEPT).items():
            record.text(hidden(text), f"{FOLDER}/{path}")
        if self.commit is not None:
            changes = tree.git("diff", "HEAD", self.commit)
            record.text(hidden(changes) + "\n", f"{FOLDER}/uncommitted.diff")
            record.tags({REF_TAG: self.ref})
        record.text(json.dumps(environment(), indent=2) + "\n", f"{FOLDER}/{ENVIRONMENT}")

    def end(self, record: RunRecord) -> None:
        """Record what the run wrote."""
        texts = self._texts(LOCK)
        for path, text in texts.items():
            record.text(text, f"{FOLDER}/{path}")
        if self.commit is not None:
            self._keep(texts)
            record.tags({COMMIT_TAG: self.commit})

    def _keep(self, files: dict[str, str]) -> None:
        message = f"pipeline run {self.ref.rpartition('/')[2]}"
        self.commit = tree.commit(files, message, ref=self.ref, start=self.commit)

    def _texts(self, *paths: str) -> dict[str, str]:
        files = {path: self.folder / path for path in paths}
        return {path: read_text(file) for path, file in files.items() if file.exists()}


def environment() -> dict[str, Any]:
    """Return the versions of Python and packages, and the machine, that may change bytes."""
    packages = {str(one.metadata["Name"]).lower(): one.version for one in distributions()}
    return {
        "packages": {"python": platform.python_version(), **dict(sorted(packages.items()))},
        "hardware": {"machine": platform.machine(), "system": sys.platform, "cpu": _cpu()},
    }


def _cpu() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
