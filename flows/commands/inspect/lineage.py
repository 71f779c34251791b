"""`make lineage MODEL=...`: commit, params, data, licences and runs behind a model."""

from pathlib import Path
from typing import Any

from flows.commands.arguments import named
from flows.nights.descent import lines, maker
from flows.sides.versions import URI
from gptmill.records import content_hash
from tasks.project.environment import ROOT
from tasks.project.graph import producer, stages
from tasks.tracking import registry
from tasks.tracking.delivery import find_run
from tasks.tracking.registry import KINDS, OUT, PREFIX, Registered

USAGE = (
    "usage: make lineage MODEL=classifier@champion, classifier/3, models:/gptmill-classifier/3, or "
    "the output folder of a stage"
)


def main(arguments: list[str]) -> int:
    """Print the descent of a model."""
    model = named(arguments, ("MODEL",), USAGE).get("MODEL", "")
    if not model:
        raise ValueError(f"MODEL is missing; {USAGE}")
    print(registry.answered(lambda: described(model)))
    return 0


def described(model: str) -> str:
    """Return the descent of a model as text."""
    folder = Path(ROOT / model)
    name, run = _of_folder(folder, model) if folder.is_dir() else _of_version(model)
    return "\n".join([f"{'model':<10}{name}", *lines(run)])


def _of_folder(folder: Path, name: str) -> tuple[str, Any]:
    """Return name and run of a folder: an output of a stage, a copy, or a part of an output."""
    own = producer(name.rstrip("/"))
    if own is not None and name.rstrip("/") not in stages()[own]["outs"]:
        name = next(out for out in stages()[own]["outs"] if name.startswith(f"{out}/"))
        folder = ROOT / name
    digest = content_hash(folder)
    for stage in stages().values():
        for path in stage["outs"]:
            run = maker(path, digest)
            if run is not None:
                return f"{name} ({path} {digest})", run
    raise ValueError(
        f"MODEL={name}: no run in this MLflow store wrote a folder with these bytes ({digest})"
    )


def _of_version(name: str) -> tuple[str, Any]:
    """Return name and run of a registered version."""
    text = name.removeprefix(URI)
    kind, at, word = text.partition("@") if "@" in text else text.rpartition("/")
    kind = kind.removeprefix(PREFIX)
    if kind not in KINDS:
        raise ValueError(
            f"MODEL={name} is neither a folder nor a version of {', '.join(KINDS)}; {USAGE}"
        )
    found = Registered(kind)
    number = found.aliases.get(word) if at == "@" else int(word) if word.isdecimal() else None
    if number not in found.versions:
        known = ", ".join([*found.aliases, *map(str, found.versions)]) or "none"
        raise ValueError(f"MODEL={name}: aliases and versions of {kind} are {known}")
    version = found.versions[number]
    output = KINDS[kind].output
    digest = version.tags.get(f"{OUT}{output}", "")
    run = find_run(version.run_id or "") or maker(output, digest)
    if run is None:
        raise ValueError(f"MODEL={name}: the run of version {number} was deleted in MLflow")
    return f"{kind} version {number} ({output} {digest})", run
