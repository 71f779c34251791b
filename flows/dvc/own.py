"""The user's own files: places of sources.toml with a path on this machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.dvc.pins import listing_hash
from gptmill.files import sha256
from gptmill.sources.archive import check_readable, visible_files
from gptmill.sources.table import Place, Source
from tasks.project.environment import project_of

Status = tuple[int, int, int]


def own_places(sources: Sequence[Source]) -> list[Place]:
    """Return the places with a path on this machine."""
    return [place for source in sources for place in source.places if place.kind == "path"]


def own_files(root: Path, sources: Sequence[Source]) -> dict[str, dict[str, Path]]:
    """Return the files taken from each path that exists, by name.

    A relative path begins at the project, also in a worktree of the project.

    Raises ValueError naming a pipe, a device or a link without a target among the files.
    """
    patterns: dict[str, list[str]] = {}
    for place in own_places(sources):
        patterns.setdefault(place.at["path"], []).extend(place.members or ("*",))
    paths = {name: project_of(root) / Path(name).expanduser() for name in patterns}
    return {name: _files(path, patterns[name]) for name, path in paths.items() if path.exists()}


def _files(path: Path, patterns: Sequence[str]) -> dict[str, Path]:
    check_readable(path)
    files = visible_files(path, patterns) if path.is_dir() else [path]
    return {file.relative_to(path).as_posix(): file for file in files}


def hashes(own: Mapping[str, Mapping[str, Path]]) -> dict[str, str]:
    """Return a single hash of each path's files."""
    return {
        path: listing_hash({name: sha256(file) for name, file in files.items()})
        for path, files in own.items()
    }


def states(own: Mapping[str, Mapping[str, Path]]) -> dict[str, dict[str, Status]]:
    """Return size, time of change and inode of each file."""
    return {
        path: {name: _status(file) for name, file in files.items()} for path, files in own.items()
    }


def _status(file: Path) -> Status:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def refuse_changed(before: Mapping[str, object], after: Mapping[str, object]) -> None:
    """Raise ValueError where files changed while `make data` read the files."""
    changed = sorted(path for path in before if before[path] != after.get(path))
    if changed:
        raise ValueError(
            f"{', '.join(changed)} changed while `make data` read the files; data/ is unchanged. "
            "Run `make data` again"
        )
