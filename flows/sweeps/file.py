"""Sweep files, checked completely before any work.

A file is checked by itself and against params.yaml.
"""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    model_validator,
)

from flows.dvc.pins import read_pin
from flows.sweeps.params import Changes, encoded, put, shown
from gptmill.device import RuntimeConfig
from gptmill.figures import read_figures
from gptmill.records import file_hashes
from tasks.frame.stage import load
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.project.params import validated

FILE = "configs/sweeps/short.yaml"
"""The default sweep file of `make sweep`, used without FILE."""
PROBES = 2000  # combinations of a sampled space to validate before any work
A_RANGE, A_LIST = "{a range}", "[a list]"  # pydantic's prefixes for mistakes in a range or list


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a number")
    return value


def _count(value: Any) -> int | str:
    if value == "all":
        return "all"
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number above 0, or all")
    return value


Number = Annotated[int | float, PlainValidator(_number)]


class SweepPart(BaseModel):
    """A part of a sweep file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(SweepPart):
    """Numbers from `low` to `high`.

    The numbers are whole where both ends are whole.
    """

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    @model_validator(mode="after")
    def check_ends(self) -> "Range":
        """Raise ValueError for an empty or unsamplable range."""
        if not self.low < self.high:
            raise ValueError(f"low is {self.low}, high {self.high}; low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}; with log, low must be above 0")
        if self.step is not None and (self.log or not 0 < self.step <= self.high - self.low):
            raise ValueError(
                f"step is {self.step}; step must be above 0, at most high - low, and without log"
            )
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return all(isinstance(end, int) for end in (self.low, self.high, self.step or 1))

    def steps(self) -> list[int | float]:
        """Return all numbers of a range with a step."""
        assert self.step is not None
        low, high, step = (Decimal(str(end)) for end in (self.low, self.high, self.step))
        numbers = (low + k * step for k in range(int((high - low) / step) + 1))
        return [int(number) if self.whole else float(number) for number in numbers]


Domain = Range | list[Any]
Tagged = Annotated[
    Annotated[Range, Tag(A_RANGE)] | Annotated[list[Any], Field(min_length=1), Tag(A_LIST)],
    Discriminator(lambda value: A_LIST if isinstance(value, list) else A_RANGE),
]


class Search(SweepPart):
    """The content of a sweep file."""

    stage: str
    metric: str
    direction: Literal["minimize", "maximize"]
    sampler: Literal["grid", "random", "tpe"]
    seed: int = Field(ge=0)
    trials: Annotated[int | Literal["all"], PlainValidator(_count)]
    fixed: Changes = Field(alias="set")
    space: dict[str, Tagged] = Field(min_length=1)

    @model_validator(mode="after")
    def check_sampler(self) -> "Search":
        """Raise ValueError where sampler and space do not fit together."""
        if self.sampler != "grid" and self.trials == "all":
            raise ValueError(f"trials is all; with sampler {self.sampler}, trials must be a number")
        for key, domain in self.space.items():
            if isinstance(domain, list):
                texts = [encoded(choice) for choice in domain]
                twice = [text for text in texts if texts.count(text) > 1]
                if twice:
                    raise ValueError(f"space.{key} holds {twice[0]} twice")
            elif self.sampler == "grid" and domain.step is None:
                raise ValueError(
                    f"space.{key} is a range; a grid needs a list of choices, or a step"
                )
        return self

    def domain(self, key: str) -> Domain:
        """Return the allowed values of a key.

        In a grid, a range becomes the list of its steps.
        """
        domain = self.space[key]
        if self.sampler == "grid" and isinstance(domain, Range):
            return list(domain.steps())
        return domain

    @cached_property
    def grid(self) -> list[Changes]:
        """Return every combination of a grid, in trial order.

        The seed shuffles the order: a grid stopped early has covered all regions of the space.
        """
        assert self.sampler == "grid"
        points = list(combinations({key: self.domain(key) for key in self.space}))
        random.Random(self.seed).shuffle(points)
        return points

    @property
    def n_trials(self) -> int:
        """Return the number of trials in the complete sweep."""
        if self.sampler != "grid":
            assert isinstance(self.trials, int)
            return self.trials
        return len(self.grid) if self.trials == "all" else min(self.trials, len(self.grid))

    @property
    def stages(self) -> list[str]:
        """Return the stages of a trial, in the graph's order.

        A trial brings all of these stages up to date.
        """
        return [*graph.ancestors(self.stage), self.stage]


def combinations(space: Mapping[str, Domain]) -> Iterator[Changes]:
    """Return every combination of choices.

    A range contributes its two ends.
    """
    values = [
        domain if isinstance(domain, list) else [domain.low, domain.high]
        for domain in space.values()
    ]
    return (dict(zip(space, point, strict=True)) for point in itertools.product(*values))


@dataclass(frozen=True)
class Sweep:
    """A checked search and its record folder.

    No two searches share a record folder.
    """

    search: Search
    stem: str
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the sweep's name: the file's stem and a hash.

        The hash covers every input of the trials: changed code or data makes a new sweep.
        """
        text = json.dumps(self.facts, sort_keys=True)
        return f"sweep-{self.stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def folder(self) -> Path:
        """Return the folder of the study and the unfinished worktrees."""
        return ROOT / ".state" / "sweeps" / self.name


def read(file: str) -> Sweep:
    """Load a sweep file.

    Raises ValueError with a line per mistake.
    """
    path = (ROOT / file).resolve()
    if not path.is_relative_to(ROOT):
        raise ValueError(f"{file} is outside {ROOT}; FILE must name a sweep file of this project")
    if not path.is_file():
        raise ValueError(f"{file} is missing; FILE must name a sweep file like {FILE}")
    search = parse(graph.read_yaml(path), file)
    return Sweep(search, path.stem, _facts(search))


