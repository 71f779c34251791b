"""What a pipeline run is asked to do: the flow's parameters, checked before any stage."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from flows.changes import dated
from flows.commands.data import base as bases
from flows.dvc.command import dvc
from flows.registry.rules import rules
from flows.sweeps.file import refusal
from flows.sweeps.params import Changes, edited, put, shown
from flows.trees import tree
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.project.starts import check_start

KEEP = "keep"
BASES = [KEEP, *bases.names(), *bases.presets()]
BaseName = Annotated[str, Field(json_schema_extra={"enum": [*BASES]})]
"""The type of `base` in Prefect's form: a list to choose from."""
Stages = Annotated[
    list[str], Field(json_schema_extra={"items": {"type": "string", "enum": [*graph.stages()]}})
]
Overrides = Annotated[dict[str, Any], Field(json_schema_extra={"type": "object"})]


@dataclass(frozen=True)
class Plan:
    """The parameters of a pipeline run."""

    base: str = KEEP
    stages: Sequence[str] = ()
    overrides: Changes = field(default_factory=dict)
    force: bool = False
    push: bool = False
    data: bool = True

    @property
    def is_apart(self) -> bool:
        """Return whether the run has params of its own, and works in a worktree."""
        return bool(self.overrides) or self.base not in (KEEP, bases.current())

    @property
    def chosen(self) -> list[str]:
        """Return the stages to bring up to date; none given are all."""
        return [name for name in graph.stages() if name in self.stages or not self.stages]

    def check(self) -> None:
        """Raise ValueError with a sentence for a mistake; nothing has run then.

        Overrides are validated as params.yaml is, by the sections of the stages.
        """
        rules()
        _check_names("base", [self.base], BASES)
        _check_names("stages", self.stages, list(graph.stages()))
        for key in self.overrides:
            _check_key(key)
        for parent, child in itertools.permutations(self.overrides, 2):
            if child.startswith(f"{parent}."):
                raise ValueError(f"overrides: {child} is set by {parent} already: remove either")
        changes = self._changes()
        if mistake := refusal(changes):
            raise ValueError(f"overrides: {mistake}")
        content = copy.deepcopy(graph.params())
        put(content, changes)
        check_start(content)
        if self.is_apart:
            tree.check_repository("a run with another base or with overrides")
        if self.push:
            _check_remote()

    def files(self) -> dict[str, str]:
        """Return the texts of files that differ from the user's tree."""
        files = {"params.yaml": edited(graph.read_text(ROOT / "params.yaml"), self._changes())}
        if self.base != KEEP:
            table, switched = bases.with_sources(bases.read(self.base))
            files |= {"sources.toml": table} if switched else {}
        return files

    def name(self) -> str:
        """Return a name for the run: date, time and params."""
        names = [] if self.base == KEEP else [f"base {self.base}"]
        return dated(", ".join([*names, *([shown(self.overrides)] if self.overrides else [])]))

    def tags(self) -> dict[str, str]:
        """Return tags for the MLflow run."""
        base = bases.current() if self.base == KEEP else self.base
        given = {"stages": " ".join(self.stages), "force": "true" if self.force else ""}
        overrides = {f"override.{key}": str(value) for key, value in self.overrides.items()}
        return {"base": base, **{k: v for k, v in given.items() if v}, **overrides}

    def _changes(self) -> Changes:
        base = {} if self.base == KEEP else bases.read(self.base).params
        return {**base, **self.overrides}


def _check_names(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    for one in given:
        if one not in known:
            raise ValueError(f"{name}: {one} is unknown; allowed are {', '.join(known)}")


def _check_key(key: str) -> None:
    value: Any = graph.params()
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(
                f"overrides: params.yaml has no {key}; a key is a stage and a name, as "
                "pretrain.learning_rate: `make params` prints all"
            )
        value = value[part]


def _check_remote() -> None:
    if not dvc(ROOT, "remote", "list").strip():
        raise ValueError(
            "push is on, but DVC has no remote: `dvc remote add --default NAME URL` adds one"
        )
    if "core.remote=" not in dvc(ROOT, "config", "--list"):
        raise ValueError(
            "push is on, but DVC has no default remote: `dvc remote default NAME` chooses one"
        )
