"""Logging of a model's files by reference: MLflow's local store gets links instead of copies.

MLflow copies a logged folder twice: into a folder in the making, and from there into the store.
Here the first holds symbolic links, and a store in a local folder gets hard links to the files
themselves. A store elsewhere is sent the bytes, as always.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.store.artifact.artifact_repository_registry import (
    get_registered_artifact_repositories,
)
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from tasks.project.cache import link_or_copy

LOCAL = ("", "file")
"""The schemes of local folders."""


class LinkedFiles(LocalArtifactRepository):
    """A local folder of MLflow's whose files are links to the files that are logged."""

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Fill a folder of the store."""
        target = self._get_or_create_artifact_dir(artifact_path)
        shutil.copytree(local_dir, target, copy_function=_link, dirs_exist_ok=True)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        """Add a file to a model in the making."""
        Path(local_path).symlink_to(self.get_local_path(remote_file_path))


def _link(source: str, target: str) -> None:
    link_or_copy(Path(source).resolve(), Path(target))


@contextmanager
def linked_files() -> Iterator[None]:
    """Have MLflow link the files of models that are logged in the block."""
    repositories: dict[str, Any] = get_registered_artifact_repositories()
    before = {scheme: repositories[scheme] for scheme in LOCAL}
    repositories.update(dict.fromkeys(LOCAL, LinkedFiles))
    try:
        yield
    finally:
        repositories.update(before)
