"""`make base BASE=x`: select the base weights of configs/bases/x.yaml, or a preset, gpu/x.

The command writes the file's params into params.yaml, enables the file's source in sources.toml
and disables the sources of all other bases. Every later run then fine-tunes from the selected
weights, because params.yaml and sources.toml alone decide, however the run is started.
`make pipeline BASE=x` selects the base first.
"""

import json
from typing import Any

import tomlkit
from pydantic import BaseModel, ConfigDict, Field
from tomlkit.exceptions import TOMLKitError

from flows.sweeps.file import refusal
from flows.sweeps.params import Changes, edited, shown
from gptmill.files import write_text
from tasks.processes import locks
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.project.params import validated

GPU = "gpu/"
"""In front of the presets of configs/gpu, which train from scratch and select no weights."""


class Preset(BaseModel):
    """The content of a file of configs/gpu."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    params: Changes = Field(min_length=1)
    """Dotted keys of params.yaml and their values: path of the weights, training settings."""


class Base(Preset):
    """The content of a base file."""

    source: str | None
    """The entry of sources.toml with the weights; null where no source is needed."""


def main(arguments: list[str]) -> int:
    """Select a base.

    A mistake in the base file raises ValueError, a single sentence, before any file is written.
    """
    if len(arguments) != 1:
        text = " ".join(arguments) or "nothing"
        raise ValueError(f"BASE must be one of {', '.join([*names(), *presets()])}; given: {text}")
    with locks.project(f"make base BASE={arguments[0]}"):
        select(arguments[0])
    return 0


def select(name: str) -> None:
    """Write a base's params into params.yaml, and switch the bases' sources in sources.toml.

    A preset of configs/gpu leaves sources.toml as before.
    """
    base = read(name)
    table, switched = with_sources(base)
    path = ROOT / "params.yaml"
    before = graph.read_text(path)
    after = edited(before, base.params)
    if switched:
        write_text(ROOT / "sources.toml", table)
        print(f"sources.toml: {', '.join(switched)}")
    if after != before:
        write_text(path, after)
        print(f"params.yaml: {shown(_changed(base.params))}")
    kind = "base" if isinstance(base, Base) else "preset"
    print(f"the {kind} is {name}: run `make pipeline` to update the stages that use the {kind}")


def names() -> list[str]:
    """Return the names of the base files."""
    return sorted(path.stem for path in (ROOT / "configs/bases").glob("*.yaml"))


def presets() -> list[str]:
    """Return the names of the presets for GPUs."""
    return sorted(f"{GPU}{path.stem}" for path in (ROOT / "configs/gpu").glob("*.yaml"))


def read(name: str) -> Preset:
    """Load a base file, or a preset for GPUs.

    Raises ValueError where the file does not fit this project.
    """
    file = f"configs/{name}.yaml" if name.startswith(GPU) else f"configs/bases/{name}.yaml"
    if name not in [*names(), *presets()]:
        listed = f"the bases are {', '.join(names())}, the presets {', '.join(presets())}"
        raise ValueError(f"{file} does not exist: {listed}")
    kind = Preset if name.startswith(GPU) else Base
    base = validated(kind, graph.read_yaml(ROOT / file), file=file)
    for key in base.params:
        value = graph.params()
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ValueError(f"{file}: params.yaml has no {key}")
            value = value[part]
    mistake = refusal(base.params)
    if mistake:
        raise ValueError(f"{file}: {mistake}")
    return base


def current() -> str:
    """Return the name of the base that params.yaml uses, or else the place of the weights."""
    return with_weights(str(graph.params().get("load_gpt2", {}).get("weights", "")))


def with_weights(weights: str) -> str:
    """Return the name of the base with these weights, or else the place of the weights.

    A mistake in a base file does not matter here: `make base` names the mistake.
    """
    for name in names():
        params = _content(name).get("params")
        if isinstance(params, dict) and params.get("load_gpt2.weights") == weights:
            return name
    return weights


def way_without(source: str) -> str:
    """Return advice for a source that cannot be fetched, empty unless a base needs the source."""
    bases = {name: read_source(name) for name in names()}
    others = [name for name, needed in bases.items() if not needed]
    if source not in bases.values() or not others:
        return ""
    return f", or fine-tune from a base that needs no download: `make pipeline BASE={others[0]}`"


def read_source(name: str) -> str:
    """Return the source that a base file names, empty for none."""
    return str(_content(name).get("source") or "")


def _content(name: str) -> dict[str, Any]:
    """Return a base file's content unchecked, empty for an unreadable file."""
    try:
        content = graph.read_yaml(ROOT / f"configs/bases/{name}.yaml")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _changed(changes: Changes) -> Changes:
    """Return the changes that differ from params.yaml.

    The comparison uses params.yaml as loaded by this process, before the changes were written.
    """

    def present(key: str) -> object:
        value: object = graph.params()
        for part in key.split("."):
            assert isinstance(value, dict)
            value = value[part]
        return value

    return {
        key: value
        for key, value in changes.items()
        if json.dumps(present(key)) != json.dumps(value)
    }


def with_sources(base: Preset) -> tuple[str, list[str]]:
    """Return sources.toml's text with a base's source enabled, and a line for each change.

    The sources of all other bases are disabled. A preset changes nothing.
    """
    if not isinstance(base, Base):
        return "", []
    name = base.source
    path = ROOT / "sources.toml"
    try:
        table = tomlkit.parse(graph.read_text(path))
    except FileNotFoundError:
        raise ValueError(
            "sources.toml is missing: `git checkout sources.toml` restores the file"
        ) from None
    except TOMLKitError as error:
        raise ValueError(f"sources.toml: {error}") from None
    rows = {row.get("name"): row for row in table.get("source", [])}
    if name is not None and name not in rows:
        raise ValueError(f"sources.toml has no source {name}, required by the base")
    switched = []
    for source in sorted({read_source(base) for base in names()} & set(rows)):
        enabled = source == name
        if rows[source].get("enabled", True) != enabled:
            rows[source]["enabled"] = enabled
            switched.append(f"{source} is {'enabled' if enabled else 'disabled'}")
    return tomlkit.dumps(table), switched
