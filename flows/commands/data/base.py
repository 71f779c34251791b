"""`make base BASE=x`: fine-tune from other weights, as configs/bases/x.yaml says.

Writes the file's params into params.yaml and switches its source on in sources.toml, so that
what runs is what these two say, however it is started. `make pipeline BASE=x` does this first.
"""

import json

import tomlkit
from pydantic import BaseModel, ConfigDict, Field
from tomlkit.exceptions import TOMLKitError

from flows.sweeps.file import refusal
from flows.sweeps.params import Changes, edited, shown
from gptmill.files import write_text
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.project.params import validated


class Base(BaseModel):
    """A base file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | None
    """The entry of sources.toml that brings the weights; null where no source does."""
    params: Changes = Field(min_length=1)
    """Dotted keys of params.yaml and their values: where the weights lie, how to train on them."""


def main(arguments: list[str]) -> int:
    """Take over a base; a mistake in its file is one sentence before anything is written."""
    if len(arguments) != 1:
        given = " ".join(arguments) or "nothing"
        raise ValueError(f"name one base of {', '.join(names())}; given: {given}")
    base = read(arguments[0])
    table = _with_source(base.source) if base.source else None
    path = ROOT / "params.yaml"
    before = path.read_text(encoding="utf-8")
    after = edited(before, base.params)
    if table is not None:
        write_text(ROOT / "sources.toml", table)
        print(f"sources.toml: {base.source} is switched on")
    if after != before:
        write_text(path, after)
        print(f"params.yaml: {shown(_changed(base.params))}")
    print(f"the base is {arguments[0]}: `make pipeline` runs what rests on it")
    return 0


def names() -> list[str]:
    """Return the bases that there are files of."""
    return sorted(path.stem for path in (ROOT / "configs/bases").glob("*.yaml"))


def read(name: str) -> Base:
    """Read a base file. Raises ValueError where it does not fit this project."""
    file = f"configs/bases/{name}.yaml"
    if name not in names():
        raise ValueError(f"there is no {file}: the bases are {', '.join(names())}")
    base = validated(Base, graph.read_yaml(ROOT / file), file=file)
    for key in base.params:
        found = graph.params()
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                raise ValueError(f"{file}: params.yaml has no {key}")
            found = found[part]
    mistake = refusal(base.params)
    if mistake:
        raise ValueError(f"{file}: {mistake}")
    return base


def _changed(changes: Changes) -> Changes:
    """Return those that are not what params.yaml said when this process began."""

    def said(key: str) -> object:
        found: object = graph.params()
        for part in key.split("."):
            assert isinstance(found, dict)
            found = found[part]
        return found

    return {
        key: value for key, value in changes.items() if json.dumps(said(key)) != json.dumps(value)
    }


def _with_source(name: str) -> str | None:
    """Return sources.toml's text with a source switched on; None where it is on already."""
    path = ROOT / "sources.toml"
    try:
        table = tomlkit.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            "sources.toml is missing: `git checkout sources.toml` brings it back"
        ) from None
    except TOMLKitError as error:
        raise ValueError(f"sources.toml: {error}") from None
    rows = [row for row in table.get("source", []) if row.get("name") == name]
    if not rows:
        raise ValueError(f"sources.toml has no source {name}, which the base needs")
    if rows[0].get("enabled", True):
        return None
    rows[0]["enabled"] = True
    return tomlkit.dumps(table)
