"""Rules of the garbage collection: the runs and models that stay.

A run stays if it is recent, or if it is behind a registered version or a present output: the runs
that made the inputs stay too, and each pipeline run above. A model stays with its version, with a
recent run, and as long as the present outputs have its bytes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.registry.review import DECISION
from flows.sides.runs import DEP, OUT
from tasks.tracking.registry import Registered

PARENT = "mlflow.parentRunId"
OUT_AND_DEP = (OUT, DEP)
Output = tuple[str, str]
"""Path and hash of an output."""


@dataclass(frozen=True)
class RunFacts:
    """A run in MLflow."""

    id: str
    started: float
    """Seconds since the epoch."""
    tags: Mapping[str, str]
    is_over: bool = True
    is_deleted: bool = False

    def outputs(self, prefix: str = OUT) -> set[Output]:
        """Return path and hash of each output; of each input with the prefix of inputs."""
        return outputs_of(self.tags, prefix)


@dataclass(frozen=True)
class ModelFacts:
    """A logged model in MLflow."""

    id: str
    run: str
    created: float


def outputs_of(tags: Mapping[str, str], prefix: str = OUT) -> set[Output]:
    """Return the paths and hashes in tags with a prefix."""
    return {
        (tag.removeprefix(prefix), digest) for tag, digest in tags.items() if tag.startswith(prefix)
    }


def needed_runs(
    runs: Sequence[RunFacts], *, since: float, named: Collection[str], outputs: Collection[Output]
) -> set[str]:
    """Return the ids of the runs that stay.

    `named` are the runs of registered versions, `outputs` the outputs of versions and of the tree.
    """
    known = {run.id: run for run in runs}
    makers: dict[Output, str] = {}
    for run in sorted(runs, key=lambda one: one.started, reverse=True):  # the oldest remains
        if not run.is_deleted:
            makers |= dict.fromkeys(run.outputs(), run.id)
    kept: set[str] = set()
    waiting = [run.id for run in runs if run.started >= since or not run.is_over]
    waiting += [*named, *(makers[one] for one in outputs if one in makers)]
    while waiting:
        name = waiting.pop()
        if name in known and name not in kept:
            kept.add(name)
            waiting += _above(known[name], makers)
    return kept


def _above(run: RunFacts, makers: Mapping[Output, str]) -> Iterator[str]:
    """Yield the runs that made a run's inputs, and the parent."""
    yield from (makers[one] for one in run.outputs(DEP) if one in makers)
    if PARENT in run.tags:
        yield run.tags[PARENT]


def needed_models(
    models: Sequence[ModelFacts],
    runs: Sequence[RunFacts],
    *,
    since: float,
    named: Collection[str],
    outputs: Collection[Output],
) -> set[str]:
    """Return the ids of the models that stay: `named` ones, recent ones, those of `outputs`."""
    present = set(outputs)
    making = {run.id for run in runs if run.outputs() & present or run.started >= since}
    return {
        model.id
        for model in models
        if model.id in named or model.run in making or model.created >= since
    }


def spare_versions(found: Registered, newest: int) -> list[int]:
    """Return the refused versions of a kind, without the newest ones.

    A version with an alias, or that was ever the champion, is not spare.
    """
    safe = {*found.aliases.values(), *found.champions, found.best}
    refused = [
        number
        for number, version in found.versions.items()
        if number not in safe and _is_refused(version)
    ]
    return refused[: max(len(refused) - newest, 0)]


def _is_refused(version: Any) -> bool:
    return version.tags.get(DECISION) == "refused" and "champion.when" not in version.tags
