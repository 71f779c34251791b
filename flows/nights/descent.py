"""The descent of a model: the runs behind its bytes, with commit, params, data and licences."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flows.nights.keeping import COMMIT_TAG, REF_TAG
from flows.sides.cached import ARTIFACTS
from flows.sides.energy import energy
from flows.sides.runs import DEP, DEVICE, OUT
from tasks.project.cache import cached_file
from tasks.project.environment import ROOT
from tasks.project.hashes import known
from tasks.tracking.delivery import find_run
from tasks.tracking.store import connect

MANIFEST = "data/manifest/"


def maker(path: str, digest: str) -> Any:
    """Return the first run that wrote an output with this hash, None without such a run."""
    from mlflow import MlflowClient

    experiment, term = connect(), f"tags.`{OUT}{path}` = '{digest}'"
    oldest = ["attributes.start_time ASC"]
    found = MlflowClient().search_runs([experiment], term, order_by=oldest, max_results=1)
    return found[0] if found else None


def chain(run: Any, seen: dict[str, Any] | None = None) -> list[Any]:
    """Return the runs behind a run, and the run itself last, each once."""
    seen = {} if seen is None else seen
    for path, digest in tagged(run, DEP).items():
        above = maker(path, digest) if path.startswith(ARTIFACTS) else None
        if above is not None and above.info.run_id not in seen:
            chain(above, seen)
    seen[run.info.run_id] = run
    return list(seen.values())


def tagged(run: Any, prefix: str) -> dict[str, str]:
    """Return a run's tags with a prefix, without the prefix."""
    tags = run.data.tags.items()
    return {name.removeprefix(prefix): value for name, value in tags if name.startswith(prefix)}


def lines(run: Any) -> Iterator[str]:
    """Yield the descent of a run's output as lines for a person."""
    behind = chain(run)
    yield from _pairs("commit", _commits(behind))
    yield from _pairs("params", _params(behind))
    yield from _pairs("data", dict(_data(behind)))
    yield from _pairs("sources", _licences(behind))
    yield from _pairs("runs", {_stage(one): _times(one) for one in behind})
    yield f"{'seconds':<10}{sum(map(_seconds, behind)):.1f} in all"
    spent = energy((_stage(one), one) for one in behind)
    yield from _pairs("energy", spent or {"not told by this device": ""})


def _pairs(title: str, values: Mapping[str, str]) -> Iterator[str]:
    width = max(map(len, values), default=0)
    for name, value in values.items() or [("unknown", "")]:
        yield f"{title:<10}{name:<{width}}  {value}".rstrip()
        title = ""


def _commits(behind: Sequence[Any]) -> dict[str, str]:
    """Return the commit of each stage: of the pipeline run's record, or of git."""
    found = {}
    for one in behind:
        tags = one.data.tags
        above = find_run(tags["mlflow.parentRunId"]) if "mlflow.parentRunId" in tags else None
        kept = above.data.tags if above is not None else {}
        if COMMIT_TAG in kept:
            text = f"{kept[COMMIT_TAG]} ({kept[REF_TAG]})"
        else:
            dirty = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
            text = tags.get("mlflow.source.git.commit", "unknown") + dirty
        found[_stage(one)] = text
    return found


def _params(behind: Sequence[Any]) -> dict[str, str]:
    return {
        (name if name == "seed" else f"{_stage(one)}.{name}"): value
        for one in behind
        for name, value in sorted(one.data.params.items())
        if not name.startswith(DEVICE)
    }


def _data(behind: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for one in behind:
        for path, digest in tagged(one, DEP).items():
            if path.startswith("data/"):
                yield path, digest


def _licences(behind: Sequence[Any]) -> dict[str, str]:
    """Return licence and attribution of the sources of the data that the runs read."""
    data = dict(_data(behind))
    found: dict[str, str] = {}
    for path, digest in data.items():
        if not path.startswith(MANIFEST):
            continue
        content = _manifest(path, digest)
        if content is None:
            found[path] = "its record is neither in data/ nor in DVC's cache: `dvc fetch` has it"
            continue
        read = [one.removeprefix("data/") for one in data if not one.startswith(MANIFEST)]
        for file, entry in content["files"].items():
            if any(file == one or file.startswith(f"{one}/") for one in read):
                for name in entry["sources"]:
                    source = content["sources"][name]
                    found[name] = ", ".join(filter(None, map(source.get, LICENCE)))
    return found


LICENCE = ("licence", "attribution")


def _manifest(path: str, digest: str) -> dict[str, Any] | None:
    for file in (cached_file(ROOT, digest), ROOT / path):
        if file.exists() and known().md5(file) == digest:
            return dict(json.loads(file.read_bytes()))
    return None


def _stage(run: Any) -> str:
    return str(run.data.tags.get("stage", run.info.run_name))


def _times(run: Any) -> str:
    return f"{run.info.run_id}  {_seconds(run):,.1f} s"


def _seconds(run: Any) -> float:
    return float((run.info.end_time or run.info.start_time) - run.info.start_time) / 1000
