"""The plan of `make gc`: garbage by kind, with the calls to free the garbage."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flows.garbage import cache, history, states
from flows.garbage.history import History
from flows.garbage.needs import OUT_AND_DEP, needed_models, needed_runs, spare_versions
from flows.garbage.sizes import Links
from flows.nights.keeping import COMMIT_TAG
from flows.trees import tree
from tasks.project.graph import lock
from tasks.tracking.registry import KINDS, Registered, answered

NIGHT_S = 24 * 60 * 60
COMMIT_TAGS = (COMMIT_TAG, "mlflow.source.git.commit")


@dataclass(frozen=True)
class Row:
    """A kind of garbage: the size in bytes, and a call per item to free the item."""

    kind: str
    size: int
    frees: Sequence[Callable[[], None]]


def plan(*, nights: int, refused: int | None) -> Iterator[Row]:
    """Yield the garbage by kind; the last `nights` nights are kept.

    The newest `refused` refused versions of each kind of model are kept, all of them for None. Rows
    are freed in this order, so that the next `make gc` can free the rest after an interruption.
    """
    since, links = time.time() - nights * NIGHT_S, Links()
    spare = [] if refused is None else list(_spare(refused))
    yield Row("refused versions", 0, [_asked(history.delete_version, *one) for one in spare])
    found = history.read(set(spare))
    present = {(out["path"], out["md5"]) for one in lock().values() for out in one.get("outs", [])}
    runs = needed_runs(found.runs, since=since, named=found.named, outputs=found.outputs | present)
    models = needed_models(
        found.models, found.runs, since=since, named=found.named, outputs=present
    )
    old = [model.id for model in found.models if model.id not in models]
    yield _of_mlflow("model copies", old, found, links, history.delete_model)
    old = [run.id for run in found.runs if run.id not in runs]
    yield _of_mlflow("runs", old, found, links, history.delete_run)
    commits = _commits(found, runs)
    refs = list(tree.refs())
    old = [ref.name for ref in refs if ref.commit not in commits and ref.time < since]
    yield Row("records in git", 0, [partial(tree.remove_ref, name) for name in old])
    if cache.is_own():
        kept = [ref.commit for ref in refs if ref.name not in old]
        used = cache.with_files({*cache.digests(kept), *_digests(found, runs)})
        yield _files("runs in the cache", cache.broken_runs(used), links, cache.remove)
        yield _files("files in the cache", cache.unused_files(used), links, cache.remove)
    yield _files("states and downloads", states.unneeded(since), links, states.remove)


def _spare(refused: int) -> Iterator[tuple[str, int]]:
    for found in map(Registered, KINDS):
        yield from ((found.name, number) for number in spare_versions(found, refused))


def _of_mlflow(
    kind: str,
    names: Iterable[str],
    found: History,
    links: Links,
    delete: Callable[[History, str], None],
) -> Row:
    names = list(names)
    places = [place for name in names if (place := found.local(name)) is not None]
    return Row(kind, links.freed_by(places), [_asked(delete, found, name) for name in names])


def _asked(delete: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    """Return a deletion in MLflow, to raise AwayError while MLflow is away."""
    return partial(answered, partial(delete, *arguments))


def _files(kind: str, paths: list[Path], links: Links, remove: Callable[[Path], None]) -> Row:
    return Row(kind, links.freed_by(paths), [partial(remove, path) for path in paths])


def _commits(found: History, runs: set[str]) -> set[str]:
    """Return the commits of the kept runs."""
    kept = [run for run in found.runs if run.id in runs]
    return {run.tags[tag] for run in kept for tag in COMMIT_TAGS if tag in run.tags}


def _digests(found: History, runs: set[str]) -> set[str]:
    """Return the hashes of outputs and inputs of kept versions and runs."""
    kept = [run.outputs(prefix) for run in found.runs if run.id in runs for prefix in OUT_AND_DEP]
    return {digest for outputs in (found.outputs, *kept) for _, digest in outputs}
