"""Facts for the report on a side: dates, commits and cost from MLflow, params, sources, hashes."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from flows.commands.data import base
from flows.pages import run_address
from flows.sides.energy import energy
from flows.sides.records import OUTPUTS, plain
from flows.sides.runs import commit_of, makers
from flows.sides.versions import registered
from flows.trees.tree import git
from gptmill.comparing.report.facts import UNKNOWN, Facts, Making
from gptmill.comparing.side import Change, Side
from gptmill.figures import read_figures
from gptmill.origins import Origin, read_origins
from tasks.frame.cost import CPU_SECONDS, MEMORY_GB, SECONDS
from tasks.project.environment import ROOT
from tasks.project.graph import parse_yaml, stages
from tasks.project.hashes import known
from tasks.tracking import runs
from tasks.tracking.runs import flatten

ORIGINS = ("tokenize", "split/labelled", "split/instructions", "load_gpt2")
"""Outputs that record the sources of their raw data."""
NOT_STAGES = ("gate", "resume", "shared")
"""Sections of params.yaml that no stage depends on."""


def facts(side: Side, *, title: str = "") -> Facts:
    """Return the facts of a side, as far as they are recorded."""
    hashes = side.record.get(OUTPUTS) or _hashes(side)
    made = dict(makers(hashes))
    making = [_making(stage, made.get(stage)) for stage in stages() if side.has(stage)]
    dates = [row.date for row in making if row.date != UNKNOWN]
    params = side.record.get("params", {})
    reference, differing = _params(params)
    return Facts(
        title=title or f"Report on {side.name}",
        date=max(dates, default=UNKNOWN),
        commit=_commit(side, making),
        base=_base(side, params),
        reference=reference,
        params=differing,
        are_params_known=bool(params),
        origins=_origins(side),
        energy=energy((stage, run) for stage, run in made.items() if side.has(stage)),
        making=making,
        hashes=hashes,
        models=registered(hashes),
    )


def _hashes(side: Side) -> dict[str, str]:
    """Return the hashes of a folder without a record."""
    outs = [out for entry in stages().values() for out in entry["outs"]]
    places = {out: side.folder / out.removeprefix("artifacts/") for out in outs}
    return {out: known().content_hash(place) for out, place in places.items() if place.exists()}


def _making(stage: str, run: Any) -> Making:
    if run is None:
        return Making(stage)
    name, data = str(run.info.run_id), run.data
    ended = run.info.end_time or run.info.start_time
    seconds, cpu, memory = (
        runs.history(name, metric) if metric in data.metrics else []
        for metric in (SECONDS, CPU_SECONDS, MEMORY_GB)
    )
    return Making(
        stage,
        date=f"{datetime.fromtimestamp(ended / 1000):%Y-%m-%d %H:%M}",
        commit=commit_of(data.tags),
        device=data.params.get("device.model", ""),
        seconds=sum(seconds) if seconds else None,
        cpu_seconds=sum(cpu) if cpu else None,
        memory_gb=max(memory, default=None),
        link=run_address(name),
    )


def _commit(side: Side, making: list[Making]) -> str:
    """Return the recorded commit, or the commits of the stages."""
    recorded = side.record.get("commit", {}).get("commit")
    commits = dict.fromkeys(row.commit for row in making if row.commit)
    return recorded or ", ".join(commits) or UNKNOWN


def _base(side: Side, params: Mapping[str, str]) -> str:
    """Return the base's name and the size of its network."""
    weights = params.get("load_gpt2.weights", "")
    words = [base.with_weights(weights)] if weights else []
    if figures := read_figures(side.folder / "load_gpt2"):
        words.append(f"{figures['family']}, {figures['n_parameters']:,} parameters")
    return ": ".join(words) or UNKNOWN


def _params(params: Mapping[str, str]) -> tuple[str, list[Change]]:
    """Return the name of the reference, and the params that differ from it."""
    if not params:
        return "", []
    weights = params.get("load_gpt2.weights", "")
    name, reference = _reference(base.with_weights(weights) if weights else "")
    sections = {key.partition(".")[0] for key in params}
    expected = {key: value for key, value in reference.items() if key.partition(".")[0] in sections}
    both = (expected, params)
    differing = [
        Change("params", key, *(values.get(key, "").removesuffix(".0") for values in both))
        for key in sorted({*params, *expected})
        if params.get(key) != expected.get(key)
    ]
    return name, differing


@cache
def _reference(preset: str) -> tuple[str, dict[str, str]]:
    """Return the committed params with the values of a preset, by dotted name, and their name."""
    try:
        text, name = git("show", "HEAD:./params.yaml", cwd=ROOT), "the committed params.yaml"
    except ValueError:  # a project without git
        text, name = (ROOT / "params.yaml").read_text(encoding="utf-8"), "params.yaml"
    content = parse_yaml(text, name)
    flat = flatten({key: value for key, value in content.items() if key not in NOT_STAGES})
    if preset in base.names():
        name += f" with configs/bases/{preset}.yaml"
        for key, value in base.read(preset).params.items():
            flat = {k: v for k, v in flat.items() if not f"{k}.".startswith(f"{key}.")}
            flat |= flatten({key: value})
    return name, {key: plain(value) for key, value in flat.items()}


def _origins(side: Side) -> list[Origin]:
    """Return the sources of raw data, each once."""
    paths = [f"{output}/origins.json" for output in ORIGINS]
    found = [one for path in paths if side.has(path) for one in read_origins(side.file(path))]
    return sorted(dict.fromkeys(found), key=lambda origin: origin.name)
