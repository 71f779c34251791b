"""The changes since the last run, in a few words, for the name of a pipeline run."""

from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from gptmill.origins import MANIFEST
from gptmill.records import content_hash
from tasks.project.environment import ROOT
from tasks.project.graph import DATA, inputs, lock, params, stages
from tasks.tracking.runs import flatten

SHOWN = 2  # changes listed by name


def run_name() -> str:
    """Return a name by date, time and changes: `pipeline 2026-01-31 02:00 text data`."""
    names = list(dict.fromkeys(changes()))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    text = ", ".join(names[:SHOWN]) + more
    return dated(text or "no changes")


def dated(text: str) -> str:
    """Return the name of a pipeline run now: `pipeline 2026-01-31 02:00 TEXT`."""
    return f"pipeline {datetime.now():%Y-%m-%d %H:%M} {text}"


def changes() -> Iterator[str]:
    """Yield the params, kinds of raw data and code that differ from dvc.lock."""
    recorded = lock()
    if not recorded:
        yield "first run"
        return
    now = cache(lambda path: content_hash(ROOT / path) if (ROOT / path).exists() else "")
    for name, stage in stages().items():
        if name not in recorded:
            yield f"new stage {name}"
            continue
        yield from _changed_params(stage, recorded[name])
        before = {dep["path"]: dep["md5"] for dep in recorded[name].get("deps", [])}
        for path in _small(name):
            if before.get(path) != now(path):
                yield _label(path)


def _changed_params(stage: dict[str, Any], entry: dict[str, Any]) -> Iterator[str]:
    before = flatten(entry.get("params", {}).get("params.yaml", {}))
    now = flatten({section: params().get(section) for section in stage["params"]})
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            yield key


def _small(name: str) -> list[str]:
    """Return a stage's code, and the manifests in place of the raw data itself."""
    data = inputs(name)
    manifest = f"{DATA}/{MANIFEST}/"
    return [
        path for path in stages()[name]["deps"] if path not in data or path.startswith(manifest)
    ]


def _label(path: str) -> str:
    return f"{PurePosixPath(path).stem} data" if path.startswith(f"{DATA}/") else path
