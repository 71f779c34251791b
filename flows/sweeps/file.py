"""What a sweep file asks for: checked as a whole before any work, against params.yaml too."""

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
from gptmill.files import read_json
from gptmill.records import file_hashes
from tasks.frame.stage import load
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.project.params import validated

FILE = "configs/sweeps/short.yaml"
"""The sweep file that `make sweep` takes where none is named."""
PROBES = 2000  # combinations that a sampler's space is tried on before any work
A_RANGE, A_LIST = "{a range}", "[a list]"  # what pydantic puts in front of mistakes in either


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
    """Numbers from `low` to `high`: whole ones where both ends are whole."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    @model_validator(mode="after")
    def check_ends(self) -> "Range":
        """Stop at a range that holds nothing, or that no sampler can draw from."""
        if not self.low < self.high:
            raise ValueError(f"low is {self.low}, high {self.high}; low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}; with log it must be above 0")
        if self.step is not None and (self.log or not 0 < self.step <= self.high - self.low):
            raise ValueError(
                f"step is {self.step}; it must be above 0, at most high - low, and without log"
            )
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return all(isinstance(end, int) for end in (self.low, self.high, self.step or 1))

    def steps(self) -> list[int | float]:
        """Return every number of a range with a step."""
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
    """A sweep file."""

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
        """Stop where the sampler and the space do not fit each other."""
        if self.sampler != "grid" and self.trials == "all":
            raise ValueError(f"trials is all; with sampler {self.sampler} it must be a number")
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
        """Return what a key may be; the range of a grid is the list of its steps."""
        domain = self.space[key]
        if self.sampler == "grid" and isinstance(domain, Range):
            return list(domain.steps())
        return domain

    @cached_property
    def grid(self) -> list[Changes]:
        """Return every combination of a grid, in the order of the trials.

        The order is shuffled by the seed: a grid that is stopped early has looked everywhere.
        """
        assert self.sampler == "grid"
        points = list(combinations({key: self.domain(key) for key in self.space}))
        random.Random(self.seed).shuffle(points)
        return points

    @property
    def n_trials(self) -> int:
        """Return how many trials there are in the end."""
        if self.sampler != "grid":
            assert isinstance(self.trials, int)
            return self.trials
        return len(self.grid) if self.trials == "all" else min(self.trials, len(self.grid))

    @property
    def stages(self) -> list[str]:
        """Return the stages that a trial brings up to date, in the graph's order."""
        return [*graph.ancestors(self.stage), self.stage]


def combinations(space: Mapping[str, Domain]) -> Iterator[Changes]:
    """Return every combination of choices; of a range, its two ends."""
    values = [
        domain if isinstance(domain, list) else [domain.low, domain.high]
        for domain in space.values()
    ]
    return (dict(zip(space, point, strict=True)) for point in itertools.product(*values))


@dataclass(frozen=True)
class Sweep:
    """A checked search, and where its record lies: a folder that no other search shares."""

    search: Search
    stem: str
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name the file, and what its trials rest on: changed code or data is a new sweep."""
        text = json.dumps(self.facts, sort_keys=True)
        return f"sweep-{self.stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def folder(self) -> Path:
        """Return where the study and the worktrees of unfinished trials lie."""
        return ROOT / ".state" / "sweeps" / self.name


def read(file: str) -> Sweep:
    """Read a sweep file. Raises ValueError, one line a mistake."""
    path = (ROOT / file).resolve()
    if not path.is_relative_to(ROOT):
        raise ValueError(f"{file} lies outside {ROOT}; FILE names a sweep file of this project")
    if not path.is_file():
        raise ValueError(f"{file} is missing; FILE names a sweep file like {FILE}")
    search = parse(graph.read_yaml(path), file)
    return Sweep(search, path.stem, _facts(search))


def parse(content: Any, file: str) -> Search:
    """Return what a file holds as a search that fits this project. Raises ValueError."""
    search = validated(Search, content, file=file)
    try:
        check(search)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return search


def check(search: Search) -> None:
    """Raise ValueError where a search does not fit this project's stages and params."""
    if search.stage not in graph.stages():
        known = ", ".join(graph.stages())
        raise ValueError(f"stage is {search.stage}; the stages are {known}")
    keys = [*search.fixed, *search.space]
    for key in keys:
        _check_key(search, key)
    for one, other in itertools.permutations(keys, 2):
        if f"{other}.".startswith(f"{one}."):
            raise ValueError(f"{other} is given by {one} already: keep one of them")
    _check_metric(search)
    if search.sampler == "grid":
        _check_grid(search)
    else:
        _check_values(search)


