"""Unneeded files in .state/: states of finished trainings, old results, old downloads."""

import shutil
from pathlib import Path

from flows.commands.data.data import read_table
from flows.trees import apart
from gptmill.sources.fetch import cache_name
from tasks.frame import resume, states
from tasks.project.environment import ROOT


def unneeded(since: float) -> list[Path]:
    """Return states of finished trainings, and files unused since `since`.

    An unfinished training keeps its state at any age.
    """
    kept = [path for path in (states.STATES / "kept").glob("*.json") if _is_older(path, since)]
    return [*resume.finished(), *apart.RUNS.glob("*"), *kept, *_downloads(since)]


def _downloads(since: float) -> list[Path]:
    """Return old downloads of no enabled source in sources.toml."""
    places = [place for source in read_table(ROOT / "sources.toml") for place in source.places]
    named = {cache_name(place) for place in places if place.kind != "path"}
    files = (ROOT / ".state" / "downloads").glob("*")
    return [
        file
        for file in sorted(files)
        if file.name.removesuffix(".partial") not in named and _is_older(file, since)
    ]


def _is_older(path: Path, since: float) -> bool:
    return path.stat().st_mtime < since


def remove(path: Path) -> None:
    """Remove a file, a folder, or the worktree of a killed run."""
    if path.parent == apart.RUNS:
        apart.remove_left()
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
