"""Copies of recorded outputs from DVC's cache, beside the work tree."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from tasks.project.cache import cached_file, cached_runs
from tasks.project.environment import ROOT
from tasks.project.graph import parse_yaml
from tasks.project.hashes import known

FOLDER = ".dir"  # the end of DVC's hash of a folder
ARTIFACTS = "artifacts/"
CODE = ("src/", "tasks/")


def link_outputs(outputs: Mapping[str, str], folder: Path) -> list[str]:
    """Link recorded outputs, hashes by path, into a folder; return the outputs without files.

    An output counts as missing if a file is not in the cache, or is damaged there.
    """
    missing = []
    for path, digest in outputs.items():
        place = folder / path.removeprefix(ARTIFACTS)
        files = list(_files(place, digest))
        if not files or any(not _is_whole(cached) for _, cached in files):
            missing.append(path)
            continue
        for link, cached in files:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(cached)
    return missing


def recorded_code(key: str) -> dict[str, str]:
    """Return the hash of each code dep of a stage's run, by the run's key; empty if unknown."""
    for file in sorted(cached_runs(ROOT, key).glob("*")) if key else ():
        entry = parse_yaml(file.read_text(encoding="utf-8"), str(file))
        return {dep["path"]: dep["md5"] for dep in entry["deps"] if dep["path"].startswith(CODE)}
    return {}


def _files(place: Path, digest: str) -> Iterator[tuple[Path, Path]]:
    """Yield the links of an output and the cached files; nothing without the folder's list."""
    cached = cached_file(ROOT, digest)
    if not digest.endswith(FOLDER):
        yield place, cached
    elif _is_whole(cached):
        for file in json.loads(cached.read_bytes()):
            yield place / file["relpath"], cached_file(ROOT, file["md5"])


def _is_whole(cached: Path) -> bool:
    """Return whether a cached file exists and has the content of its hash."""
    digest = (cached.parent.name + cached.name).removesuffix(FOLDER)
    return cached.is_file() and known().md5(cached) == digest