def _check_key(search: Search, key: str) -> None:
    section, *_ = key.split(".")
    read = {name for stage in search.stages for name in graph.stages()[stage]["params"]}
    found: Any = graph.params()
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            raise ValueError(f"params.yaml has no {key}")
        found = found[part]
    if section not in read:
        raise ValueError(
            f"{key} changes nothing: {' and '.join(search.stages)} read only "
            f"{', '.join(name for name in graph.params() if name in read)}"
        )
    if key in graph.REFERENCE.findall((ROOT / "dvc.yaml").read_text(encoding="utf-8")):
        raise ValueError(f"{key} decides which files a stage reads: edit params.yaml for that")


def _check_metric(search: Search) -> None:
    """Compare with what the stage wrote last; where it never ran, the first trial tells."""
    path = ROOT / "artifacts" / search.stage / "metrics.json"
    if path.exists():
        require_metric(search, read_json(path))


def require_metric(search: Search, metrics: Mapping[str, Any]) -> float:
    """Return the value of the metric. Raises ValueError where a stage does not write it."""
    value = metrics.get(search.metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        numbers = ", ".join(key for key, found in metrics.items() if not isinstance(found, str))
        raise ValueError(f"metric is {search.metric}; {search.stage} writes {numbers}")
    return float(value)


def _check_grid(search: Search) -> None:
    for point in search.grid:
        mistake = refusal({**search.fixed, **point})
        if mistake:
            raise ValueError(f"at {shown(point)}: {mistake}")


def _check_values(search: Search) -> None:
    """Raise ValueError where a choice, or an end of a range, fits no combination of the others."""
    points = list(itertools.islice(combinations(search.space), 100 * PROBES))
    random.Random(search.seed).shuffle(points)
    fits: set[tuple[str, str]] = set()
    mistakes: dict[tuple[str, str], str] = {}
    for point in points[:PROBES]:
        pairs = [(key, encoded(value)) for key, value in point.items()]
        mistake = refusal({**search.fixed, **point})
        if mistake is None:
            fits.update(pairs)
        else:
            mistakes.update(dict.fromkeys(pairs, mistake))
    for pair, mistake in mistakes.items():
        if pair not in fits:
            raise ValueError(f"at {pair[0]} {pair[1]}: {mistake}")


def refusal(changes: Changes) -> str | None:
    """Return why the stages' own sections refuse these params; None where they take them."""
    shared: dict[str, type] = {"seed": int, "runtime": RuntimeConfig}
    for name in sorted({key.split(".")[0] for key in changes}):
        if name not in shared and name not in graph.stages():
            return f"{name} is no section that a stage reads: name the stage's own value"
        # a copy through JSON: the params themselves stay
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
    """Return what a trial's value rests on, by name: the search, code, params and raw data."""
    facts: dict[str, Any] = {"the search": search.model_dump(mode="json", exclude={"trials"})}
    pin = read_pin(ROOT)
    facts["data.dvc"] = pin.md5 if pin else None
    for name in search.stages:
        stage = graph.stages()[name]
        facts[f"dvc.yaml {name}"] = {key: stage[key] for key in ("cmd", "deps", "params", "outs")}
        for path in set(stage["deps"]) - set(graph.inputs(name)):
            if (ROOT / path).exists():
                below = file_hashes(ROOT / path)
                facts |= {(Path(path) / file).as_posix(): below[file] for file in below}
        for section in stage["params"]:
            facts.update(_params_facts(section, search))
    return facts


def _params_facts(section: str, search: Search) -> dict[str, Any]:
    """Return the params of a section that the trials share."""
    own = {section: json.loads(_section_text(section))}
    given = {key: None for key in (*search.fixed, *search.space) if key.split(".")[0] == section}
    put(own, given)
    return {f"params.yaml {section}": own[section]}