def parse(content: Any, file: str) -> Search:
    """Return a file's content as a checked search.

    Raises ValueError where the content does not fit this project.
    """
    search = validated(Search, content, file=file)
    try:
        check(search)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return search


def check(search: Search) -> None:
    """Check a search against this project's stages and params.

    Raises ValueError for the first mistake.
    """
    if search.stage not in graph.stages():
        names = ", ".join(graph.stages())
        raise ValueError(f"stage is {search.stage}; the stages are {names}")
    keys = [*search.fixed, *search.space]
    for key in keys:
        _check_key(search, key)
    for parent, child in itertools.permutations(keys, 2):
        if f"{child}.".startswith(f"{parent}."):
            raise ValueError(f"{child} is set by {parent} already: remove either key")
    _check_metric(search)
    if search.sampler == "grid":
        _check_grid(search)
    else:
        _check_values(search)


def _check_key(search: Search, key: str) -> None:
    section, *_ = key.split(".")
    sections = {name for stage in search.stages for name in graph.stages()[stage]["params"]}
    value: Any = graph.params()
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"params.yaml has no {key}")
        value = value[part]
    if section not in sections:
        raise ValueError(
            f"{key} changes nothing: {' and '.join(search.stages)} read only "
            f"{', '.join(name for name in graph.params() if name in sections)}"
        )
    if key in graph.REFERENCE.findall((ROOT / "dvc.yaml").read_text(encoding="utf-8")):
        raise ValueError(f"{key} selects the input files of a stage: edit params.yaml instead")


def _check_metric(search: Search) -> None:
    """Check the metric against the stage's last figures.

    Where the stage has never run, the first trial checks the metric.
    """
    if figures := read_figures(ROOT / "artifacts" / search.stage):
        require_metric(search, figures)


def require_metric(search: Search, metrics: Mapping[str, Any]) -> float:
    """Return the value of the searched metric.

    Raises ValueError where the stage does not write a number under the metric's name.
    """
    value = metrics.get(search.metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        numbers = ", ".join(key for key, entry in metrics.items() if not isinstance(entry, str))
        raise ValueError(f"metric is {search.metric}; {search.stage} writes {numbers}")
    return float(value)


def _check_grid(search: Search) -> None:
    for point in search.grid:
        mistake = refusal({**search.fixed, **point})
        if mistake:
            raise ValueError(f"at {shown(point)}: {mistake}")


def _check_values(search: Search) -> None:
    """Raise ValueError where a value is valid in no combination.

    Checked values are all choices and both ends of every range, combined with the values of the
    remaining keys.
    """
    points = list(itertools.islice(combinations(search.space), 100 * PROBES))
    random.Random(search.seed).shuffle(points)
    valid: set[tuple[str, str]] = set()
    mistakes: dict[tuple[str, str], str] = {}
    for point in points[:PROBES]:
        pairs = [(key, encoded(value)) for key, value in point.items()]
        mistake = refusal({**search.fixed, **point})
        if mistake is None:
            valid.update(pairs)
        else:
            mistakes.update(dict.fromkeys(pairs, mistake))
    for pair, mistake in mistakes.items():
        if pair not in valid:
            raise ValueError(f"at {pair[0]} {pair[1]}: {mistake}")


def refusal(changes: Changes) -> str | None:
    """Return the reason why params are invalid, or None.

    The stages' own sections validate the params.
    """
    shared: dict[str, type] = {"seed": int, "runtime": RuntimeConfig}
    for name in sorted({key.split(".")[0] for key in changes}):
        if name not in shared and name not in graph.stages():
            return f"no stage reads the section {name}: use a key in a stage's own section"
        # a copy through JSON leaves the loaded params unchanged
        section = {name: json.loads(_section_text(name))}
        put(section, {key: value for key, value in changes.items() if key.split(".")[0] == name})
        kind = shared.get(name) or load(name).section
        try:
            validated(kind, section[name], file="params.yaml", section=name)
        except ValueError as error:
            return "; ".join(str(error).splitlines())
    return None


@cache
def _section_text(name: str) -> str:
    return json.dumps(graph.params()[name])


def _facts(search: Search) -> dict[str, Any]:
    """Return the inputs of a trial's value, by name.

    The inputs are the search, the code, the params and the raw data.
    """
    facts: dict[str, Any] = {"the search": search.model_dump(mode="json", exclude={"trials"})}
    pin = read_pin(ROOT)
    facts["data.dvc"] = pin.md5 if pin else None
    for name in search.stages:
        stage = graph.stages()[name]
        facts[f"dvc.yaml {name}"] = {key: stage[key] for key in ("cmd", "deps", "params", "outs")}
        for path in set(stage["deps"]) - set(graph.inputs(name)):
            if (ROOT / path).exists():
                hashes = file_hashes(ROOT / path)
                facts |= {(Path(path) / file).as_posix(): hashes[file] for file in hashes}
        for section in stage["params"]:
            facts.update(_params_facts(section, search))
    return facts


def _params_facts(section: str, search: Search) -> dict[str, Any]:
    """Return a section's params shared by all trials.

    The values of fixed and searched keys are replaced by None.
    """
    content = {section: json.loads(_section_text(section))}
    replaced = {key: None for key in (*search.fixed, *search.space) if key.split(".")[0] == section}
    put(content, replaced)
    return {f"params.yaml {section}": content[section]}
