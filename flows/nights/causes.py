"""Differences between a run and its reproduction: output files, and their causes."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.sides.cached import FOLDER
from gptmill.records import file_hashes
from tasks.project.cache import cached_file
from tasks.project.environment import ROOT
from tasks.tracking.runs import flatten

Entry = Mapping[str, Any]
KINDS = {"data/": "data", "artifacts/": "input"}
UNKNOWN = "unknown: code, data, package versions and hardware are the same"
SHOWN = 4  # package versions and files listed by name


def different_files(tree: Path, before: Entry, now: Entry) -> list[str]:
    """Return the output files of a stage with changed hashes.

    A changed folder is listed as a whole if DVC's cache has no list of the recorded files.
    """
    hashes = {out["path"]: out["md5"] for out in now.get("outs", [])}
    names: list[str] = []
    for out in before.get("outs", []):
        path, digest = out["path"], out["md5"]
        if hashes.get(path) == digest:
            continue
        listing = cached_file(ROOT, digest)
        if not (digest.endswith(FOLDER) and listing.exists() and (tree / path).is_dir()):
            names.append(path)
            continue
        recorded = {one["relpath"]: one["md5"] for one in json.loads(listing.read_bytes())}
        actual = file_hashes(tree / path)
        names += [f"{path}/{n}" for n in _different(recorded, actual)]
    return names


def causes(before: Entry, now: Entry) -> list[str]:
    """Return a stage's changed inputs: code, data, upstream outputs, params."""
    first, second = (
        {dep["path"]: dep["md5"] for dep in one.get("deps", [])} for one in (before, now)
    )
    found = [f"{_kind(path)}: {path}" for path in _different(first, second)]
    params = [flatten(one.get("params", {}).get("params.yaml", {})) for one in (before, now)]
    return found + [f"params: {name}" for name in _different(*params)]


def conditions(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe changed package versions and hardware in a sentence."""
    if not before:
        return "package versions or hardware: the run has no record of either"
    found = []
    for key, name in (("packages", "package versions"), ("hardware", "hardware")):
        pairs = list(_changed(before.get(key, {}), now.get(key, {})))
        more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
        found += [f"{name}: {', '.join(pairs[:SHOWN])}{more}"] if pairs else []
    return "; ".join(found) or UNKNOWN


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in _different(before, now):
        yield f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}"


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]


def _kind(path: str) -> str:
    return next((kind for start, kind in KINDS.items() if path.startswith(start)), "code")
